//! What is wrong with the declared objects, for people to correct.

use std::borrow::Cow;
use std::fmt;

use mesh_api::ProblemFacts;

use super::origin::{FieldError, Origin};

/// The kinds of problem. Codes are stable: they appear in logs, metrics and `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemCode {
    /// Two pods have one address.
    AddressTaken,
    /// A pod's Namespace object is not there.
    NamespaceMissing,
    /// A `nodemesh.dev/…` label or annotation cannot be read.
    InvalidSetting,
    /// A `nodemesh.dev/…` label or annotation that does not exist.
    UnknownSetting,
    /// A label that should be an annotation, or the other way round.
    MisplacedSetting,
    /// An unknown or misplaced setting that asks for strict.
    StrictNotInForce,
    /// A label would put the mesh's own pods into the mesh.
    MeshNamespace,
    /// Two services have one address and port.
    ServiceAddressTaken,
    /// What a node announces counts for nothing.
    AnnouncementRefused,
    /// Something contradicts what a node announces.
    AnnouncementDoubted,
    /// A node's announcement is gone, and the node has not withdrawn it.
    AnnouncementMissing,
    /// Two nodes announce one address, and it is settled which of them is believed.
    AnnouncementConflict,
    /// Several identities are announced at one address, and nothing decides between them.
    DisputedAddress,
}

impl ProblemCode {
    /// The stable `snake_case` code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressTaken => "address_taken",
            Self::NamespaceMissing => "namespace_missing",
            Self::InvalidSetting => "invalid_setting",
            Self::UnknownSetting => "unknown_setting",
            Self::MisplacedSetting => "misplaced_setting",
            Self::StrictNotInForce => "strict_not_in_force",
            Self::MeshNamespace => "mesh_namespace",
            Self::ServiceAddressTaken => "service_address_taken",
            Self::AnnouncementRefused => "announcement_refused",
            Self::AnnouncementDoubted => "announcement_doubted",
            Self::AnnouncementMissing => "announcement_missing",
            Self::AnnouncementConflict => "announcement_conflict",
            Self::DisputedAddress => "disputed_address",
        }
    }
}

impl From<&Problem> for ProblemFacts {
    fn from(problem: &Problem) -> Self {
        Self { code: problem.code.as_str().to_owned(), message: problem.to_string() }
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
