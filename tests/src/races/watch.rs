//! Listens on every interface of a node, its pods' too, to what strict pods' servers hear and say:
//! it must be TLS.
//!
//! One exception: a client that dials from the mesh's source ports without being an agent is
//! accepted, looked at, and reset. So its first words are on the link; no answer may be.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{capture::find, netns, probe::MARKER};

/// So much of a frame is looked at: headers, and more than the load ever says at once.
const KEPT: u32 = 256;

/// How often the listener asks whether it is to end.
const WAIT: Duration = Duration::from_millis(100);

/// What was found, in words, at most.
const WORDS: usize = 20;

/// Room for what comes while the listener does not get to run.
const BUFFER: usize = 32 << 20;

const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// What was seen until now.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// TLS records from or to a strict pod's server.
    pub(super) records: u64,
    /// Plaintext from or to one.
    pub(super) plaintext: Vec<String>,
}

/// A listener at work, until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Listens in a namespace for connections to these ports of these pods. `looked_at` are the
    /// addresses of clients that dial from the mesh's source ports.
    pub(super) fn start(
        netns: &Path,
        pods: Vec<IpAddr>,
        looked_at: Vec<IpAddr>,
        ports: [u16; 2],
    ) -> Result<Self> {
        let socket = netns::inside(netns, || open(ports))??;
        socket.set_read_timeout(Some(WAIT))?;
        let (seen, stop) =
            (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                let mut frame = [0; KEPT as usize];
                while !stop.load(Ordering::Relaxed) {
                    // Nothing came: look again whether to end.
                    let Ok(count) = io::Read::read(&mut &socket, &mut frame) else { continue };
                    if let Some(said) = said(&frame[..count], &pods, &looked_at, ports) {
                        lock(&seen).note(&said);
                    }
                }
            }
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ended = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A segment with data.
struct Said<'a> {
    from: SocketAddr,
    to: SocketAddr,
    data: &'a [u8],
}

impl Seen {
    fn note(&mut self, said: &Said<'_>) {
        if find(said.data, MARKER.as_bytes()) {
            if self.plaintext.len() < WORDS {
                let Said { from, to, data } = said;
                self.plaintext.push(format!("{from} to {to}: {}", data.escape_ascii()));
            }
        } else if let [20..=23, 3, ..] = said.data {
            self.records += 1;
        }
    }
}

/// What a frame says, if it is data from or to one of the ports of one of the pods. The pod must be
/// the server: what a strict pod says as a client to a server outside the mesh is not checked.
fn said<'a>(
    frame: &'a [u8],
    pods: &[IpAddr],
    looked_at: &[IpAddr],
    ports: [u16; 2],
) -> Option<Said<'a>> {
    let u16_at = |bytes: &[u8], at| Some(u16::from_be_bytes(array(bytes, at)?));
    let packet = frame.get(14..)?;
    let (from, to, tcp) = if u16_at(frame, 12)? == 0x0800 {
        let header = usize::from(packet.first()? & 15) * 4;
        // The padding of short frames is no data; a length of 0 is a large segment's.
        let length = match usize::from(u16_at(packet, 2)?) {
            0 => packet.len(),
            length => length.min(packet.len()),
        };
        let address = |at| Some(IpAddr::V4(Ipv4Addr::from(array::<4>(packet, at)?)));
        (address(12)?, address(16)?, packet.get(header..length)?)
    } else {
        let address = |at| Some(IpAddr::V6(Ipv6Addr::from(array::<16>(packet, at)?)));
        (address(8)?, address(24)?, packet.get(40..)?)
    };
    let data = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    let from = SocketAddr::new(from, u16_at(tcp, 0)?);
    let to = SocketAddr::new(to, u16_at(tcp, 2)?);
    let is_server = |end: &SocketAddr| pods.contains(&end.ip()) && ports.contains(&end.port());
    let heard = is_server(&to) && !looked_at.contains(&from.ip());
    ((heard || is_server(&from)) && !data.is_empty()).then_some(Said { from, to, data })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A packet socket on all interfaces that gets TCP from or to one of two ports, of either family.
fn open(ports: [u16; 2]) -> io::Result<Socket> {
    // ETH_P_ALL is 3, in network order.
    let everything = Protocol::from(i32::from(3_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(everything))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.attach_filter(&filter(ports))?;
    Ok(socket)
}

/// The filter looks at fixed places: no sender here uses IPv4 options or IPv6 extension headers.
fn filter(ports: [u16; 2]) -> Vec<SockFilter> {
    const DROP: usize = 18;
    const KEEP: usize = 19;
    let [first, second] = ports.map(u32::from);
    // What, with what, and where it goes on if so and if not.
    let program: [(u32, u32, usize, usize); 20] = [
        (LOAD_HALF, 12, 1, 1),
        (EQUALS, 0x0800, 2, 9),
        (LOAD_BYTE, 23, 3, 3),
        (EQUALS, 6, 4, DROP),
        (LOAD_HALF, 34, 5, 5),
        (EQUALS, first, KEEP, 6),
        (EQUALS, second, KEEP, 7),
        (LOAD_HALF, 36, 8, 8),
        (EQUALS, first, KEEP, 17),
        (EQUALS, 0x86dd, 10, DROP),
        (LOAD_BYTE, 20, 11, 11),
        (EQUALS, 6, 12, DROP),
        (LOAD_HALF, 54, 13, 13),
        (EQUALS, first, KEEP, 14),
        (EQUALS, second, KEEP, 15),
        (LOAD_HALF, 56, 16, 16),
        (EQUALS, first, KEEP, 17),
        (EQUALS, second, KEEP, DROP),
        (RETURN, 0, 0, 0),
        (RETURN, KEPT, 0, 0),
    ];
    let step = |(at, (code, value, yes, no)): (usize, (u32, u32, usize, usize))| {
        let distance = |to: usize| u8::try_from(to.saturating_sub(at + 1)).unwrap_or(0);
        SockFilter::new(code as u16, distance(yes), distance(no), value)
    };
    program.into_iter().enumerate().map(step).collect()
}
