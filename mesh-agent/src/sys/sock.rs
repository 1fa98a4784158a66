//! Socket options that neither nix nor socket2 knows.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

/// `SO_NETNS_COOKIE` of a socket: the number by which eBPF programs know its network namespace. Kernel 5.14.
///
/// # Errors
/// `ENOPROTOOPT` on older kernels.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are valid for writes and `len` holds the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// As [`netns_cookie`], or no socket could be made.
pub(crate) fn own_netns_cookie() -> io::Result<u64> {
    netns_cookie(socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?)
}
