//! Questions to the kernel about a network namespace (`netlink(7)`), and the walk over its answers.
//!
//! The socket stays in the namespace in which it was made. It is made on a thread that enters
//! namespaces.

use std::{
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{NetlinkAddr, connect, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

/// `nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;
/// What the kernel writes at a time; it makes no larger parts for a reader of this size.
const PART_BYTES: usize = 32 * 1024;
/// The kernel's own address.
const KERNEL: u32 = 0;

/// A netlink socket. One question at a time.
#[derive(Debug)]
pub(super) struct Netlink(Socket);

struct Message<'a> {
    kind: libc::c_int,
    content: &'a [u8],
}

impl Netlink {
    /// Of the calling thread's namespace; `protocol` is one of `NETLINK_*`. A pod may send to such
    /// a socket of its namespace. Connected, it takes nothing but what the kernel sends.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let (netlink, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(protocol));
        let socket = Socket::new(netlink, Type::RAW.cloexec(), Some(protocol))?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(KERNEL, 0))?;
        Ok(Self(socket))
    }

    /// Asks. `flags` are some of `NLM_F_*`.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn ask(&self, kind: u16, flags: libc::c_int, content: &[u8]) -> io::Result<()> {
        let length = HEADER_BYTES + content.len();
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message
            .extend(u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default().to_ne_bytes());
        message.extend([0; 8]); // no sequence: one question at a time; the kernel knows the port
        message.extend(content);
        (&self.0).write_all(&message)
    }

    /// Hands over each part of the answer, up to its end. The kernel computes it while it is asked,
    /// and may take `patience` for all of it.
    ///
    /// # Errors
    /// What the kernel said; `TimedOut`. After an error nothing more may be asked: the rest of this
    /// answer would come first.
    pub(super) fn answers(
        &self,
        patience: Duration,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; PART_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
            let (length, from) = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer)?;
            if from.is_some_and(|from| from.pid() != KERNEL) {
                continue; // it was sent before the socket was connected
            }
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(message) = next_message(&mut rest) {
                match message.kind {
                    libc::NLMSG_DONE if message.content.is_empty() => return Ok(()),
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return acknowledged(message.content),
                    _ => each(message.content),
                }
            }
        }
    }
}

/// The next netlink message; `None` when there is no other, or it is cut.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let length = usize::try_from(word(rest, 0)?).ok()?;
    let kind = libc::c_int::from(half(rest, 4)?);
    let content = rest.get(HEADER_BYTES..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message { kind, content })
}

/// What `nlmsgerr` says: an errno below zero, or 0.
fn acknowledged(content: &[u8]) -> io::Result<()> {
    match word(content, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The value of an attribute among others (`rtattr`: length and kind, then the value).
pub(super) fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        if kind == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{MsgFlags, getsockname, sendto};

    use super::*;

    #[test]
    fn nothing_but_the_kernel_is_heard() {
        let netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
        let own: NetlinkAddr = getsockname(netlink.0.as_raw_fd()).unwrap();
        let (domain, protocol) = (Domain::from(libc::AF_NETLINK), libc::NETLINK_ROUTE);
        let other = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).unwrap();
        let forged = [0; HEADER_BYTES];
        let to = NetlinkAddr::new(own.pid(), 0);
        let sent = sendto(other.as_raw_fd(), &forged, &to, MsgFlags::empty());
        assert_eq!(sent, Err(nix::Error::ECONNREFUSED), "root may send, and is not heard");
    }

    #[test]
    fn what_is_cut_or_lies_about_its_length_is_no_message_and_no_attribute() {
        for bytes in [&[][..], &[0; HEADER_BYTES], &[255; HEADER_BYTES], &[16, 0, 0, 0]] {
            assert!(next_message(&mut &*bytes).is_none_or(|it| it.content.is_empty()));
        }
        assert_eq!(attribute(&[0, 0, 1, 0, 0, 0, 1, 0], 21), None);
        assert_eq!(attribute(&[2, 0, 21, 0], 21), None);
        assert_eq!(attribute(&[5, 0, 1, 0, 9, 0, 0, 0, 6, 0, 21, 0, 7, 8], 21), Some(&[7, 8][..]));
    }
}
