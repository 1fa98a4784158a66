//! The maps, but for those of one room alone (`legs.rs`, `log.rs`). The agent finds them by their
//! names. ARCHITECTURE.md, "Every map", says what writes and reads each of them.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_AVAIL_DATA, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{
        Array, HashMap, LpmTrie, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, SockHash,
        lpm_trie::Key,
    },
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_ringbuf_query, bpf_sk_storage_get},
    macros::btf_map,
    programs::SockAddrContext,
};
use mesh_common::{
    addr::{Addr, AddrPort},
    decide,
    maps::{
        ALL_PODS, Answered, DestinationKey, DialKey, DialOptions, EnrolledPod, FlowKey,
        ListenerKey, LocalEntry, Named, Pending, QuestionEvent, RefusalEvent, Share, SteeredPorts,
        VerdictCounts, limits,
    },
    ports,
    verdict::{VERDICT_SLOTS, Verdict},
};

use crate::log;

pub(crate) const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Cgroup ids of the agent, whose dials pass.
#[btf_map]
pub(crate) static AGENT_CGROUPS: HashMap<u64, u32, 4> = HashMap::new();

/// What the agent tells the programs about the node, by `NODE_*` index.
#[btf_map]
static NODE: Array<u64, { limits::NODE }> = Array::new();

/// Cgroup ids of the classified pods: the agent knows whether they are in the mesh.
#[btf_map]
pub(crate) static CLASSIFIED: HashMap<u64, u32, { limits::LOCAL_PODS * 2 }> = HashMap::new();

/// Namespace cookie → the enrolled pod. The connect programs decide about its dials.
#[btf_map]
pub(crate) static ENROLLED: HashMap<u64, EnrolledPod, { limits::LOCAL_PODS }> = HashMap::new();

/// Namespace cookie → the held pod, whose dials wait until it is enrolled.
#[btf_map]
pub(crate) static HELD: HashMap<u64, EnrolledPod, { limits::LOCAL_PODS }> = HashMap::new();

/// When a socket of a held pod has dialled, `CLOCK_BOOTTIME` in nanoseconds.
#[btf_map]
pub(crate) static HELD_DIALS: SkStorage<u64> = SkStorage::new();

/// Pod address → the pod of this node. The `sk_lookup` programs decide about its arrivals.
#[btf_map]
pub(crate) static LOCAL: HashMap<Addr, LocalEntry, { limits::LOCAL_PODS * 2 }> = HashMap::new();

/// Address → `ADDRESS_*` bits: what is known of the cluster's pods.
#[btf_map]
pub(crate) static ADDRESSES: HashMap<Addr, u32, { limits::ADDRESSES }, NO_PREALLOC> =
    HashMap::new();

/// Ranges of pod addresses of the cluster's nodes, IPv4 as IPv4-mapped; `::/0` where none is known.
#[btf_map]
static POD_CIDRS: LpmTrie<Addr, u32, { limits::POD_CIDRS }> = LpmTrie::new();

/// Address and port → `PORT_*` bits: services of the mesh, excluded ports.
#[btf_map]
pub(crate) static PORTS: HashMap<AddrPort, u32, { limits::PORTS }, NO_PREALLOC> = HashMap::new();

/// Cookie of the network namespace that a copy of the `sk_lookup` programs is for. Each copy has
/// its own map in the place of this one. The copies that are loaded only to be looked at have 0,
/// which is no namespace.
#[btf_map]
static HERE: Array<u64, 1> = Array::new();

/// Namespace, pod address and direction → the agent's listening socket inside that namespace.
#[btf_map]
pub(crate) static LISTENERS: SockHash<ListenerKey, { limits::LOCAL_PODS * 6 }> = SockHash::new();

/// Namespace → the ports at which connections have been given to the agent. The agent makes the
/// entry.
#[btf_map]
static STEERED: HashMap<u64, SteeredPorts, { limits::LOCAL_PODS }, NO_PREALLOC> = HashMap::new();

/// The peer that `getpeername` shows for a socket: the original destination of a redirected socket,
/// the real client of an accepted one. It is stored in the socket itself, because an LRU map
/// forgets: after 80,000 other connects, one forgot a live socket.
#[btf_map]
pub(crate) static SHOWN_PEER: SkStorage<Named> = SkStorage::new();

/// Redirected connection, as the dialling socket sees it → original destination. The agent looks
/// the entry up and deletes it.
#[btf_map]
static PENDING: HashMap<FlowKey, Pending, { limits::PENDING }, NO_PREALLOC> = HashMap::new();

/// How much each enrolled namespace has of what all namespaces share. The agent makes the entry.
/// The entry of [`ALL_PODS`] is the sum.
#[btf_map]
static SHARES: HashMap<u64, Share, { limits::LOCAL_PODS + 1 }> = HashMap::new();

/// Destination that a pod has reached → until when it is taken for one that answers,
/// `CLOCK_BOOTTIME` in nanoseconds. The agent writes it.
#[btf_map]
static REACHED: HashMap<DestinationKey, u64, { limits::REACHED }, NO_PREALLOC> = HashMap::new();

/// Dial that waits, as the dialling socket sees it → the agent's answer.
#[btf_map]
static ANSWERED: HashMap<FlowKey, Answered, { limits::PENDING }, NO_PREALLOC> = HashMap::new();

/// Dials that wait, for the agent to reach what they dial.
#[btf_map]
static QUESTIONS: RingBuf<QuestionEvent, { limits::QUESTIONS_BYTES }> = RingBuf::new();

/// What `sk_lookup` has just found out about a packet, for the filter of the socket that the packet
/// is then given to. The kernel runs one right after the other, on the same CPU.
#[btf_map]
static ASKED: PerCpuArray<Asked, 1> = PerCpuArray::new();

/// Value of [`ASKED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    /// Cookie of the pod's namespace.
    pub(crate) netns: u64,
    /// [`Pending::id`] of the dial.
    pub(crate) id: u64,
    /// 1 if the agent is to be asked, 0 if it has been a moment ago.
    pub(crate) is_due: u64,
}

/// Marks sockets of the kubelet.
#[btf_map]
pub(crate) static KUBELET_SOCKETS: SkStorage<u32> = SkStorage::new();

/// What the kubelet dials → when, `CLOCK_BOOTTIME` in nanoseconds. Not an LRU map, since that
/// forgets. While the map is full, strict pods refuse the kubelet's further connections.
#[btf_map]
pub(crate) static KUBELET_DIALS: HashMap<DialKey, u64, { limits::KUBELET_DIALS }, NO_PREALLOC> =
    HashMap::new();

/// Every verdict of this node, by number.
#[btf_map]
static VERDICTS: PerCpuArray<u64, { VERDICT_SLOTS }> = PerCpuArray::new();

/// The same per enrolled namespace. The agent makes the entry.
#[btf_map]
static POD_VERDICTS: PerCpuHashMap<u64, VerdictCounts, { limits::LOCAL_PODS }> =
    PerCpuHashMap::new();

/// Refusals, for the agent to record.
#[btf_map]
static EVENTS: RingBuf<RefusalEvent, { limits::EVENTS_BYTES }> = RingBuf::new();

/// Refusals that were not reported, because the ring or the pod's share of it was full (index 0).
#[btf_map]
static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// What the agent has said about the node; 0 if it has said nothing.
#[inline(always)]
pub(crate) fn node(index: u32) -> u64 {
    match NODE.get_ptr(index) {
        // SAFETY: a pointer into the array. The agent may write meanwhile, so the word is read once
        // and whole.
        Some(slot) => unsafe { slot.read_volatile() },
        None => 0,
    }
}

/// Cookie of the namespace that the running `sk_lookup` program is for.
#[inline(always)]
pub(crate) fn here() -> u64 {
    match HERE.get_ptr(0) {
        // SAFETY: a pointer into the array. The agent does not write it any more once programs use
        // it.
        Some(slot) => unsafe { slot.read_volatile() },
        None => 0,
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
#[inline(always)]
pub(crate) fn boot_ns() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether an address is in one of the nodes' ranges of pod addresses; always true if no range is
/// known.
#[inline(always)]
pub(crate) fn is_in_pod_cidr(addr: &Addr) -> bool {
    POD_CIDRS.get(&Key::new(Addr::BITS, *addr)).is_some()
}

/// Counts a verdict for the node, and for the pod if `netns` is enrolled.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, netns: u64) {
    count_number(verdict as u32, netns);
}

/// The same for a verdict's number.
#[inline(always)]
pub(crate) fn count_number(number: u32, netns: u64) {
    if let Some(slot) = VERDICTS.get_ptr_mut(number) {
        // SAFETY: a pointer into this CPU's slot, valid for the program's run.
        unsafe { *slot += 1 };
    }
    if netns == 0 {
        return;
    }
    if let Some(counts) = POD_VERDICTS.get_ptr_mut(&netns) {
        // SAFETY: as above; `number` is below the array's length for every verdict (asserted in
        // mesh-common).
        unsafe {
            let slot = counts.cast::<u64>().add(number as usize & (VERDICT_SLOTS - 1));
            *slot += 1;
        }
    }
}

/// Notes that a connection to a port of a pod is given to the agent. A bit that is lost between
/// CPUs is set by the next connection.
#[inline(always)]
pub(crate) fn note_steered(netns: u64, port: u16) {
    if let Some(steered) = STEERED.get_ptr_mut(&netns) {
        let (word, bit) = SteeredPorts::place(port);
        // SAFETY: a pointer into the map, valid for the program's run; the word is one of it.
        unsafe {
            let word = steered.cast::<u64>().add(word);
            if *word & bit == 0 {
                *word |= bit;
            }
        }
    }
}

/// Whether the agent may have sockets at a port of an enrolled namespace: it dials from the
/// reserved ports, and accepts where connections were steered to it.
#[inline(always)]
pub(crate) fn has_agents_sockets(netns: u64, port: u16) -> bool {
    let Some(steered) = STEERED.get_ptr(&netns) else { return false };
    let (word, bit) = SteeredPorts::place(port);
    // SAFETY: as above.
    port >= ports::RESERVED_FIRST || unsafe { *steered.cast::<u64>().add(word) } & bit != 0
}

/// The peer to show for a socket, if the socket is redirected or the application's end of a leg.
#[inline(always)]
pub(crate) fn shown(sk: *mut bpf_sock) -> Option<Named> {
    // SAFETY: storage of a socket that the caller holds, checked for null.
    stored(sk, core::ptr::null_mut(), 0).map(|shown| unsafe { *shown })
}

/// Sets the peer to show for a socket, unless it has one already.
#[inline(always)]
pub(crate) fn show(sk: *mut bpf_sock, mut named: Named) {
    let _: Option<*mut Named> = stored(sk, &raw mut named, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
}

/// A socket's storage. It calls `bpf_sk_storage_get` itself, because aya's wrapper takes a
/// `SockAddrContext` only.
#[inline(always)]
fn stored(sk: *mut bpf_sock, value: *mut Named, flags: u64) -> Option<*mut Named> {
    if sk.is_null() {
        return None;
    }
    let map = (&raw const SHOWN_PEER).cast_mut().cast();
    // SAFETY: the map is a socket storage of `Named`, the socket was checked for null.
    let slot = unsafe { bpf_sk_storage_get(map, sk.cast(), value.cast(), flags) }.cast::<Named>();
    (!slot.is_null()).then_some(slot)
}

/// Notes when a socket of a held pod dials. `false` if there is no memory.
#[inline(always)]
pub(crate) fn note_held_dial(context: &SockAddrContext) -> bool {
    let mut now = boot_ns();
    // SAFETY: the caller has checked the context's socket for null; the storage belongs to it.
    let slot = unsafe { HELD_DIALS.get_or_insert_ptr_mut(context, Some(&mut now)) };
    if slot.is_null() {
        return false;
    }
    // SAFETY: just checked. The socket may have dialled before.
    unsafe { *slot = now };
    true
}

/// Whether a socket that has dialled while its pod was held still waits for the pod to be enrolled.
/// `None` for any other socket.
#[inline(always)]
pub(crate) fn held_dial_waits(sk: *mut bpf_sock) -> Option<bool> {
    if sk.is_null() {
        return None;
    }
    let map = (&raw const HELD_DIALS).cast_mut().cast();
    // SAFETY: the map is a socket storage of `u64`, the socket was checked for null, and nothing is
    // made without the flag.
    let since = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) };
    if since.is_null() {
        return None;
    }
    // SAFETY: just checked; the storage belongs to the socket.
    let since = unsafe { since.cast::<u64>().read_volatile() };
    Some(boot_ns().saturating_sub(since) < decide::HELD_DIAL_NS)
}

/// Whether a socket is marked as the kubelet's.
#[inline(always)]
pub(crate) fn is_kubelet_socket(sk: *mut bpf_sock) -> bool {
    if sk.is_null() {
        return false;
    }
    let map = (&raw const KUBELET_SOCKETS).cast_mut().cast();
    // SAFETY: the map is a socket storage, the socket was checked for null, and nothing is made
    // without the flag.
    !unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) }.is_null()
}

/// Whether a packet belongs to a connection that this node's kubelet has dialled lately.
#[inline(always)]
pub(crate) fn is_kubelets(from: AddrPort, to: AddrPort) -> bool {
    // SAFETY: the value is copied at once.
    let noted = unsafe { KUBELET_DIALS.get(&DialKey { from, to }) }.copied();
    noted.is_some_and(|noted| decide::is_fresh(noted, boot_ns()))
}

/// Adds to a word in which programs on several CPUs count, in one instruction. BPF has that
/// instruction since its beginnings, but only without a result. So `core` has no atomic addition
/// for this target.
///
/// # Safety
/// `word` is a word of a map's value.
#[inline(always)]
unsafe fn add(word: *mut u64, number: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise; nothing else is read or written.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) number);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _: (*mut u64, u64) = (word, number);
}

/// Whether a pod may have one more dial. True without an entry in [`SHARES`]: a pod that the agent
/// has not given one yet has no listener either, and `sk_lookup` refuses it.
#[inline(always)]
pub(crate) fn has_room(netns: u64) -> bool {
    match (SHARES.get_ptr(&netns), SHARES.get_ptr(&ALL_PODS)) {
        (Some(own), Some(all)) => have_room(own, all),
        _ => true,
    }
}

/// Both are values of [`SHARES`].
#[inline(always)]
fn have_room(own: *const Share, all: *const Share) -> bool {
    // SAFETY: pointers into the map, valid for the program's run; each word is read whole.
    let (own, all) = unsafe {
        ((&raw const (*own).dials).read_volatile(), (&raw const (*all).dials).read_volatile())
    };
    decide::has_room(own, all)
}

/// Notes what a redirected socket dials, for the agent to fetch. `false` if there is no room. A pod
/// that was just allowed to dial may find none: many sockets can ask at once, and a dial can begin
/// long after `connect` (`TCP_FASTOPEN_CONNECT`).
#[inline(always)]
pub(crate) fn note_dial(flow: &FlowKey, named: Named, options: DialOptions) -> bool {
    forget_dial(flow); // an earlier dial, if its end was not reported
    let Some(share_since_ns) = take(flow.netns) else {
        return false;
    };
    let (id, to) = (boot_ns(), DestinationKey::new(flow.netns, named.endpoint));
    // SAFETY: the value is copied at once.
    let answers_until_ns = unsafe { REACHED.get(&to) }.copied().unwrap_or(0);
    let waits = u32::from(decide::waits(answers_until_ns, id));
    let pending = Pending { named, share_since_ns, id, asked_ns: 0, waits, options };
    let is_noted = PENDING.insert(flow, &pending, 0).is_ok();
    if !is_noted {
        log::dial_not_noted(flow.netns);
        give_back(flow.netns, share_since_ns);
    }
    is_noted
}

/// Forgets a dial that the agent has not fetched. The agent may fetch it at the same time. The side
/// that takes the entry out gives its place back, and only that side.
#[inline(always)]
pub(crate) fn forget_dial(flow: &FlowKey) {
    // SAFETY: the value is copied at once.
    let Some(Pending { share_since_ns, .. }) = unsafe { PENDING.get(flow) }.copied() else {
        return;
    };
    if PENDING.remove(flow).is_ok() {
        give_back(flow.netns, share_since_ns);
    }
}

/// Whether a dial is noted.
#[inline(always)]
pub(crate) fn is_noted(flow: &FlowKey) -> bool {
    PENDING.get_ptr(flow).is_some()
}

/// What becomes of a redirected connection's packet.
pub(crate) enum Dialled {
    /// The agent accepts the connection.
    GoesOn,
    /// The agent is asked first.
    Waits,
    /// The agent has not reached the destination.
    Refused,
    /// No such dial is noted.
    Unknown,
}

/// Looks a dial up for which a packet has come, and notes for the filter that runs next whether the
/// agent is to be asked.
#[inline(always)]
pub(crate) fn dialled(flow: &FlowKey) -> Dialled {
    let Some(pending) = PENDING.get_ptr_mut(flow) else {
        return Dialled::Unknown;
    };
    // SAFETY: a pointer into the map, valid for the program's run. The words are written once, when
    // the entry is made.
    let (id, waits) = unsafe { ((*pending).id, (*pending).waits) };
    if waits == 0 {
        return Dialled::GoesOn;
    }
    // SAFETY: the value is copied at once.
    match unsafe { ANSWERED.get(flow) }.copied() {
        Some(answered) if answered.id == id => {
            return if answered.goes_on == 0 { Dialled::Refused } else { Dialled::GoesOn };
        }
        _ => {}
    }
    let now = boot_ns();
    // SAFETY: as above. A count that is lost between CPUs is one question more.
    let is_due = unsafe {
        let is_due = now.wrapping_sub((*pending).asked_ns) > limits::ASK_AGAIN_NS;
        if is_due {
            (*pending).asked_ns = now;
        }
        is_due
    };
    if let Some(asked) = ASKED.get_ptr_mut(0) {
        // SAFETY: a pointer into this CPU's slot, valid for the program's run.
        unsafe { *asked = Asked { netns: flow.netns, id, is_due: u64::from(is_due) } };
    }
    Dialled::Waits
}

/// What `sk_lookup` has noted for this packet's filter, if the agent is to be asked.
#[inline(always)]
pub(crate) fn take_asked() -> Option<Asked> {
    let slot = ASKED.get_ptr_mut(0)?;
    // SAFETY: a pointer into this CPU's slot, valid for the program's run.
    let asked = unsafe {
        let asked = *slot;
        (*slot).is_due = 0;
        asked
    };
    (asked.is_due != 0).then_some(asked)
}

/// Asks the agent, if the pod has not asked too often in this second. While the ring is half full,
/// only the first dials of each pod are asked about; the others' packets come again.
#[inline(always)]
pub(crate) fn ask(event: &QuestionEvent) {
    let Some(share) = SHARES.get_ptr_mut(&event.netns) else { return };
    // SAFETY: pointers into the map, valid for the program's run.
    let asked = unsafe {
        count_in(&raw mut (*share).questions_window, &raw mut (*share).questions, boot_ns())
    };
    let ring = (&raw const QUESTIONS).cast_mut().cast();
    if asked <= limits::REPORTS_WHEN_CROWDED
        || (asked <= limits::QUESTIONS_PER_SECOND && !is_crowded(ring, limits::QUESTIONS_BYTES))
    {
        let _: Result<(), i32> = QUESTIONS.output(event, 0);
    }
}

/// Counts in the present second. Counts that are lost between CPUs do not matter here.
///
/// # Safety
/// Both are words of a map's value.
#[inline(always)]
unsafe fn count_in(window: *mut u64, count: *mut u64, boot_ns: u64) -> u64 {
    let now = decide::report_window(boot_ns);
    // SAFETY: the caller's promise.
    unsafe {
        if *window != now {
            *window = now;
            *count = 0;
        }
        *count += 1;
        *count
    }
}

/// Whether a ring is half full.
#[inline(always)]
fn is_crowded(ring: *mut core::ffi::c_void, bytes: usize) -> bool {
    // SAFETY: the map is a ring buffer.
    let waiting = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
    waiting >= bytes as u64 / 2
}

/// Takes a place from a pod's share, for a dial. Returns the share's `since_ns`, which
/// [`give_back`] needs, or `None` if there is no room.
#[inline(always)]
fn take(netns: u64) -> Option<u64> {
    let (own, all) = (SHARES.get_ptr_mut(&netns)?, SHARES.get_ptr_mut(&ALL_PODS)?);
    if !have_room(own, all) {
        return None;
    }
    // SAFETY: pointers into the map, valid for the program's run.
    unsafe {
        add(&raw mut (*own).dials, 1);
        add(&raw mut (*all).dials, 1);
        Some((&raw const (*own).since_ns).read_volatile())
    }
}

/// Gives back a place that [`take`] took, unless the count has begun anew since.
#[inline(always)]
pub(crate) fn give_back(netns: u64, since_ns: u64) {
    // SAFETY: as in `take`.
    unsafe {
        if let Some(own) = SHARES.get_ptr_mut(&netns)
            && (&raw const (*own).since_ns).read_volatile() == since_ns
        {
            add(&raw mut (*own).dials, u64::MAX);
        }
        if let Some(all) = SHARES.get_ptr_mut(&ALL_PODS)
            && (&raw const (*all).since_ns).read_volatile() <= since_ns
        {
            add(&raw mut (*all).dials, u64::MAX);
        }
    }
}

/// Whether a refusal is reported: while the ring is half full, only the first ones of each pod in a
/// second.
#[inline(always)]
fn has_share_of_ring(netns: u64, boot_ns: u64) -> bool {
    let Some(share) = SHARES.get_ptr_mut(&netns).or_else(|| SHARES.get_ptr_mut(&ALL_PODS)) else {
        return true;
    };
    // SAFETY: pointers into the map, valid for the program's run.
    let reports = unsafe { count_in(&raw mut (*share).window, &raw mut (*share).reports, boot_ns) };
    let ring = (&raw const EVENTS).cast_mut().cast();
    !is_crowded(ring, limits::EVENTS_BYTES) || reports <= limits::REPORTS_WHEN_CROWDED
}

/// Reports a refusal to the agent. Counts the loss if the ring is full, or if the pod has its share
/// of it.
#[inline(always)]
pub(crate) fn report(verdict: Verdict, netns: u64, client: AddrPort, server: AddrPort) {
    let boot_ns = boot_ns();
    let event = RefusalEvent { boot_ns, netns, client, server, verdict: verdict as u32, zero: 0 };
    if (!has_share_of_ring(netns, boot_ns) || EVENTS.output(&event, 0).is_err())
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: a pointer into this CPU's slot, valid for the program's run.
        unsafe { *lost += 1 };
    }
}
