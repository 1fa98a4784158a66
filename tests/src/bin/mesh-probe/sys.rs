//! System calls that no crate offers.
#![expect(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::{
    io,
    mem::zeroed,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
};

use io_uring::{IoUring, opcode::Connect, types::Fd};
use nix::libc;
use socket2::{SockAddr, Socket};

/// Takes a socket's connection away, so that it can connect again (connect(2), `AF_UNSPEC`).
pub(crate) fn disconnect(socket: &Socket) -> io::Result<()> {
    // SAFETY: plain integers; all zeroes is AF_UNSPEC.
    let unspecified: libc::sockaddr = unsafe { zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives, and has that length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `TCP_DEFER_ACCEPT`: no connection is accepted before its first byte.
pub(crate) fn defer_accept(socket: &Socket, seconds: i32) -> io::Result<()> {
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value lives, and has that length.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const seconds).cast(), length)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `SO_PEERNAME`: what `getpeername` says, asked as an option.
pub(crate) fn peer_name(stream: &TcpStream) -> io::Result<SocketAddr> {
    // The kernel wants to be asked for no more than there is.
    let exactly = match stream.local_addr()? {
        SocketAddr::V4(_) => size_of::<libc::sockaddr_in>(),
        SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>(),
    };
    // SAFETY: the kernel writes at most `length` bytes of an address, and says how many.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            *length = exactly as libc::socklen_t;
            let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERNAME);
            let asked = libc::getsockopt(stream.as_raw_fd(), level, option, storage.cast(), length);
            if asked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    }?;
    address.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Connects through `io_uring`, which does not go through the system call `connect`.
pub(crate) fn ring_connect(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    let connect = Connect::new(Fd(socket.as_raw_fd()), to.as_ptr().cast(), to.len()).build();
    // SAFETY: socket and address outlive the operation, which is waited for below.
    unsafe { ring.submission().push(&connect) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or(io::ErrorKind::UnexpectedEof)?.result();
    if done == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-done)) }
}

/// Where a packet socket sends: an interface and an Ethernet address (packet(7)).
pub(crate) fn packet_address(interface: u32, ethernet: [u8; 6]) -> io::Result<SockAddr> {
    // SAFETY: a `sockaddr_ll` fits into the storage, and all of it is written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut to: libc::sockaddr_ll = zeroed();
            to.sll_family = libc::AF_PACKET as libc::sa_family_t;
            to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
            to.sll_ifindex = interface.cast_signed();
            to.sll_halen = 6;
            to.sll_addr[..6].copy_from_slice(&ethernet);
            storage.cast::<libc::sockaddr_ll>().write(to);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
