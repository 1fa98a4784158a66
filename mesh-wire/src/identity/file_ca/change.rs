//! Replaces a CA by one that was not trusted beside it first: its Secret was deleted and recreated,
//! or its directory was replaced. No connection may fail because of that. Both CAs are trusted. The
//! old one signs until every node is known to trust the new one, three minutes at most. The old one
//! is forgotten when no node uses it any more. Whatever nodes say, it is forgotten when the last
//! certificate that it has signed here has ended. A restarted agent has forgotten it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Authority, FileCa};
use crate::identity::{Anchors, NodeCa};

/// How long nodes may take to get the new CA, too. The kubelet looks at a Secret every minute, and
/// adds some time of its own.
const PATIENCE: Duration = Duration::from_mins(3);

/// How much of a fingerprint is shown, in hexadecimal digits.
const SHOWN: usize = 16;

/// A change that is under way.
pub(super) struct Change {
    /// The anchors that are trusted besides those on disk.
    before: Anchors,
    on_disk: Anchors,
    next: Arc<Authority>,
    since: Instant,
    /// The time from which the new CA signs.
    signs_since: Option<Instant>,
    /// The nodes that it waits for.
    waits_for: Vec<String>,
}

impl FileCa {
    /// Takes what was found on disk. Returns whether another CA signs from now on.
    pub(super) fn take(&self, found: Authority, on_disk: Anchors) -> bool {
        let mut change = self.change();
        let signs = self.authority.load_full();
        if let Some(change) = change.as_mut()
            && change.next.certificate == found.certificate
        {
            self.anchors.store(Arc::new(change.before.with(&on_disk)));
            change.on_disk = on_disk;
            return false;
        }
        if on_disk.certificates().contains(&signs.certificate) {
            // The rotation was done step by step, or undone: what is on disk is what is meant.
            *change = None;
            if **self.anchors.load() != on_disk {
                tracing::info!(anchors = on_disk.certificates().len(), "trust anchors changed");
                self.anchors.store(Arc::new(on_disk));
            }
            let is_other = signs.certificate != found.certificate;
            if is_other {
                tracing::info!(ca = %self.directory.display(), "another CA signs from now on");
                self.authority.store(Arc::new(found));
            }
            return is_other;
        }
        tracing::warn!(
            ca = %self.directory.display(), old = short(&signs.fingerprint()), new = short(&found.fingerprint()),
            "another CA has taken the place of the one that signs here; both are trusted until all nodes have the new one"
        );
        let before = Anchors::clone(&self.anchors.load());
        self.anchors.store(Arc::new(before.with(&on_disk)));
        let next = Arc::new(found);
        *change = Some(Change {
            before,
            on_disk,
            next,
            since: Instant::now(),
            signs_since: None,
            waits_for: Vec::new(),
        });
        false
    }

    /// Continues a change in progress, based on the announcements of other nodes that are in force.
    /// `is_renewed`: whether all certificates of this node are signed by the CA that signs now.
    /// Returns whether another CA signs from now on.
    pub fn settle<'a>(&self, others: impl Iterator<Item = NodeCa<'a>>, is_renewed: bool) -> bool {
        let mut guard = self.change();
        let Some(change) = guard.as_mut() else { return false };
        let signs = self.authority.load_full();
        let next = change.next.fingerprint();
        if signs.certificate != change.next.certificate {
            let lack = others.filter(|it| !it.anchors.contains(&next));
            change.waits_for = lack.map(|it| it.node.to_owned()).collect();
            if !change.waits_for.is_empty() && change.since.elapsed() < PATIENCE {
                return false;
            }
            tracing::info!(
                ca = short(&next),
                late = change.waits_for.len(),
                "the new CA signs from now on"
            );
            self.authority.store(Arc::clone(&change.next));
            change.signs_since = Some(Instant::now());
            return true;
        }
        let (on_disk, before) = (change.on_disk.fingerprints(), change.before.fingerprints());
        let is_old = |issuer: &String| before.contains(issuer) && !on_disk.contains(issuer);
        let use_it = others.filter(|it| is_old(it.issuer));
        change.waits_for = use_it.map(|it| it.node.to_owned()).collect();
        let is_unused = is_renewed && change.waits_for.is_empty();
        let have_ended =
            change.signs_since.is_some_and(|since| since.elapsed() >= self.leaf_lifetime);
        if is_unused || have_ended {
            tracing::info!(
                late = change.waits_for.len(),
                "the old CA is not trusted any more: no node uses it, or the last certificate that it signed here has ended"
            );
            self.anchors.store(Arc::new(change.on_disk.clone()));
            *guard = None;
        }
        false
    }

    /// The fingerprint of the CA that signs here.
    pub fn issuer(&self) -> String {
        self.authority.load().fingerprint()
    }

    /// The report for people during a change.
    pub fn change_problem(&self) -> Option<String> {
        let guard = self.change();
        let change = guard.as_ref()?;
        let signs = self.authority.load_full();
        let nodes = names(&change.waits_for);
        let how_far = if signs.certificate == change.next.certificate {
            format!(
                "it signs already, and the old one is trusted as long as certificates of it are in use{nodes}, but no longer than those that it signed here last"
            )
        } else {
            format!(
                "the old one ({}) signs, and both are trusted, until all nodes have the new one{nodes}",
                short(&signs.fingerprint())
            )
        };
        Some(format!(
            "another CA ({}) has been put into {} in the place of the one in use: {how_far}; if that was no purpose, put the old one back from your copy",
            short(&change.next.fingerprint()),
            self.directory.display()
        ))
    }

    /// The nodes to which no connection succeeds, because one of the two does not trust the other's
    /// CA.
    pub fn strangers<'a>(&self, others: impl Iterator<Item = NodeCa<'a>>) -> Option<String> {
        let (issuer, trusted) = (self.issuer(), self.anchors.load().fingerprints());
        let is_strange =
            |it: &NodeCa<'_>| !it.anchors.contains(&issuer) || !trusted.contains(it.issuer);
        let nodes: Vec<_> = others.filter(is_strange).map(|it| it.node.to_owned()).collect();
        (!nodes.is_empty()).then(|| {
            format!(
                "this node and others have different CAs, so that their pods do not trust each other{}; give all nodes the same (here {} signs, of {})",
                names(&nodes), short(&issuer), self.directory.display()
            )
        })
    }
}

/// How many nodes are named at most.
const NAMED: usize = 5;

fn names(nodes: &[String]) -> String {
    let named: Vec<_> = nodes.iter().take(NAMED).map(String::as_str).collect();
    let more = match nodes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    if named.is_empty() { String::new() } else { format!(" ({}{more})", named.join(", ")) }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..SHOWN).unwrap_or(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::OwnCa;
    use crate::identity::file_ca::{ANCHORS, CA_CERTIFICATE, CA_KEY, init};

    fn new_ca() -> (tempfile::TempDir, FileCa) {
        let directory = tempfile::tempdir().unwrap();
        init(directory.path(), &"cluster.local".parse().unwrap(), false).unwrap();
        let ca = FileCa::open(directory.path()).unwrap();
        (directory, ca)
    }

    fn replace(at: &tempfile::TempDir, by: &tempfile::TempDir) {
        for file in [CA_CERTIFICATE, CA_KEY, ANCHORS] {
            std::fs::copy(by.path().join(file), at.path().join(file)).unwrap();
        }
    }

    fn says(ca: &FileCa) -> OwnCa {
        OwnCa { issuer: ca.issuer(), anchors: ca.anchors.load().fingerprints() }
    }

    fn node<'a>(node: &'a str, ca: &'a OwnCa) -> [NodeCa<'a>; 1] {
        [NodeCa { node, issuer: &ca.issuer, anchors: &ca.anchors }]
    }

    #[test]
    fn a_ca_that_takes_anothers_place_signs_when_all_trust_it_and_then_the_old_one_is_forgotten() {
        let (ours, ca) = new_ca();
        let (theirs, other) = new_ca();
        replace(&theirs, &ours);
        assert!(!other.reload().unwrap());
        let other = FileCa::open(theirs.path()).unwrap(); // the second node, of the same CA
        let (new, fresh) = new_ca();
        let old_issuer = ca.issuer();
        assert_eq!(
            (ca.change_problem(), ca.strangers(node("node2", &says(&other)).into_iter())),
            (None, None)
        );

        // The first node gets the new CA first: nothing fails, and the report names the node that
        // lacks it.
        replace(&ours, &new);
        assert!(!ca.reload().unwrap());
        assert!(!ca.settle(node("node2", &says(&other)).into_iter(), true));
        assert_eq!((ca.issuer(), ca.anchors.load().certificates().len()), (old_issuer.clone(), 2));
        let told = ca.change_problem().unwrap();
        assert!(told.contains("node2") && told.contains(short(&fresh.issuer())), "{told}");
        assert_eq!(ca.strangers(node("node2", &says(&other)).into_iter()), None);
        assert!(!ca.reload().unwrap(), "looked at again, it is the same change");

        // The second node follows: the new CA signs on both, and the old one stays trusted until no
        // node uses it.
        replace(&theirs, &new);
        assert!(!other.reload().unwrap());
        assert!(other.settle(node("node1", &says(&ca)).into_iter(), true));
        assert_eq!(other.issuer(), fresh.issuer());
        assert!(!other.settle(node("node1", &says(&ca)).into_iter(), true));
        assert_eq!(other.anchors.load().certificates().len(), 2, "node1 signs with it still");
        assert!(other.change_problem().unwrap().contains("node1"));
        assert!(ca.settle(node("node2", &says(&other)).into_iter(), true));
        assert!(!ca.settle(node("node2", &says(&other)).into_iter(), false));
        assert_eq!(ca.anchors.load().certificates().len(), 2, "its own certificates are old");
        for (ca, other) in [(&ca, says(&other)), (&other, says(&ca))] {
            assert!(!ca.settle(node("other", &other).into_iter(), true));
            assert_eq!(ca.change_problem(), None);
            assert_eq!(*ca.anchors.load().fingerprints(), [fresh.issuer()]);
        }
    }

    /// A node that is gone, or that lies, announces for ever that it uses the old CA.
    #[test]
    fn the_old_ca_is_forgotten_with_the_last_certificate_that_it_signed_here_whatever_nodes_say() {
        for (lifetime, anchors) in [(Duration::ZERO, 1), (Duration::from_hours(24), 2)] {
            let (ours, ca) = new_ca();
            let ca = ca.with_leaf_lifetime(lifetime);
            let of_old = says(&ca);
            let (new, _) = new_ca();
            replace(&ours, &new);
            assert!(!ca.reload().unwrap());
            let has_both = OwnCa { anchors: ca.anchors.load().fingerprints(), ..of_old.clone() };
            assert!(ca.settle(node("node2", &has_both).into_iter(), true));
            for is_renewed in [true, false] {
                assert!(!ca.settle(node("node2", &of_old).into_iter(), is_renewed));
            }
            assert_eq!(ca.anchors.load().certificates().len(), anchors, "{lifetime:?}");
            assert_eq!(ca.change_problem().is_none(), anchors == 1);
        }
    }

    #[test]
    fn a_ca_that_is_put_back_ends_the_change() {
        let (ours, ca) = new_ca();
        let (kept, _) = new_ca();
        replace(&kept, &ours);
        let (new, _) = new_ca();
        let before = ca.anchors.load_full();
        replace(&ours, &new);
        assert!(!ca.reload().unwrap());
        replace(&ours, &kept);
        assert!(!ca.reload().unwrap());
        assert_eq!((ca.change_problem(), ca.anchors.load_full()), (None, before));
    }

    #[test]
    fn nodes_of_other_cas_are_named() {
        let ((_ours, ca), (_theirs, other)) = (new_ca(), new_ca());
        let nodes: Vec<_> = (0..7).map(|n| format!("n{n}")).collect();
        let strange = says(&other);
        let told = ca.strangers(nodes.iter().flat_map(|it| node(it, &strange))).unwrap();
        assert!(told.contains("(n0, n1, n2, n3, n4 and 2 more)"), "{told}");
    }
}
