//! What is wrong with the declared objects, for people to correct.

use std::borrow::Cow;
use std::fmt;

use mesh_api::{ProblemCode, ProblemFacts};

use super::origin::{FieldError, Origin};

impl From<&Problem> for ProblemFacts {
    fn from(problem: &Problem) -> Self {
        Self::new(problem.code, problem.to_string())
    }
}

/// One thing that is wrong, which object it is in, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object that has to be changed.
    pub origin: Origin,
    /// The field in it, as Kubernetes names it; empty if the object as a whole is meant.
    pub field: String,
    /// What kind of problem it is.
    pub code: ProblemCode,
    /// One sentence for people, with the consequence.
    pub message: String,
    /// The remedy.
    pub hint: Option<Cow<'static, str>>,
}

impl Problem {
    pub(super) fn new(origin: &Origin, code: ProblemCode, error: FieldError) -> Self {
        let FieldError { field, message, hint } = error;
        Self { origin: origin.clone(), field, code, message, hint }
    }
}

impl fmt::Display for Problem {
    /// `shop.yaml:12: Pod shop/cart: metadata.annotations[…]: message. Hint: remedy.`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { kind, namespace, name, .. } = &self.origin;
        if let (Some(file), Some(place)) = (self.origin.file(), self.origin.place(&self.field)) {
            write!(f, "{file}:{}: ", place.line)?;
        }
        write!(f, "{kind} ")?;
        if let Some(namespace) = namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{name}: ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}.", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " Hint: {hint}."),
            None => Ok(()),
        }
    }
}
