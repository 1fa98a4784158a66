//! Which node announced an address first, where several nodes do.
//!
//! Only such addresses are kept. If one node announces an address, that node is the incumbent.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::announcement::{Announcements, MeshNode};
use super::names::NodeName;
use super::shared_map::SharedMap;

/// See the file. Cloning copies one pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incumbents(SharedMap<IpAddr, Arc<[NodeRank]>>);

/// A node that announces an address, and the rank of its announcement: the least rank came first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRank {
    /// The node.
    pub node: NodeName,
    /// Equal for nodes that were first heard at once.
    pub rank: u32,
}

/// What is known of announcements; an agent writes it down for the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Those in force, also of nodes whose `MeshNode` is gone.
    pub announcements: Arc<Announcements>,
    /// Which of them came first.
    pub incumbents: Incumbents,
}

impl Incumbents {
    /// The node that announced an address before all others that do, if exactly one is known to be
    /// the first.
    pub fn of(&self, address: IpAddr) -> Option<&NodeName> {
        let claims = self.0.get(&address)?;
        let first = claims.iter().min_by_key(|claim| claim.rank)?;
        let is_alone = claims.iter().filter(|claim| claim.rank == first.rank).count() == 1;
        is_alone.then_some(&first.node)
    }

    /// All addresses that several nodes announce, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &[NodeRank])> {
        self.0.iter().map(|(address, claims)| (address, &**claims))
    }

    /// Notes what is known of an address from earlier.
    pub fn insert(&mut self, address: IpAddr, claims: Vec<NodeRank>) {
        self.0.insert(address, claims.into());
    }

    /// Updates one address from the nodes that announced it `before` to those that announce it
    /// `now`. A node that stays keeps its rank; new ones come last, all with the same rank.
    pub(super) fn settle(&mut self, address: IpAddr, before: &[NodeName], now: &[NodeName]) {
        if now.len() < 2 {
            self.0.remove(&address);
            return;
        }
        let known = self.0.get(&address);
        let rank = |node: &NodeName| match known {
            Some(known) => known.iter().find(|claim| claim.node == *node).map(|it| it.rank),
            None => before.contains(node).then_some(0),
        };
        let next = now.iter().filter_map(rank).max().map_or(0, |last| last.saturating_add(1));
        let claim =
            |node: &NodeName| NodeRank { node: node.clone(), rank: rank(node).unwrap_or(next) };
        let claims: Arc<[NodeRank]> = now.iter().map(claim).collect();
        if known.is_none_or(|known| **known != *claims) {
            self.0.insert(address, claims);
        }
    }

    /// The same for all addresses. This node's own announcements are left out. Takes time in
    /// proportion to everything.
    #[must_use]
    pub fn after(mut self, before: &Announcements, now: &Announcements, own: &NodeName) -> Self {
        let (before, now) = (claimants(before, own), claimants(now, own));
        let known = self.0.keys().copied();
        let all: HashSet<IpAddr> = now.keys().copied().chain(known).collect();
        let none = BTreeSet::new();
        for address in all {
            let of = |nodes: &HashMap<IpAddr, BTreeSet<&NodeName>>| -> Vec<NodeName> {
                nodes.get(&address).unwrap_or(&none).iter().copied().cloned().collect()
            };
            self.settle(address, &of(&before), &of(&now));
        }
        self
    }
}

fn claimants<'a>(
    announcements: &'a Announcements,
    own: &NodeName,
) -> HashMap<IpAddr, BTreeSet<&'a NodeName>> {
    let mut nodes: HashMap<IpAddr, BTreeSet<&NodeName>> = HashMap::new();
    let speaks = |(name, said): &(&NodeName, &Arc<MeshNode>)| **name != *own && said.node == **name;
    for (name, said) in announcements.iter().filter(speaks) {
        for address in said.pods.iter().flat_map(|pod| &pod.addresses) {
            nodes.entry(*address).or_default().insert(name);
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::testing::{announcements, node};
    use super::*;

    fn heard(nodes: &[&str]) -> Announcements {
        let pods = [("x", "10.0.9.1")];
        let all: Vec<(&str, &[(&str, &str)])> = nodes.iter().map(|it| (*it, &pods[..])).collect();
        announcements(&all)
    }

    #[test]
    fn who_was_heard_first_stays_until_it_withdraws() {
        let own = node("node1");
        let mut incumbents = Incumbents::default();
        let mut before = Announcements::new();
        let mut hear = |nodes: &[&str]| {
            let now = heard(nodes);
            incumbents = incumbents.clone().after(&before, &now, &own);
            before = now;
            incumbents.of("10.0.9.1".parse().unwrap()).map(ToString::to_string)
        };
        assert_eq!(hear(&["node9"]), None, "uncontested");
        assert_eq!(hear(&["node2", "node9"]).as_deref(), Some("node9"));
        assert_eq!(hear(&["node2", "node3", "node9", "node1"]).as_deref(), Some("node9"));
        assert_eq!(hear(&["node2", "node3"]).as_deref(), Some("node2"), "passed on");
        assert_eq!(hear(&["node2", "node3", "node9"]).as_deref(), Some("node2"));
        assert_eq!(hear(&["node3", "node9"]).as_deref(), Some("node3"));
        assert_eq!(hear(&["node9"]), None);
        assert_eq!(hear(&["node2", "node3"]), None, "both began at once");
        assert_eq!(hear(&["node2", "node3", "node9"]), None);
        assert_eq!(hear(&["node3", "node9"]).as_deref(), Some("node3"));
    }
}
