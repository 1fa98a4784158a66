//! The kernel's contexts, read and written in one place, which knows the byte order of each field.
//!
//! Every access is volatile, so that LLVM neither merges nor narrows it. The verifier allows each
//! field one width only (since the fix for CVE-2025-38591 also where it was lenient before).

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops};
use mesh_common::addr::{Addr, AddrPort};

/// `AF_INET`.
pub(crate) const AF_INET: u32 = 2;
/// `AF_INET6`.
pub(crate) const AF_INET6: u32 = 10;
/// The size of a socket option that is a number.
pub(crate) const OPTION_BYTES: i32 = 4;
/// `SOL_SOCKET`.
pub(crate) const SOL_SOCKET: i32 = 1;
/// `IPPROTO_TCP`.
pub(crate) const TCP: u32 = 6;
/// `IPPROTO_MPTCP`.
pub(crate) const MPTCP: u32 = 262;

macro_rules! read {
    ($ptr:expr, $($field:tt)+) => {
        // SAFETY: the context pointer is valid for the program's run, and the verifier allows the
        // field here.
        unsafe { core::ptr::read_volatile(&raw const (*$ptr).$($field)+) }
    };
}

macro_rules! read4 {
    ($ptr:expr, $field:ident) => {
        Addr([
            read!($ptr, $field[0]),
            read!($ptr, $field[1]),
            read!($ptr, $field[2]),
            read!($ptr, $field[3]),
        ])
    };
}

/// The address of a context that serves both families. All words are read, for either family.
/// Behind a branch, LLVM merges the loads into one with a computed offset, and the verifier refuses
/// that ("dereference of modified ctx ptr", 6.18).
macro_rules! either_family {
    ($ptr:expr, $v4:ident, $v6:ident) => {{
        let (v4, v6) = (Addr::from_v4_word(read!($ptr, $v4)), read4!($ptr, $v6));
        if read!($ptr, family) == AF_INET { v4 } else { v6 }
    }};
}

macro_rules! write {
    ($ptr:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as in `read!`; the field is writable in this hook.
        unsafe { core::ptr::write_volatile(&raw mut (*$ptr).$($field)+, $value) }
    };
}

/// `bpf_sock_addr`: the address that a connect names or a getpeername is about to return.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr(pub(crate) *mut bpf_sock_addr);

impl SockAddr {
    /// The socket, or null.
    #[inline(always)]
    pub(crate) fn sk(self) -> *mut bpf_sock {
        read!(self.0, __bindgen_anon_1.sk)
    }

    /// Whether the socket is a TCP one (MPTCP included).
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        let protocol = read!(self.0, protocol);
        protocol == TCP || protocol == MPTCP
    }

    /// Whether the socket is an MPTCP one as the application has it, not the kernel's subflow below
    /// it.
    #[inline(always)]
    pub(crate) fn is_mptcp(self) -> bool {
        read!(self.0, protocol) == MPTCP
    }

    /// The address and port of the context, for a hook of this family.
    #[inline(always)]
    pub(crate) fn endpoint<const FAMILY: u32>(self) -> AddrPort {
        let port = u16::from_be(read!(self.0, user_port) as u16);
        let addr = if FAMILY == AF_INET {
            Addr::from_v4_word(read!(self.0, user_ip4))
        } else {
            read4!(self.0, user_ip6)
        };
        AddrPort::new(addr, port)
    }

    /// Rewrites the address and port. An IPv4 hook takes an IPv4 address only.
    #[inline(always)]
    pub(crate) fn set_endpoint<const FAMILY: u32>(self, addr: &Addr, port: u16) {
        if FAMILY == AF_INET {
            write!(self.0, addr.v4_word(), user_ip4);
        } else {
            write!(self.0, addr.0[0], user_ip6[0]);
            write!(self.0, addr.0[1], user_ip6[1]);
            write!(self.0, addr.0[2], user_ip6[2]);
            write!(self.0, addr.0[3], user_ip6[3]);
        }
        write!(self.0, u32::from(port.to_be()), user_port);
    }
}

/// The source address and port a socket is bound to, for a socket of this family.
#[inline(always)]
pub(crate) fn bound_source<const FAMILY: u32>(sk: *mut bpf_sock) -> AddrPort {
    let addr = if FAMILY == AF_INET {
        Addr::from_v4_word(read!(sk, src_ip4))
    } else {
        read4!(sk, src_ip6)
    };
    // src_port is in host order (include/uapi/linux/bpf.h, struct bpf_sock).
    AddrPort::new(addr, read!(sk, src_port) as u16)
}

/// `bpf_sock_ops`.
#[derive(Clone, Copy)]
pub(crate) struct SockOps(pub(crate) *mut bpf_sock_ops);

impl SockOps {
    /// Which callback this is.
    #[inline(always)]
    pub(crate) fn op(self) -> u32 {
        read!(self.0, op)
    }

    /// The socket, or null.
    #[inline(always)]
    pub(crate) fn sk(self) -> *mut bpf_sock {
        read!(self.0, __bindgen_anon_2.sk)
    }

    /// The callbacks that this or another program has asked for.
    #[inline(always)]
    pub(crate) fn cb_flags(self) -> u32 {
        read!(self.0, bpf_sock_ops_cb_flags)
    }

    /// Whether the socket is an IPv4 one.
    #[inline(always)]
    pub(crate) fn is_v4(self) -> bool {
        read!(self.0, family) == AF_INET
    }

    /// The second argument of the callback: the new state, in `STATE_CB`.
    #[inline(always)]
    pub(crate) fn second_arg(self) -> u32 {
        read!(self.0, __bindgen_anon_1.args[1])
    }

    /// The socket's own address and port.
    #[inline(always)]
    pub(crate) fn local(self) -> AddrPort {
        let addr = either_family!(self.0, local_ip4, local_ip6);
        AddrPort::new(addr, read!(self.0, local_port) as u16) // host order
    }

    /// The address and port of its peer.
    #[inline(always)]
    pub(crate) fn remote(self) -> AddrPort {
        let addr = either_family!(self.0, remote_ip4, remote_ip6);
        // Network order, 32 bits wide.
        AddrPort::new(addr, u32::from_be(read!(self.0, remote_port)) as u16)
    }
}

/// `bpf_sk_lookup`.
#[derive(Clone, Copy)]
pub(crate) struct SkLookup(pub(crate) *mut bpf_sk_lookup);

impl SkLookup {
    /// Whether the packet is TCP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        read!(self.0, protocol) == TCP
    }

    /// The address and port that the packet is for.
    #[inline(always)]
    pub(crate) fn local(self) -> AddrPort {
        let addr = either_family!(self.0, local_ip4, local_ip6);
        AddrPort::new(addr, read!(self.0, local_port) as u16) // host order
    }

    /// The address and port that it comes from.
    #[inline(always)]
    pub(crate) fn remote(self) -> AddrPort {
        let addr = either_family!(self.0, remote_ip4, remote_ip6);
        AddrPort::new(addr, u16::from_be(read!(self.0, remote_port))) // network order
    }
}
