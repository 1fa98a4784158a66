//! The load of the race tests: two servers and a worker per target, until standard input ends.
//! Every connection must end in the right answer, a refusal or a reset, in time. A server must
//! never read anything but a request.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tests::probe::{End, Event, MARKER, Noise, RaceSpec, RaceTally, Target};

use crate::emit;

/// How often the tally is told.
const TELL: Duration = Duration::from_millis(500);

/// From when on an answer is late.
const LATE: Duration = Duration::from_secs(1);

/// Longer than any client waits: a server that has neither heard from its client nor seen it leave
/// by then hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Some clients think before they speak: longer than an agent waits for a first byte.
const THINKS: Duration = Duration::from_millis(70);

/// The mesh's source ports.
const RANGE: std::ops::RangeInclusive<u16> = 61_000..=65_535;

type Tally = Arc<Mutex<RaceTally>>;

pub(crate) fn run(spec: &RaceSpec) -> Result<()> {
    let targets = spec.targets.split(',').filter(|text| !text.is_empty()).map(Target::parse);
    let targets = targets.collect::<Result<Vec<_>>>()?;
    let tally = RaceTally { ok: vec![0; targets.len()], ..RaceTally::default() };
    let tally: Tally = Arc::new(Mutex::new(tally));
    for (port, speaks_first) in [(spec.client_first, false), (spec.server_first, true)] {
        let listener = listen(port)?;
        let (tally, name) = (Arc::clone(&tally), spec.name.clone());
        thread::spawn(move || serve(&listener, speaks_first, &name, &tally));
    }
    for (number, target) in targets.into_iter().enumerate() {
        let (spec, tally) = (spec.clone(), Arc::clone(&tally));
        thread::spawn(move || Worker { spec, target, number, tally }.run());
    }
    thread::spawn(|| {
        // Whatever ends standard input ends the load.
        let _bytes = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    loop {
        let now = lock(&tally).clone();
        emit(&Event::Race(Box::new(now)))?;
        thread::sleep(TELL);
    }
}

fn lock(tally: &Tally) -> MutexGuard<'_, RaceTally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn violation(tally: &Tally, what: String) {
    lock(tally).violations += 1;
    // If it cannot be told, the count says it.
    let _told = emit(&Event::Violation(what));
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn serve(listener: &TcpListener, speaks_first: bool, name: &str, tally: &Tally) {
    for stream in listener.incoming().flatten() {
        let (name, tally) = (name.to_owned(), Arc::clone(tally));
        thread::spawn(move || {
            lock(&tally).accepted += 1;
            match answer(&stream, speaks_first, &name) {
                Ok(true) => {}
                Ok(false) => lock(&tally).unasked += 1,
                Err(error) => violation(&tally, format!("server {name}: {error:#}")),
            }
        });
    }
}

/// Whether a request came. An error is what must not happen; a client that has left is no error.
fn answer(mut stream: &TcpStream, speaks_first: bool, name: &str) -> Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    if speaks_first && stream.write_all(banner(name).as_bytes()).is_err() {
        return Ok(false);
    }
    let expected = format!("{MARKER} ask ");
    let (mut heard, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if End::from(&error) == End::Timeout => bail!("hangs after {heard:?}"),
            Err(_gone) => return Ok(false),
        };
        heard.extend_from_slice(&buffer[..count]);
        let compared = heard.len().min(expected.len());
        if heard[..compared] != expected.as_bytes()[..compared] {
            let tls = if heard.starts_with(&[22, 3]) { "TLS" } else { "no request" };
            bail!("read {tls}: {}", heard[..heard.len().min(64)].escape_ascii());
        }
        if let Some(rest) = heard.strip_prefix(expected.as_bytes())
            && let [id @ .., b'\n'] = rest
        {
            let answer = format!("{MARKER} answer {} {name}\n", String::from_utf8_lossy(id));
            // A client may leave meanwhile; that is no error.
            let _gone = stream.write_all(answer.as_bytes());
            return Ok(true);
        }
    }
}

fn banner(name: &str) -> String {
    format!("{MARKER} hello {name}\n")
}

struct Worker {
    spec: RaceSpec,
    target: Target,
    number: usize,
    tally: Tally,
}

/// How a connection ended without an answer.
enum Ended {
    Cleanly(End),
    Wrongly(String),
}

impl Worker {
    fn run(&self) {
        // Workers of all pods must not go in step.
        let mut noise = Noise::new(u64::from(std::process::id()) << 8 | self.number as u64);
        for id in 0_u64.. {
            let begun = Instant::now();
            let ended = self.one(id, &mut noise, begun + Duration::from_secs(self.spec.deadline_s));
            self.note(begun, id, ended);
            thread::sleep(Duration::from_millis(noise.next_u64() % (2 * self.spec.pause_ms + 1)));
        }
    }

    fn note(&self, begun: Instant, id: u64, ended: Result<(), Ended>) {
        let took = begun.elapsed();
        let mut tally = lock(&self.tally);
        tally.longest_ms =
            tally.longest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        match ended {
            Ok(()) => {
                tally.ok[self.number] += 1;
                tally.late += u64::from(took > LATE);
            }
            Err(Ended::Cleanly(End::Refused)) => tally.refused += 1,
            Err(Ended::Cleanly(End::NotPermitted)) => tally.denied += 1,
            Err(Ended::Cleanly(End::Reset)) => tally.reset += 1,
            Err(Ended::Cleanly(_)) => tally.other += 1,
            Err(Ended::Wrongly(what)) => {
                drop(tally);
                let (from, to) = (&self.spec.name, self.target.to_text());
                violation(&self.tally, format!("client {from} to {to}, {id}: {what} ({took:?})"));
            }
        }
    }

    fn one(&self, id: u64, noise: &mut Noise, deadline: Instant) -> Result<(), Ended> {
        let failed = |error: io::Error| match End::from(&error) {
            End::Timeout => Ended::Wrongly("hangs".to_owned()),
            end => Ended::Cleanly(end),
        };
        let stream = self.connect(noise, deadline).map_err(failed)?;
        let mut reader = BufReader::new(&stream);
        if self.target.server_first {
            expect(&mut reader, &banner(&self.target.name), deadline)?;
        } else if noise.next_u64().is_multiple_of(8) {
            thread::sleep(THINKS);
        }
        let ask = format!("{MARKER} ask {id}\n");
        (&stream).write_all(ask.as_bytes()).map_err(failed)?;
        let answer = format!("{MARKER} answer {id} {}\n", self.target.name);
        expect(&mut reader, &answer, deadline)
    }

    fn connect(&self, noise: &mut Noise, deadline: Instant) -> io::Result<TcpStream> {
        let to = self.target.to;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if self.target.from_range {
            let any = match to.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let port = RANGE.start() + (noise.next_u64() % RANGE.len() as u64) as u16;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(any, port).into())?;
        }
        socket.connect_timeout(&to.into(), left(deadline))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_write_timeout(Some(left(deadline)))?;
        Ok(socket.into())
    }
}

/// Reads exactly this line.
fn expect(reader: &mut BufReader<&TcpStream>, line: &str, deadline: Instant) -> Result<(), Ended> {
    let mut heard = Vec::new();
    loop {
        let set = reader.get_ref().set_read_timeout(Some(left(deadline)));
        let more = match set.and_then(|()| reader.fill_buf()) {
            Ok(more) => more,
            Err(error) if End::from(&error) == End::Timeout => {
                return Err(Ended::Wrongly(format!("hangs waiting for {line:?}")));
            }
            Err(error) => return Err(Ended::Cleanly(End::from(&error))),
        };
        if more.is_empty() {
            let heard = heard.escape_ascii();
            return Err(Ended::Wrongly(format!("ended cleanly after '{heard}', not {line:?}")));
        }
        let count = more.len().min(line.len() - heard.len());
        heard.extend_from_slice(&more[..count]);
        reader.consume(count);
        if !line.as_bytes().starts_with(&heard) {
            let heard = heard.escape_ascii();
            return Err(Ended::Wrongly(format!("heard '{heard}', not {line:?}")));
        }
        if heard.len() == line.len() {
            return Ok(());
        }
    }
}

/// Never zero, which would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
