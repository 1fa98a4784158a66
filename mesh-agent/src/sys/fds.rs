//! Open descriptors sent from one process to another over a Unix socket (`SCM_RIGHTS`, unix(7),
//! cmsg(3)).

use std::{
    io::{self, IoSlice},
    mem::{MaybeUninit, offset_of, size_of},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use socket2::{MaybeUninitSlice, MsgHdr, MsgHdrMut, SockRef};

/// Most descriptors in one message; the kernel allows 253 (`SCM_MAX_FD`).
pub(crate) const MOST: usize = 64;

/// One control message: its header (`cmsghdr`), and then as many descriptors as its length says.
const HEADER: usize = size_of::<libc::cmsghdr>();
const FD: usize = size_of::<i32>();

/// The byte that a message has besides its descriptors.
const BYTE: u8 = b'.';

/// Sends one byte, and with it at most [`MOST`] descriptors.
///
/// # Errors
/// What the kernel said; `WouldBlock` if the socket is full.
pub(crate) fn send(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = Vec::with_capacity(HEADER + MOST * FD);
    let length = HEADER + fds.len() * FD;
    control.extend(length.to_ne_bytes());
    control.extend(libc::SOL_SOCKET.to_ne_bytes());
    control.extend(libc::SCM_RIGHTS.to_ne_bytes());
    control.extend(fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()));
    control.resize(length.next_multiple_of(size_of::<usize>()), 0);
    let byte = [IoSlice::new(&[BYTE])];
    let message = MsgHdr::new().with_buffers(&byte).with_control(&control);
    SockRef::from(&socket).sendmsg(&message, libc::MSG_NOSIGNAL).map(drop)
}

/// Receives what one [`send`] has sent. The descriptors become ours, and programs that we start do
/// not inherit them.
///
/// # Errors
/// What the kernel said; `WouldBlock` if nothing has come; `UnexpectedEof` if nothing will;
/// `InvalidData` if something else came.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [MaybeUninit::uninit(); 1];
    let mut bytes = [MaybeUninitSlice::new(&mut byte)];
    let mut control = [MaybeUninit::new(0_u8); HEADER + MOST * FD];
    let mut message = MsgHdrMut::new().with_buffers(&mut bytes).with_control(&mut control);
    let read = SockRef::from(&socket).recvmsg(&mut message, libc::MSG_CMSG_CLOEXEC)?;
    let (filled, truncated) = (message.control_len(), message.flags().is_truncated());
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: a byte was read.
    if filled == 0 && unsafe { byte[0].assume_init() } == BYTE {
        return Ok(Vec::new()); // the kernel leaves out a message without descriptors
    }
    // SAFETY: every byte was initialised above.
    let control = control.map(|byte| unsafe { byte.assume_init() });
    let control = control.get(..filled).unwrap_or_default();
    let word = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + FD)?.try_into().ok()?));
    let level = word(offset_of!(libc::cmsghdr, cmsg_level));
    let kind = word(offset_of!(libc::cmsghdr, cmsg_type));
    let length = control.first_chunk().map(|length| usize::from_ne_bytes(*length));
    if (level, kind) != (Some(libc::SOL_SOCKET), Some(libc::SCM_RIGHTS)) || truncated {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let numbers = length.and_then(|length| control.get(HEADER..length)).unwrap_or_default();
    let fds = numbers.chunks_exact(FD).filter_map(|number| number.try_into().ok());
    // SAFETY: the kernel has just made these descriptors for us, and nothing else knows them.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(fd)) }).collect())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn what_is_sent_is_open_on_the_other_side() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&here, &[writer.as_fd(), reader.as_fd()]).unwrap();
        send(&here, &[]).unwrap();
        drop((here, writer));
        let mut received = receive(&there).unwrap();
        assert_eq!(received.len(), 2);
        let mut sent_writer = File::from(received.swap_remove(0));
        sent_writer.write_all(b"through").unwrap();
        drop((sent_writer, received));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(receive(&there).is_ok_and(|none| none.is_empty()));
        assert_eq!(receive(&there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bytes_without_descriptors_are_not_taken_for_them() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"x").unwrap();
        assert_eq!(receive(&there).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
