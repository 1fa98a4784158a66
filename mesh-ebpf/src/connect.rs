//! `cgroup/connect4` and `cgroup/connect6`, on the cgroup of the node's pods: they decide which
//! dials go to the agent.
//!
//! A redirected dial goes to the pod's own address and a magic port, or, from a bound source port,
//! to a free port from 64512 on. Only `sk_lookup` leads it to the agent's listener. The original
//! destination stays in the socket's own storage. These programs are attached to an ancestor of the
//! pods' cgroups. So they run before a socket load-balancer on the root, and see the service
//! address. Kernel 5.15.

use aya_ebpf::{
    Global,
    bindings::bpf_func_id::BPF_FUNC_set_retval,
    helpers::{bpf_get_current_cgroup_id, bpf_get_netns_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{
    addr::{Addr, AddrPort},
    decide,
    maps::{EnrolledPod, NODE_ADDRESSES_INCOMPLETE, Named},
    ports,
    verdict::{Action, Verdict},
};

use crate::{
    ctx::{self, AF_INET, AF_INET6, SockAddr},
    guard, log, maps, sockets,
};

const ALLOW: i32 = 1;
/// The caller gets EPERM, or the error that `bpf_set_retval` has set.
const DENY: i32 = 0;
/// `MAX_ERRNO` of include/linux/err.h, all bits set. Newer verifiers (seen in 7.3) require proof
/// that the argument of `bpf_set_retval` is no larger. Of a number from a map they know nothing.
const MAX_ERRNO: u32 = 4095;

/// Whether this kernel lets a connect program choose the caller's error (6.1). The agent sets it
/// before it loads the programs. Where it is 0, the verifier never sees the call.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u8> = Global::new(0);

#[cgroup_sock_addr(connect4)]
pub(crate) fn nm_connect4(context: SockAddrContext) -> i32 {
    connect::<AF_INET>(&context)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn nm_connect6(context: SockAddrContext) -> i32 {
    connect::<AF_INET6>(&context)
}

struct Dial<const FAMILY: u32> {
    context: SockAddr,
    netns: u64,
    to: AddrPort,
}

impl<const FAMILY: u32> decide::Dial for Dial<FAMILY> {
    #[inline(always)]
    fn by_agent(&self) -> bool {
        // SAFETY: no preconditions.
        let cgroup = unsafe { bpf_get_current_cgroup_id() };
        maps::AGENT_CGROUPS.get_ptr(&cgroup).is_some()
    }
    #[inline(always)]
    fn pod(&self) -> Option<EnrolledPod> {
        // SAFETY: the value is copied at once.
        unsafe { maps::ENROLLED.get(&self.netns) }.copied()
    }
    #[inline(always)]
    fn held(&self) -> Option<EnrolledPod> {
        // SAFETY: the value is copied at once.
        unsafe { maps::HELD.get(&self.netns) }.copied()
    }
    #[inline(always)]
    fn is_refused_as_unclassified(&self) -> bool {
        guard::is_refused_as_unclassified(self.netns) && !self.by_agent()
    }
    #[inline(always)]
    fn destination(&self) -> AddrPort {
        self.to
    }
    #[inline(always)]
    fn bound_source(&self) -> Addr {
        ctx::bound_source::<FAMILY>(self.context.sk()).addr
    }
    #[inline(always)]
    fn address_flags(&self, addr: &Addr) -> u32 {
        // SAFETY: the value is copied at once.
        unsafe { maps::ADDRESSES.get(addr) }.copied().unwrap_or(0)
    }
    #[inline(always)]
    fn may_be_missing(&self, addr: &Addr) -> bool {
        maps::node(NODE_ADDRESSES_INCOMPLETE) != 0 && maps::is_in_pod_cidr(addr)
    }
    #[inline(always)]
    fn port_flags(&self, endpoint: &AddrPort) -> u32 {
        // SAFETY: the value is copied at once.
        unsafe { maps::PORTS.get(endpoint) }.copied().unwrap_or(0)
    }
    #[inline(always)]
    fn has_room(&self) -> bool {
        maps::has_room(self.netns)
    }
}

#[inline(always)]
fn connect<const FAMILY: u32>(context: &SockAddrContext) -> i32 {
    let addr = SockAddr(context.sock_addr);
    let sk = addr.sk();
    if !addr.is_tcp() || sk.is_null() {
        return ALLOW;
    }
    // SAFETY: the context is the running program's own.
    let netns = unsafe { bpf_get_netns_cookie(context.sock_addr.cast()) };
    let view = Dial::<FAMILY> { context: addr, netns, to: addr.endpoint::<FAMILY>() };
    let (verdict, own) = decide::dial(&view);
    if verdict.action() == Action::Redirect {
        let number = verdict as u32;
        // Read anew, or the verifier would walk the rest once for each verdict.
        // SAFETY: a variable of this function.
        let number = unsafe { core::ptr::read_volatile(&raw const number) };
        let Some(port) = redirect_port(context, &view, &own) else {
            return refuse::<FAMILY>(Verdict::RefusedBoundPort, &view);
        };
        let mut named = Named { endpoint: view.to, verdict: number };
        // SAFETY: `sk` was checked for null; the storage belongs to the socket.
        let slot = unsafe { maps::SHOWN_PEER.get_or_insert_ptr_mut(context, Some(&mut named)) };
        if slot.is_null() {
            log::no_memory(netns);
            return refuse::<FAMILY>(Verdict::RefusedNoMemory, &view);
        }
        // SAFETY: just checked. A second connect of the socket finds the older value and overwrites
        // it.
        unsafe { *slot = named };
        addr.set_endpoint::<FAMILY>(&own, port);
        maps::count_number(number, netns);
        return ALLOW;
    }
    // An earlier connect may have redirected the socket; `getpeername` must not show what that one
    // stored.
    // SAFETY: `sk` was checked for null.
    let _: Result<(), i32> = unsafe { maps::SHOWN_PEER.delete(sk) };
    // The guard has let the dial pass because it is to wait. If the pod is not found as held any
    // more, only an enrolled pod's dial may go on.
    // SAFETY: as above.
    let was_held = unsafe { maps::HELD_DIALS.delete(sk) }.is_ok();
    if was_held && verdict == Verdict::NotEnrolled {
        return refuse::<FAMILY>(Verdict::RefusedHeld, &view);
    }
    if verdict.action() == Action::Refuse {
        return refuse::<FAMILY>(verdict, &view);
    }
    maps::count(verdict, if verdict == Verdict::NotEnrolled { 0 } else { netns });
    ALLOW
}

/// The port of the pod's own address to which a dial is redirected.
#[inline(always)]
fn redirect_port<const FAMILY: u32>(
    context: &SockAddrContext,
    view: &Dial<FAMILY>,
    own: &Addr,
) -> Option<u16> {
    match ctx::bound_source::<FAMILY>(view.context.sk()).port {
        // The kernel chooses the source port, so that the connection differs from all others.
        0 => Some(ports::magic_for(&view.to.addr, view.to.port)),
        source => sockets::free_port(context, own, source),
    }
}

#[inline(always)]
fn refuse<const FAMILY: u32>(verdict: Verdict, view: &Dial<FAMILY>) -> i32 {
    maps::count(verdict, view.netns);
    maps::report(verdict, view.netns, ctx::bound_source::<FAMILY>(view.context.sk()), view.to);
    set_errno(decide::errno(verdict));
    DENY
}

/// Sets the error of the refused caller, where the kernel allows that. Elsewhere the caller gets
/// EPERM.
#[inline(always)]
pub(crate) fn set_errno(errno: u32) {
    if SET_RETVAL.load() != 0 {
        // SAFETY: the helper of this number, called only where the kernel offers it. aya's wrapper
        // takes 32 bits, and LLVM does not extend their sign into the register: the verifier then
        // sees a large number.
        let set_retval: unsafe extern "C" fn(i64) -> i64 =
            unsafe { core::mem::transmute(BPF_FUNC_set_retval as usize) };
        // SAFETY: no preconditions.
        unsafe { set_retval(-i64::from(errno & MAX_ERRNO)) };
    }
}
