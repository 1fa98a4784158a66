//! Questions to the kernel about a network namespace (`netlink(7)`), and the walk over its answers.
//!
//! The socket stays in the namespace in which it was made. It is made on a thread that enters
//! namespaces.

use std::{
    io::{self, Read as _, Write as _},
    ops::ControlFlow,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// `nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;
/// What the kernel writes at a time; it makes no larger parts for a reader of this size.
const PART_BYTES: usize = 32 * 1024;
/// How long the kernel may take for an answer: it computes it while it is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// A netlink socket. One question at a time.
#[derive(Debug)]
pub(super) struct Netlink(Socket);

struct Message<'a> {
    kind: libc::c_int,
    content: &'a [u8],
}

impl Netlink {
    /// Of the calling thread's namespace; `protocol` is one of `NETLINK_*`.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let (netlink, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(protocol));
        let socket = Socket::new(netlink, Type::RAW.cloexec(), Some(protocol))?;
        socket.set_read_timeout(Some(PATIENCE))?;
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

    /// Hands over each part of the answer, up to its end or until `each` has enough. Then nothing
    /// more may be asked: the rest of the answer would come first.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn answers(&self, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let mut buffer = vec![0; PART_BYTES];
        loop {
            let length = (&self.0).read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(message) = next_message(&mut rest) {
                match message.kind {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return acknowledged(message.content),
                    _ => {
                        if each(message.content).is_break() {
                            return Ok(());
                        }
                    }
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
    use super::*;

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
