//! Problems, stored by the subject that was judged, so that a change of one object changes only its
//! own problems.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::ProblemCode;

use crate::names::{NodeName, ObjectName, PodUid};
use crate::origin::FieldError;
use crate::problem::Problem;
use crate::shared_map::SharedMap;

/// How many problems of one kind are reported of an object: a node can announce thousands of
/// addresses that belong to others.
const TOLD_OF_AN_OBJECT: usize = 8;

/// The subject that was judged when a problem was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    Namespace(Arc<str>),
    Pod(PodUid),
    Service(ObjectName),
    /// A node's announcement as a whole.
    Node(NodeName),
    /// One pod in an announcement.
    Announced(AnnouncedKey),
}

/// Names a pod in an announcement. Announced pods are judged in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AnnouncedKey {
    pub(super) node: NodeName,
    pub(super) uid: PodUid,
    /// How many pods of the same UID stand before it in the announcement; normally none.
    pub(super) nth: usize,
}

/// All problems of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Problems(SharedMap<Subject, Arc<[Problem]>>);

impl Problems {
    /// Replaces the problems of a subject.
    pub(super) fn set(&mut self, subject: Subject, mut found: Vec<Problem>) {
        if found.is_empty() {
            self.0.remove(&subject);
            return;
        }
        sort(&mut found);
        if self.0.get(&subject).is_none_or(|known| **known != *found) {
            self.0.insert(subject, found.into());
        }
    }

    /// Whether something is wrong at a subject.
    pub(super) fn has(&self, subject: &Subject) -> bool {
        self.0.contains_key(subject)
    }

    /// Whether both are one and the same copy.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.is(&other.0)
    }

    /// All of them, sorted by object and field. Of one kind and object only the first are listed,
    /// with the number of the rest.
    pub(super) fn sorted(&self) -> Vec<Problem> {
        let mut all: Vec<_> = self.0.iter().flat_map(|(_, found)| found.iter()).cloned().collect();
        sort(&mut all);
        told(&all)
    }
}

fn told(sorted: &[Problem]) -> Vec<Problem> {
    let mut told = Vec::with_capacity(sorted.len());
    for of_object in sorted.chunk_by(|a, b| a.origin.sort_key() == b.origin.sort_key()) {
        let mut found: BTreeMap<ProblemCode, usize> = BTreeMap::new();
        for problem in of_object {
            let count = found.entry(problem.code).or_default();
            *count += 1;
            if *count <= TOLD_OF_AN_OBJECT {
                told.push(problem.clone());
            }
        }
        let Some(Problem { origin, .. }) = of_object.first() else { continue };
        for (code, count) in found {
            let more = count.saturating_sub(TOLD_OF_AN_OBJECT);
            if more > 0 {
                let error = FieldError::new("", format!("and {more} more of this kind"));
                told.push(Problem::new(origin, code, error));
            }
        }
    }
    told
}

fn sort(problems: &mut [Problem]) {
    let key = |p: &Problem| (p.code, p.message.clone());
    problems.sort_by(|a, b| {
        (a.origin.sort_key(), &a.field)
            .cmp(&(b.origin.sort_key(), &b.field))
            .then_with(|| key(a).cmp(&key(b)))
    });
}
