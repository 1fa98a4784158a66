//! How a connection ended.

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Stable `snake_case` code.
    pub code: &'static str,
    /// One sentence for people.
    pub sentence: String,
}

impl Ended {
    /// An end with its code and sentence.
    pub fn new(code: &'static str, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}
