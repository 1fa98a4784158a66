//! Socket options that neither nix nor socket2 knows.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    time::Duration,
};

/// `SO_NETNS_COOKIE` of a socket: the number by which eBPF programs know its network namespace.
/// Kernel 5.14.
///
/// # Errors
/// `ENOPROTOOPT` on older kernels.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, 0)
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// As [`netns_cookie`], or no socket could be made.
pub(crate) fn own_netns_cookie() -> io::Result<u64> {
    netns_cookie(socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?)
}

/// The kernel memory that a socket takes, in bytes (`SO_MEMINFO`, Linux 4.12): for what it has
/// received and not yet given out, and for what is not yet sent or not yet acknowledged.
///
/// # Errors
/// What the kernel said.
pub(crate) fn memory(socket: impl AsFd) -> io::Result<usize> {
    // linux/sock_diag.h: SK_MEMINFO_RMEM_ALLOC is the first, SK_MEMINFO_WMEM_QUEUED the sixth of
    // nine.
    let [received, _, _, _, _, queued, ..] =
        option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, [0_u32; 9])?;
    Ok(received as usize + queued as usize)
}

/// What TCP knows of a connection's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherEnd {
    /// It has closed its direction, or reset the connection.
    pub(crate) has_closed: bool,
    /// It has reset the connection, or the kernel has given up on it.
    pub(crate) has_reset: bool,
    /// Something was sent more than once, and it has not acknowledged it. Or it does not answer to
    /// probes.
    pub(crate) owes_acknowledgement: bool,
    /// How long ago its last acknowledgement came.
    pub(crate) acknowledged: Duration,
}

/// Probes in a row without an answer after which the peer counts as silent.
const PROBES: u8 = 3;

/// States of `include/net/tcp_states.h`.
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;

/// What TCP knows of a connection (`TCP_INFO`, tcp(7)).
///
/// # Errors
/// What the kernel said.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: integers only.
    let nothing: libc::tcp_info = unsafe { std::mem::zeroed() };
    option(socket, libc::SOL_TCP, libc::TCP_INFO, nothing)
}

/// Asks for a connection's other end.
///
/// # Errors
/// As [`tcp_info`].
pub(crate) fn other_end(socket: impl AsFd) -> io::Result<OtherEnd> {
    let info = tcp_info(socket)?;
    let has_reset = info.tcpi_state == TCP_CLOSE;
    Ok(OtherEnd {
        has_closed: has_reset || info.tcpi_state == TCP_CLOSE_WAIT,
        has_reset,
        owes_acknowledgement: (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0)
            || info.tcpi_probes >= PROBES,
        acknowledged: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

/// Lets the kernel choose the size of a socket's buffers again, after it was set (`SO_BUF_LOCK`,
/// Linux 5.14).
///
/// # Errors
/// What the kernel said.
pub(crate) fn let_buffers_grow(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK, 0)
}

/// Has an eBPF program look at each packet before a socket gets it (`SO_ATTACH_BPF`, socket(7)). It
/// takes the place of one that was attached before.
///
/// # Errors
/// What the kernel said.
pub(crate) fn attach_filter(socket: impl AsFd, program: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, program.as_raw_fd())
}

/// Reads an option of a socket. What the kernel does not write of it stays as `value` has it. `T`
/// consists of integers.
fn option<T: Copy>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `value` and `len` are valid for writes and `len` holds the size of `value`.
    let result =
        unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option that is a number.
fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let (socket, len) = (socket.as_fd().as_raw_fd(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `value` is valid for reads, and its size is given.
    let result = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
