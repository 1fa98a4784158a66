//! How a connection ended.

use std::borrow::Cow;

use mesh_api::{Fault, Outcome, Reason};
use mesh_common::verdict::Verdict;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The outcome, which has a code.
    pub outcome: Outcome,
    /// One sentence for people, with the details.
    pub sentence: Cow<'static, str>,
    /// The party at fault, if there is a fault.
    pub fault: Option<Fault>,
}

impl Ended {
    /// An end for this reason, with its sentence. The fault is the reason's.
    pub fn new(reason: Reason, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { outcome: reason.into(), sentence: sentence.into(), fault: reason.fault() }
    }

    /// An end by this verdict.
    pub fn refused(verdict: Verdict) -> Self {
        let outcome = Outcome::from(verdict);
        Self { outcome, sentence: verdict.sentence().into(), fault: outcome.fault() }
    }

    /// The same, with the fault as this agent knows it of this connection.
    #[must_use]
    pub fn with_fault(self, fault: Option<Fault>) -> Self {
        Self { fault, ..self }
    }
}
