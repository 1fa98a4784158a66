//! Each map as a typed table.
//!
//! [`Table::sync`] brings a table that mirrors the world to a wanted content, and writes only
//! differences. The two hand-over maps of the hot path are taken from and put to by single system
//! calls.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{self, Array, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, SockHash},
    util::nr_cpus,
};
use mesh_common::{
    addr::{Addr, AddrPort},
    maps::{
        Answered, EnrolledPod, FlowKey, LEG_NOTED, ListenerKey, LocalEntry, Named, Pending,
        SteeredPorts, VerdictCounts,
    },
    verdict::{VERDICT_SLOTS, Verdict},
};
use parking_lot::Mutex;

use super::{
    cidrs::CidrTable, kubelet::KubeletDials, programs::KernelError, reached::ReachedTable,
    shares::Shares,
};
use crate::sys;

/// Of linux/bpf.h: writes an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// All maps of the programs.
pub struct Tables {
    /// Cgroup ids of the agent.
    pub agent_cgroups: Table<u64, u32>,
    /// Cgroup ids of pods that are known.
    pub classified: Table<u64, u32>,
    /// Namespace cookie → pod whose connects are decided about.
    pub enrolled: Table<u64, EnrolledPod>,
    /// Namespace cookie → held pod whose dials wait.
    pub held: Table<u64, EnrolledPod>,
    /// Pod address → pod of this node.
    pub local: Table<Addr, LocalEntry>,
    /// Address → `ADDRESS_*` bits.
    pub addresses: Table<Addr, u32>,
    /// Ranges of pod addresses.
    pub pod_cidrs: CidrTable,
    /// Address and port → `PORT_*` bits.
    pub ports: Table<AddrPort, u32>,
    /// The agent's listening sockets.
    pub listeners: ListenerTable,
    /// What pods have reached a moment ago.
    pub reached: ReachedTable,
    /// What the kubelet has dialled.
    pub kubelet_dials: KubeletDials,
    /// What each pod has of `PENDING`.
    pub shares: Shares,
    /// Through these maps, kernel and agent tell each other about a connection that is being made.
    pending: OwnedFd,
    answered: OwnedFd,
    legs: OwnedFd,
    node: Mutex<Array<MapData, u64>>,
    steered: Mutex<maps::HashMap<MapData, u64, SteeredPorts>>,
    verdicts: PerCpuArray<MapData, u64>,
    pod_verdicts: Mutex<PerCpuHashMap<MapData, u64, VerdictCounts>>,
    events_lost: PerCpuArray<MapData, u64>,
}

/// What has become of the agent that pinned the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It is gone, or there was none.
    Gone,
    /// It hands over to this one, and is in the middle of making connections.
    Lives,
}

macro_rules! open {
    ($ebpf:expr, $name:literal, $kind:ty) => {{
        let map = $ebpf.take_map($name).ok_or_else(|| KernelError::Missing($name.to_owned()))?;
        <$kind>::try_from(map)
            .map_err(|source| KernelError::Map { map: $name, source: Box::new(source) })?
    }};
}

impl Tables {
    /// The maps that are pinned. All others belong to one agent only: its events and questions, and
    /// what it knows of destinations.
    pub(super) const NAMES: [&str; 23] = [
        "AGENT_CGROUPS",
        "CLASSIFIED",
        "NODE",
        "ENROLLED",
        "HELD",
        "HELD_DIALS",
        "LOCAL",
        "ADDRESSES",
        "POD_CIDRS",
        "PORTS",
        "LISTENERS",
        "STEERED",
        "PENDING",
        "ASKED",
        "ANSWERED",
        "LEGS",
        "SHARES",
        "VERDICTS",
        "POD_VERDICTS",
        "EVENTS_LOST",
        "SHOWN_PEER",
        "KUBELET_SOCKETS",
        "KUBELET_DIALS",
    ];

    pub(super) fn open(ebpf: &mut Ebpf, before: Before) -> Result<Self, KernelError> {
        Ok(Self {
            agent_cgroups: Table::open("AGENT_CGROUPS", ebpf)?,
            classified: Table::open("CLASSIFIED", ebpf)?,
            enrolled: Table::open("ENROLLED", ebpf)?,
            held: Table::open("HELD", ebpf)?,
            local: Table::open("LOCAL", ebpf)?,
            addresses: Table::open("ADDRESSES", ebpf)?,
            pod_cidrs: CidrTable::open(ebpf)?,
            ports: Table::open("PORTS", ebpf)?,
            listeners: ListenerTable {
                map: Mutex::new(open!(ebpf, "LISTENERS", SockHash<MapData, ListenerKey>)),
            },
            reached: ReachedTable::open(ebpf)?,
            kubelet_dials: KubeletDials::open(ebpf)?,
            pending: emptied::<FlowKey, Pending>("PENDING", ebpf, before)?,
            answered: emptied::<FlowKey, Answered>("ANSWERED", ebpf, before)?,
            legs: emptied::<FlowKey, Named>("LEGS", ebpf, before)?,
            shares: Shares::open(ebpf, before)?,
            node: Mutex::new(open!(ebpf, "NODE", Array<MapData, u64>)),
            steered: Mutex::new(open!(ebpf, "STEERED", maps::HashMap<MapData, u64, SteeredPorts>)),
            verdicts: open!(ebpf, "VERDICTS", PerCpuArray<MapData, u64>),
            pod_verdicts: Mutex::new(
                open!(ebpf, "POD_VERDICTS", PerCpuHashMap<MapData, u64, VerdictCounts>),
            ),
            events_lost: open!(ebpf, "EVENTS_LOST", PerCpuArray<MapData, u64>),
        })
    }

    /// Tells the programs something about the node, by its `NODE_*` index.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_node(&self, index: u32, value: u64) -> Result<(), KernelError> {
        let mut node = self.node.lock();
        node.set(index, value, 0).map_err(|source| map_error("NODE", source))
    }

    /// Takes the original destination of a redirected connection, named as the *dialling* socket
    /// sees it. The connection then counts for its pod no longer.
    ///
    /// # Errors
    /// What the kernel said. `Ok(None)`: the kernel knows of no such connection, and the caller
    /// must not guess. If only the count fails, the pod has a place less, and the connection goes
    /// on.
    pub fn take_pending(&self, flow: &FlowKey) -> io::Result<Option<Pending>> {
        let Some(pending) = sys::bpf::take::<_, Pending>(self.pending.as_fd(), flow)? else {
            return Ok(None);
        };
        if let Err(error) = self.shares.give_back(flow.netns, pending.share_since_ns) {
            tracing::warn!(%error, "cannot give back the place of a dial");
        }
        Ok(Some(pending))
    }

    /// A dial that waits, unless its application has given up.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn pending(&self, flow: &FlowKey, id: u64) -> io::Result<Option<Pending>> {
        let pending = sys::bpf::get::<_, Pending>(self.pending.as_fd(), flow)?;
        Ok(pending.filter(|pending| pending.id == id))
    }

    /// Answers for a dial that waits. Its packet, when it comes again, is let go on or refused.
    ///
    /// # Errors
    /// What the kernel said; the dial then goes on waiting.
    pub fn answer(&self, flow: &FlowKey, id: u64, goes_on: bool) -> io::Result<()> {
        let answered = Answered { id, goes_on: u32::from(goes_on), zero: 0 };
        sys::bpf::put(self.answered.as_fd(), flow, &answered)
    }

    /// Takes an answer back that is not needed any more.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn drop_answer(&self, flow: &FlowKey) -> io::Result<()> {
        sys::bpf::take::<_, Answered>(self.answered.as_fd(), flow).map(drop)
    }

    /// Notes the client of a leg, before it is dialled ([`LEG_NOTED`]). One from another pod keeps
    /// its note until it ends: it is never written over.
    ///
    /// # Errors
    /// `E2BIG` if too many legs are being dialled at once; `EEXIST` if another agent has one from
    /// that pod with these addresses and ports.
    pub fn put_leg(&self, flow: &FlowKey, client: AddrPort) -> io::Result<()> {
        let put = if flow.local == flow.remote { sys::bpf::put } else { sys::bpf::put_new };
        put(self.legs.as_fd(), flow, &Named { endpoint: client, verdict: LEG_NOTED })
    }

    /// How far a leg is that has a note ([`LEG_ARRIVED`] and the others). Those from other pods of
    /// the node have one until they end, also if it is another agent that still drains.
    pub fn leg(&self, flow: &FlowKey) -> Option<u32> {
        let named = sys::bpf::get::<_, Named>(self.legs.as_fd(), flow).ok()??;
        Some(named.verdict)
    }

    /// Forgets a leg that is over; as a rule sockops has taken its note already.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn drop_leg(&self, flow: &FlowKey) -> io::Result<()> {
        sys::bpf::take::<_, Named>(self.legs.as_fd(), flow).map(drop)
    }

    /// The node's verdicts since the maps were made, by [`Verdict`] number.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn verdicts(&self) -> Result<[u64; VERDICT_SLOTS], KernelError> {
        let mut counts = [0; VERDICT_SLOTS];
        for &verdict in Verdict::ALL {
            let number = verdict as u32;
            let values =
                self.verdicts.get(&number, 0).map_err(|source| map_error("VERDICTS", source))?;
            if let Some(count) = counts.get_mut(number as usize) {
                *count = values.iter().sum();
            }
        }
        Ok(counts)
    }

    /// The verdicts of one enrolled namespace, or `None` if it has no counters.
    pub fn pod_verdicts(&self, netns: u64) -> Option<[u64; VERDICT_SLOTS]> {
        let map = self.pod_verdicts.lock();
        let values = map.get(&netns, 0).ok()?;
        let mut counts = [0; VERDICT_SLOTS];
        for value in values.iter() {
            for (sum, part) in counts.iter_mut().zip(value.0) {
                *sum += part;
            }
        }
        Some(counts)
    }

    /// Gives a namespace its counters, from zero unless it has them already.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_pod_verdicts(&self, netns: u64) -> Result<(), KernelError> {
        if self.pod_verdicts(netns).is_some() {
            return Ok(());
        }
        let cpus = nr_cpus()
            .map_err(|(_, source)| map_error("POD_VERDICTS", MapError::IoError(source)))?;
        let zero = PerCpuValues::try_from(vec![VerdictCounts([0; VERDICT_SLOTS]); cpus])
            .map_err(|source| map_error("POD_VERDICTS", MapError::IoError(source)))?;
        let mut map = self.pod_verdicts.lock();
        map.insert(netns, zero, 0).map_err(|source| map_error("POD_VERDICTS", source))
    }

    /// Takes a namespace's counters away.
    pub fn remove_pod_verdicts(&self, netns: u64) {
        let mut map = self.pod_verdicts.lock();
        drop(map.remove(&netns)); // one that is not there is removed
    }

    /// Gives a namespace its entry in `STEERED`, with no port, unless it has one already.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_steered(&self, netns: u64) -> Result<(), KernelError> {
        let inserted = self.steered.lock().insert(netns, SteeredPorts::EMPTY, BPF_NOEXIST);
        match inserted {
            Err(MapError::SyscallError(failed))
                if failed.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            other => other.map_err(|source| map_error("STEERED", source)),
        }
    }

    /// Takes a namespace's entry away.
    pub fn remove_steered(&self, netns: u64) {
        let mut map = self.steered.lock();
        drop(map.remove(&netns)); // one that is not there is removed
    }

    /// Reads all that is mirrored again: a successor that failed may have written.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn reload(&self) -> Result<(), KernelError> {
        self.agent_cgroups.reload()?;
        self.classified.reload()?;
        self.enrolled.reload()?;
        self.held.reload()?;
        self.local.reload()?;
        self.addresses.reload()?;
        self.pod_cidrs.reload()?;
        self.ports.reload()
    }

    /// Refusals whose event found the ring full.
    pub fn events_lost(&self) -> u64 {
        self.events_lost.get(&0, 0).map_or(0, |values| values.iter().sum())
    }
}

/// Opens a hash map for single system calls. If the earlier agent is gone, takes out what it left
/// in the map: its half-made connections were reset with it, and a stale leg would name a wrong
/// client.
pub(super) fn emptied<K: Pod, V: Pod>(
    name: &'static str,
    ebpf: &mut Ebpf,
    before: Before,
) -> Result<OwnedFd, KernelError> {
    let map = ebpf.take_map(name).ok_or_else(|| KernelError::Missing(name.to_owned()))?;
    let maps::Map::HashMap(data) = map else {
        return Err(KernelError::Missing(name.to_owned()));
    };
    let failed = |source| map_error(name, source);
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| failed(MapError::IoError(e)))?;
    if before == Before::Lives {
        return Ok(fd);
    }
    let mut map = maps::HashMap::<_, K, V>::try_from(maps::Map::HashMap(data)).map_err(failed)?;
    let left: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in left {
        drop(map.remove(&key)); // a live connection may have taken it meanwhile
    }
    Ok(fd)
}

/// A hash map whose content the agent alone decides.
pub struct Table<K, V> {
    name: &'static str,
    inner: Mutex<Mirrored<K, V>>,
}

struct Mirrored<K, V> {
    map: maps::HashMap<MapData, K, V>,
    /// What the kernel holds, so that a sync reads nothing.
    content: HashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Table<K, V> {
    fn open(name: &'static str, ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf.take_map(name).ok_or_else(|| KernelError::Missing(name.to_owned()))?;
        let map =
            maps::HashMap::<_, K, V>::try_from(map).map_err(|source| map_error(name, source))?;
        let content =
            map.iter().collect::<Result<_, _>>().map_err(|source| map_error(name, source))?;
        Ok(Self { name, inner: Mutex::new(Mirrored { map, content }) })
    }

    /// Writes one entry, if it differs.
    ///
    /// # Errors
    /// The map is full, or the kernel refused.
    pub fn put(&self, key: K, value: V) -> Result<(), KernelError> {
        let mut inner = self.inner.lock();
        inner.put(key, value).map(drop).map_err(|source| map_error(self.name, source))
    }

    /// Removes one entry, if it is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove(&self, key: &K) -> Result<(), KernelError> {
        let mut inner = self.inner.lock();
        inner.remove(key).map(drop).map_err(|source| map_error(self.name, source))
    }

    /// Makes the map hold exactly this: first what is new or changed, then what must go.
    ///
    /// Returns how many entries were written or removed.
    ///
    /// # Errors
    /// The first entry that could not be written or removed; all others have been.
    pub fn sync(&self, wanted: &HashMap<K, V>) -> Result<usize, KernelError> {
        let mut inner = self.inner.lock();
        let gone: Vec<K> =
            inner.content.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        let wanted = wanted.iter().map(|(key, value)| (*key, *value));
        inner.change(wanted, gone).map_err(|source| map_error(self.name, source))
    }

    /// Makes these entries what is wanted of them (`None`: not there), and leaves all others as
    /// they are: first what is new or changed, then what must go. Returns how many were written or
    /// removed.
    ///
    /// # Errors
    /// The first entry that could not be written or removed; all others have been. Only a sync then
    /// makes it right.
    pub fn apply(&self, wanted: &HashMap<K, Option<V>>) -> Result<usize, KernelError> {
        let mut inner = self.inner.lock();
        let gone = wanted.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key);
        let wanted = wanted.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
        inner.change(wanted, gone).map_err(|source| map_error(self.name, source))
    }

    /// Removes entries that are not as wanted: where an update failed, the entry still says what
    /// was true before.
    ///
    /// # Errors
    /// The first entry that could not be removed; all others have been.
    pub fn drop_stale(&self, wanted: &HashMap<K, V>) -> Result<usize, KernelError> {
        let mut inner = self.inner.lock();
        let stale = stale(&inner.content, wanted);
        let nothing = std::iter::empty();
        inner.change(nothing, stale).map_err(|source| map_error(self.name, source))
    }

    /// How many entries there are.
    pub fn used(&self) -> usize {
        self.inner.lock().content.len()
    }

    /// How many there would be after [`Self::apply`].
    pub fn used_after(&self, wanted: &HashMap<K, Option<V>>) -> usize {
        let inner = self.inner.lock();
        let count = |is: fn(bool, bool) -> bool| {
            let here = wanted
                .iter()
                .map(|(key, value)| is(inner.content.contains_key(key), value.is_some()));
            here.filter(|it| *it).count()
        };
        let (new, gone) = (count(|was, will| !was && will), count(|was, will| was && !will));
        inner.content.len().saturating_add(new).saturating_sub(gone)
    }

    /// One entry.
    pub fn get(&self, key: &K) -> Option<V> {
        self.inner.lock().content.get(key).copied()
    }

    /// Whether there is an entry.
    pub fn contains(&self, key: &K) -> bool {
        self.inner.lock().content.contains_key(key)
    }

    /// Reads what the kernel holds again: another agent may have written.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn reload(&self) -> Result<(), KernelError> {
        let mut inner = self.inner.lock();
        let content = inner.map.iter().collect::<Result<_, _>>();
        inner.content = content.map_err(|source| map_error(self.name, source))?;
        Ok(())
    }

    /// What the kernel holds.
    pub fn content(&self) -> HashMap<K, V> {
        self.inner.lock().content.clone()
    }
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirrored<K, V> {
    /// One refused entry does not keep the others from being written or removed. A full map gets
    /// room by what goes, and what found none is tried once more then.
    fn change(
        &mut self,
        wanted: impl Iterator<Item = (K, V)>,
        gone: impl IntoIterator<Item = K>,
    ) -> Result<usize, MapError> {
        let (mut written, mut refused, mut first) = (0, Vec::new(), None);
        for (key, value) in wanted {
            match self.put(key, value) {
                Ok(new) => written += usize::from(new),
                Err(_full) => refused.push((key, value)),
            }
        }
        for key in gone {
            match self.remove(&key) {
                Ok(was_there) => written += usize::from(was_there),
                Err(error) => first = first.or(Some(error)),
            }
        }
        for (key, value) in refused {
            match self.put(key, value) {
                Ok(new) => written += usize::from(new),
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(written), Err)
    }

    /// Whether it had to be written.
    fn put(&mut self, key: K, value: V) -> Result<bool, MapError> {
        if self.content.get(&key) == Some(&value) {
            return Ok(false);
        }
        self.map.insert(key, value, 0)?;
        self.content.insert(key, value);
        Ok(true)
    }

    /// Whether it had to be removed.
    fn remove(&mut self, key: &K) -> Result<bool, MapError> {
        if !self.content.contains_key(key) {
            return Ok(false);
        }
        match self.map.remove(key) {
            Err(MapError::KeyNotFound) => {}
            other => other?,
        }
        self.content.remove(key);
        Ok(true)
    }
}

/// The keys of entries that should not be there, or should have another value.
fn stale<K: Copy + Eq + Hash, V: PartialEq>(
    content: &HashMap<K, V>,
    wanted: &HashMap<K, V>,
) -> Vec<K> {
    let is_stale = |(key, value): &(&K, &V)| wanted.get(*key) != Some(*value);
    content.iter().filter(is_stale).map(|(key, _)| *key).collect()
}

/// `LISTENERS`: an entry vanishes by itself when its socket closes.
pub struct ListenerTable {
    map: Mutex<SockHash<MapData, ListenerKey>>,
}

impl ListenerTable {
    /// Makes a listening socket the target; an earlier one is replaced at once, without a gap.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn put(&self, key: ListenerKey, socket: &impl AsRawFd) -> Result<(), KernelError> {
        let mut map = self.map.lock();
        map.insert(key, socket.as_raw_fd(), 0).map_err(|source| map_error("LISTENERS", source))
    }

    /// Removes an entry. One that is not there counts as removed.
    pub fn remove(&self, key: &ListenerKey) {
        let mut map = self.map.lock();
        drop(map.remove(key)); // it goes with its socket at the latest
    }
}

pub(super) fn map_error(map: &'static str, source: MapError) -> KernelError {
    KernelError::Map { map, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_updated_is_stale_and_what_could_not_be_added_is_not() {
        let content = HashMap::from([("right", 1), ("changed", 1), ("gone", 1)]);
        let wanted = HashMap::from([("right", 1), ("changed", 2), ("new", 1)]);
        let mut stale = stale(&content, &wanted);
        stale.sort_unstable();
        assert_eq!(stale, ["changed", "gone"]);
    }
}
