//! The TCP sockets of a network namespace, as the kernel lists them, and how one is ended
//! (`sock_diag(7)`, `linux/inet_diag.h`).
//!
//! The netlink socket stays in the namespace in which it was made. It is made on a thread that
//! enters namespaces, and asked elsewhere, since a list can be long.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`linux/sock_diag.h`).
const LIST: u16 = 20;
const DESTROY: u16 = 21;

/// `inet_diag_req_v2` after the netlink header, up to the socket's id; and the id
/// (`inet_diag_sockid`).
const REQUEST_BYTES: usize = 8;
const ID_BYTES: usize = 48;
/// `nlmsghdr`, and `inet_diag_msg` after it.
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 72;
/// The attribute with the id of the socket's cgroup (`INET_DIAG_CGROUP_ID`, kernel 5.8).
const CGROUP_ID: u16 = 21;

/// States of `net/tcp_states.h` that are asked for: connections on which both directions, or one,
/// may still carry bytes; and listeners.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// What the kernel writes at a time; it makes no larger parts for a reader of this size.
const PART_BYTES: usize = 32 * 1024;
/// How long the kernel may take for an answer: it computes it while it is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for the sockets of one namespace.
#[derive(Debug)]
pub struct SocketList(Socket);

/// A connection as its end in the namespace has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// Its own address. IPv4 is IPv4, whatever the socket's family.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    /// Inode of the file that holds it.
    pub inode: u32,
    /// Id of the cgroup of the process that made it; 0 if the kernel does not say.
    pub cgroup: u64,
    /// The number by which the kernel knows this socket and no later one.
    pub cookie: u64,
    family: u8,
    id: [u8; ID_BYTES],
}

/// What a namespace has.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Connections that a process holds.
    pub open: Vec<OpenSocket>,
    /// Ports on which something listens.
    pub listening: std::collections::BTreeSet<u16>,
}

impl SocketList {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> io::Result<Self> {
        let (netlink, sock_diag) = (Domain::from(libc::AF_NETLINK), libc::NETLINK_SOCK_DIAG);
        let socket = Socket::new(netlink, Type::RAW.cloexec(), Some(Protocol::from(sock_diag)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// All of them. Takes time in proportion to their number.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sockets(&self) -> io::Result<Sockets> {
        let mut found = Sockets::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let states = [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LISTEN];
            let states = states.iter().fold(0_u32, |all, state| all | 1 << state);
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
            let family = u8::try_from(family).unwrap_or_default();
            self.send(LIST, flags, family, states, &[0; ID_BYTES])?;
            self.answers(|message| found.take_in(message))?;
        }
        Ok(found)
    }

    /// Ends a connection with a reset on both sides: its holder reads `ECONNABORTED`.
    ///
    /// # Errors
    /// `NotFound` if it has ended by itself, `Unsupported` on a kernel built without
    /// `CONFIG_INET_DIAG_DESTROY`.
    pub fn reset(&self, socket: &OpenSocket) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.send(DESTROY, flags, socket.family, u32::MAX, &socket.id)?;
        self.answers(|_| {})
    }

    fn send(
        &self,
        kind: u16,
        flags: libc::c_int,
        family: u8,
        states: u32,
        id: &[u8; ID_BYTES],
    ) -> io::Result<()> {
        let length = HEADER_BYTES + REQUEST_BYTES + ID_BYTES;
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
        message.extend([0; 8]); // no sequence: one question at a time; the kernel knows the port
        message.extend([family, u8::try_from(libc::IPPROTO_TCP).unwrap_or_default(), 0, 0]);
        message.extend(states.to_ne_bytes());
        message.extend(id);
        (&self.0).write_all(&message)
    }

    /// Hands over each part of an answer, up to its end.
    fn answers(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; PART_BYTES];
        loop {
            let length = (&self.0).read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(message) = next_message(&mut rest) {
                match message.kind {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return acknowledged(message.content),
                    _ => each(message.content),
                }
            }
        }
    }
}

struct Message<'a> {
    kind: libc::c_int,
    content: &'a [u8],
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

impl Sockets {
    fn take_in(&mut self, message: &[u8]) {
        let Some((state, socket)) = parse(message) else { return };
        if state == LISTEN {
            self.listening.insert(socket.local.port());
        } else if socket.inode != 0 {
            self.open.push(socket); // a socket without a holder is ending by itself
        }
    }
}

/// An `inet_diag_msg` and its attributes.
fn parse(message: &[u8]) -> Option<(u8, OpenSocket)> {
    let (family, state) = (*message.first()?, *message.get(1)?);
    let id: [u8; ID_BYTES] = message.get(4..4 + ID_BYTES)?.try_into().ok()?;
    let address = |at: usize| -> Option<IpAddr> {
        if libc::c_int::from(family) == libc::AF_INET {
            let octets: [u8; 4] = id.get(at..at + 4)?.try_into().ok()?;
            return Some(Ipv4Addr::from(octets).into());
        }
        let octets: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
    };
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let cookie = u64::from(word(&id, 40)?) | u64::from(word(&id, 44)?) << 32;
    let socket = OpenSocket {
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        inode: word(message, MESSAGE_BYTES - 4)?,
        cgroup: cgroup(message.get(MESSAGE_BYTES..)?).unwrap_or(0),
        cookie,
        family,
        id,
    };
    Some((state, socket))
}

/// The cgroup's id among attributes (`rtattr`: length and kind, then the value).
fn cgroup(mut rest: &[u8]) -> Option<u64> {
    loop {
        let (length, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        if kind == CGROUP_ID {
            return Some(u64::from_ne_bytes(rest.get(4..12)?.try_into().ok()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection on loopback: the client's end and the server's, and the listener.
    fn connection(address: &str) -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server, listener)
    }

    #[test]
    fn connections_and_listeners_are_listed_and_one_of_them_is_reset() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server, listener) = connection(address);
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let list = SocketList::open().unwrap();
            let found = list.sockets().unwrap();
            assert!(found.listening.contains(&listener.local_addr().unwrap().port()));
            let is_it = |it: &&OpenSocket| (it.local, it.remote) == (local, remote);
            let ours = found.open.iter().find(is_it).expect("it is not listed");
            assert!(ours.cookie != 0 && ours.inode != 0, "{ours:?}");
            match list.reset(ours) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => continue,
                reset => reset.unwrap(),
            }
            let mut byte = [0];
            let told = client.read(&mut byte).unwrap_err().kind();
            assert_eq!(told, io::ErrorKind::ConnectionAborted);
            assert_eq!(server.read(&mut byte).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(list.reset(ours).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn what_is_cut_or_lies_about_its_length_is_no_socket() {
        assert!(parse(&[0; MESSAGE_BYTES - 1]).is_none());
        for bytes in [&[][..], &[0; HEADER_BYTES], &[255; HEADER_BYTES], &[16, 0, 0, 0]] {
            assert!(next_message(&mut &*bytes).is_none_or(|it| it.content.is_empty()));
        }
        assert_eq!(cgroup(&[0, 0, 1, 0, 0, 0, 1, 0]), None);
    }
}
