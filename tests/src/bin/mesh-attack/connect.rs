//! Attacks with whole TCP connections.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tests::attack::{AttackSpec, Kind, LATE};

use crate::{Shared, hello::client_hello};

/// The mesh's source ports.
const FIRST_PORT: u64 = 61_000;
const PORTS: u64 = 65_536 - FIRST_PORT;

/// How long a connection or an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two bytes of a drip, and between two looks at what is held.
const DRIP: Duration = Duration::from_millis(100);

/// The `number`th connection. It is reset when it is dropped, so that its port is free at once.
fn connect(spec: &AttackSpec, number: u64) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(spec.to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(ip) = spec.bind {
        socket.set_reuse_address(true)?;
        let port = u16::try_from(FIRST_PORT + number % PORTS).unwrap_or(u16::MAX);
        socket.bind(&SocketAddr::new(ip, port).into())?;
    }
    socket.connect_timeout(&spec.to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// One connection after the other.
pub(crate) fn again(spec: &AttackSpec, worker: u64, shared: &Shared) {
    let begun = Instant::now();
    let say = match spec.kind {
        Kind::Hello => client_hello(),
        Kind::Garbage => vec![0x47; 64],
        _ => Vec::new(),
    };
    let mut number = worker;
    while shared.pace(begun, spec.per_second) {
        number += spec.workers;
        let Ok(mut stream) = connect(spec, number) else {
            Shared::add(&shared.ended);
            continue;
        };
        Shared::add(&shared.connected);
        if say.is_empty() {
            continue;
        }
        let mut heard = [0; 4096];
        let answer = stream.write_all(&say).and_then(|()| stream.read(&mut heard));
        shared.heard.fetch_add(answer.unwrap_or(0) as u64, Ordering::Relaxed);
        Shared::add(&shared.ended);
    }
}

/// Enough destination ports for the mesh to spread the dials over all its ports for redirected
/// dials.
const SPREAD: u64 = 64;

/// One destination after the other.
fn spread(spec: &AttackSpec, number: u64) -> SocketAddr {
    let port = u16::try_from(number % SPREAD).unwrap_or(0) + 1;
    SocketAddr::new(spec.to.ip(), port)
}

/// Closed as soon as they are there, in order.
pub(crate) fn orphans(spec: &AttackSpec, worker: u64, shared: &Shared) {
    let begun = Instant::now();
    let mut number = worker;
    while shared.pace(begun, spec.per_second) {
        number += spec.workers;
        let done = TcpStream::connect(spread(spec, number));
        Shared::add(if done.is_ok() { &shared.connected } else { &shared.ended });
    }
}

/// `ret 0`: lets nothing of any packet through.
const DROP_ALL: SockFilter = SockFilter::new(6, 0, 0, 0);

/// Begins handshakes that do not end, as many as are to be held.
pub(crate) fn deaf(spec: &AttackSpec, worker: u64, shared: &Shared) {
    let begun = Instant::now();
    let mine = spec.hold.div_ceil(spec.workers);
    let (mut held, mut number) = (Vec::new(), worker);
    while shared.pace(begun, spec.per_second) {
        if held.len() as u64 >= mine {
            thread::sleep(DRIP);
            continue;
        }
        number += spec.workers;
        match begin_deaf(spread(spec, number)) {
            Ok(socket) => {
                Shared::add(&shared.connected);
                held.push(socket);
            }
            Err(_) => drop(Shared::add(&shared.ended)),
        }
    }
}

fn begin_deaf(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.attach_filter(&[DROP_ALL])?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// One of those that are held.
struct Held {
    stream: TcpStream,
    since: Instant,
    said: usize,
    heard: u64,
}

/// As many as are to be held, replaced when the other side ends them.
pub(crate) fn hold(spec: &AttackSpec, worker: u64, shared: &Shared) {
    let begun = Instant::now();
    let (hello, mut held) = (client_hello(), VecDeque::new());
    let mine = spec.hold.div_ceil(spec.workers);
    let mut number = worker;
    while shared.goes_on() {
        while (held.len() as u64) < mine && shared.pace(begun, spec.per_second) {
            number += spec.workers;
            match connect(spec, number).and_then(|stream| begin(spec, stream)) {
                Ok(stream) => {
                    Shared::add(&shared.connected);
                    Shared::add(&shared.open);
                    held.push_back(Held { stream, since: Instant::now(), said: 0, heard: 0 });
                }
                Err(_) => {
                    Shared::add(&shared.ended);
                }
            }
        }
        thread::sleep(DRIP);
        held.retain_mut(|one| {
            let is_open = is_open(spec, one, shared);
            let alive = is_open
                && match spec.kind {
                    Kind::Drip => drip(one, &hello),
                    Kind::Late => late(one, &hello),
                    Kind::Fill => fill(&mut one.stream, shared),
                    _ => true,
                };
            if !alive {
                Shared::add(&shared.ended);
                shared.open.fetch_sub(1, Ordering::Relaxed);
            }
            alive
        });
    }
}

fn begin(spec: &AttackSpec, mut stream: TcpStream) -> io::Result<TcpStream> {
    if spec.kind == Kind::Hold {
        stream.write_all(b"req held\n")?;
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Whether the other side has not ended it. What a [`Kind::Hold`] is told stays unread.
fn is_open(spec: &AttackSpec, one: &mut Held, shared: &Shared) -> bool {
    let mut heard = [0; 256];
    let Held { stream, heard: before, .. } = one;
    let outcome =
        if spec.kind == Kind::Hold { stream.peek(&mut heard) } else { stream.read(&mut heard) };
    match outcome {
        Ok(0) => false,
        Ok(count) => {
            if spec.kind != Kind::Hold {
                shared.heard.fetch_add(count as u64, Ordering::Relaxed);
                if *before == 0 {
                    Shared::add(&shared.answered);
                }
                *before += count as u64;
            }
            !matches!(SockRef::from(&*stream).take_error(), Ok(Some(_)))
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// What the kernel takes now, up to some megabytes.
fn fill(stream: &mut TcpStream, shared: &Shared) -> bool {
    let piece = [0x66; 16 * 1024];
    for _ in 0..256 {
        match stream.write(&piece) {
            Ok(count) => drop(shared.said.fetch_add(count as u64, Ordering::Relaxed)),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// One byte more, over and over.
fn drip(one: &mut Held, hello: &[u8]) -> bool {
    let byte = hello.get(one.said % hello.len()).copied().unwrap_or(0);
    one.said += 1;
    one.stream.write_all(&[byte]).is_ok()
}

/// All at once, when it is time.
fn late(one: &mut Held, hello: &[u8]) -> bool {
    if one.said > 0 || one.since.elapsed() < LATE {
        return true;
    }
    one.said = hello.len();
    one.stream.write_all(hello).is_ok()
}
