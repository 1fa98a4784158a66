//! The TCP sockets of a network namespace, as the kernel lists them, and how one is ended
//! (`sock_diag(7)`, `linux/inet_diag.h`).
//!
//! The list can be asked for on another thread than the one that entered the namespace, since it
//! can be long.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::netlink::{Netlink, attribute, word};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`linux/sock_diag.h`).
const LIST: u16 = 20;
const DESTROY: u16 = 21;

/// `inet_diag_req_v2` after the netlink header, up to the socket's id; and the id
/// (`inet_diag_sockid`).
const REQUEST_BYTES: usize = 8;
const ID_BYTES: usize = 48;
/// `inet_diag_msg`.
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

/// How long the kernel may take for a list: it has to look at the sockets of all namespaces.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for the sockets of one namespace.
#[derive(Debug)]
pub struct SocketList(Netlink);

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
        Netlink::open(libc::NETLINK_SOCK_DIAG).map(Self)
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
            let family = u8::try_from(family).unwrap_or_default();
            self.0.ask(LIST, libc::NLM_F_DUMP, &request(family, states, &[0; ID_BYTES]))?;
            self.0.answers(PATIENCE, |message| found.take_in(message))?;
        }
        Ok(found)
    }

    /// Ends a connection with a reset on both sides: its holder reads `ECONNABORTED`.
    ///
    /// # Errors
    /// `NotFound` if it has ended by itself, `Unsupported` on a kernel built without
    /// `CONFIG_INET_DIAG_DESTROY`.
    pub fn reset(&self, socket: &OpenSocket) -> io::Result<()> {
        let request = request(socket.family, u32::MAX, &socket.id);
        self.0.ask(DESTROY, libc::NLM_F_ACK, &request)?;
        self.0.answers(PATIENCE, |_| {})
    }
}

fn request(family: u8, states: u32, id: &[u8; ID_BYTES]) -> [u8; REQUEST_BYTES + ID_BYTES] {
    let mut request = [0; REQUEST_BYTES + ID_BYTES];
    request[0] = family;
    request[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    request[4..REQUEST_BYTES].copy_from_slice(&states.to_ne_bytes());
    request[REQUEST_BYTES..].copy_from_slice(id);
    request
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
    let cgroup = attribute(message.get(MESSAGE_BYTES..)?, CGROUP_ID);
    let socket = OpenSocket {
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        inode: word(message, MESSAGE_BYTES - 4)?,
        cgroup: cgroup.and_then(|id| id.try_into().ok()).map_or(0, u64::from_ne_bytes),
        cookie,
        family,
        id,
    };
    Some((state, socket))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

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
    fn what_is_cut_is_no_socket() {
        assert!(parse(&[0; MESSAGE_BYTES - 1]).is_none());
    }
}
