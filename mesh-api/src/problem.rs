//! What is wrong, for people to correct.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ProblemCode;

/// How many problems of one code `status` has.
const MAX_OF_A_CODE: usize = 100;

/// Something that is wrong with the source or with an announcement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProblemFacts {
    /// Stable code ([`ProblemCode`]).
    pub code: String,
    /// File, object, field, what is wrong and what to do.
    pub message: String,
}

impl ProblemFacts {
    /// A problem with its text.
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code: code.code().to_owned(), message: message.into() }
    }

    /// At most [`MAX_OF_A_CODE`] of each code, in their order, and then how many more there are.
    pub fn bounded(problems: Vec<Self>) -> Vec<Self> {
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        let mut told = Vec::with_capacity(problems.len());
        for problem in problems {
            let count = found.entry(problem.code.clone()).or_default();
            *count += 1;
            if *count <= MAX_OF_A_CODE {
                told.push(problem);
            }
        }
        for (code, count) in found {
            let more = count.saturating_sub(MAX_OF_A_CODE);
            if more > 0 {
                told.push(Self { code, message: format!("and {more} more of this kind") });
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_a_code_are_told_up_to_a_bound() {
        let problem = |code: &str, number: usize| ProblemFacts {
            code: code.to_owned(),
            message: number.to_string(),
        };
        let many = (0..MAX_OF_A_CODE + 3).map(|number| problem("many", number));
        let told = ProblemFacts::bounded(many.chain([problem("one", 0)]).collect());
        assert_eq!(told.len(), MAX_OF_A_CODE + 2);
        assert_eq!(told[MAX_OF_A_CODE], problem("one", 0));
        assert_eq!(told[MAX_OF_A_CODE + 1].message, "and 3 more of this kind");
    }
}
