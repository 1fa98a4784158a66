//! The client inside a pod: reads orders from its standard input, answers on its standard output.
//! The timed loops do not allocate.

use std::{
    io::{self, BufRead, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::slice::{
    Answer, Histogram, Load, Order, Request, SMALL_WRITE_BYTES, Slice, TRIP_BYTES, WRITE_BYTES,
};

/// Round trips on a new connection before the first one that counts.
const WARM_UP_TRIPS: usize = 50;

/// What one of the clients that work at once needs.
struct Worker {
    times: Histogram,
    buffer: Vec<u8>,
    held: Vec<TcpStream>,
}

pub(crate) fn run(orders: impl BufRead) -> Result<()> {
    let mut workers: Vec<Worker> = Vec::new();
    for line in orders.lines() {
        let Request { to, order } = serde_json::from_str(&line?)?;
        while workers.len() < order.workers() {
            let (times, buffer) = (Histogram::default(), vec![0x5a; WRITE_BYTES]);
            workers.push(Worker { times, buffer, held: Vec::new() });
        }
        let answer = match work_all(to, order, &mut workers) {
            Ok(slice) => Answer::Done(slice),
            Err(e) => Answer::Failed(format!("{:?} to {to}: {e:#}", order.load())),
        };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn work_all(to: SocketAddr, order: Order, workers: &mut [Worker]) -> Result<Slice> {
    let (first, others) = workers.split_first_mut().context("an order for no client")?;
    let others = others.iter_mut().take(order.workers().saturating_sub(1));
    let all_ready = &Barrier::new(order.workers());
    thread::scope(|scope| {
        let others: Vec<_> =
            others.map(|it| scope.spawn(move || work(to, order, it, all_ready))).collect();
        let mut all = work(to, order, first, all_ready)?;
        for other in others {
            all.join(&other.join().map_err(|_panic| anyhow!("a client panicked"))??);
        }
        Ok(all)
    })
}

/// What one client does. It begins once all are ready, or have failed.
fn work(to: SocketAddr, order: Order, worker: &mut Worker, all_ready: &Barrier) -> Result<Slice> {
    let Worker { times, buffer, held } = worker;
    times.clear();
    held.clear();
    let open = match order.load() {
        load @ (Load::RoundTrip | Load::Stream | Load::SmallWrites) => {
            open_warm(to, load).map(Some)
        }
        Load::Connect | Load::First | Load::Request | Load::Hold => Ok(None),
    };
    all_ready.wait();
    let no_stream = || anyhow!("no connection");
    match order.load() {
        Load::Connect => connect(to, 0, order, times),
        Load::First => connect(to, 1, order, times),
        Load::RoundTrip => round_trip(open?.ok_or_else(no_stream)?, order, times),
        Load::Request => request(to, order, times),
        Load::Stream => stream(open?.ok_or_else(no_stream)?, order, buffer),
        Load::SmallWrites => {
            let small = buffer.get_mut(..SMALL_WRITE_BYTES).unwrap_or_default();
            stream(open?.ok_or_else(no_stream)?, order, small)
        }
        Load::Hold => hold(to, order, held),
    }
}

/// A new connection whose server knows what is to come.
fn open(to: SocketAddr, load: Load) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut byte = [load.byte()];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(stream)
}

/// Connection after connection, each to a port that is `step` higher than the last one's.
fn connect(mut to: SocketAddr, step: u16, order: Order, times: &mut Histogram) -> Result<Slice> {
    let begun = Instant::now();
    let mut now = begun;
    let mut count = 0;
    while count < order.count() && now - begun < order.time() {
        let opened = open(to, Load::Connect).with_context(|| format!("connection {count}"))?;
        drop(opened);
        to.set_port(to.port() + step);
        let before = now;
        now = Instant::now();
        times.add(now - before);
        count += 1;
    }
    let elapsed_ns = nanoseconds(now - begun);
    Ok(Slice { count, connections: count, bytes: count, elapsed_ns, times: times.clone() })
}

/// A connection that has been used.
fn open_warm(to: SocketAddr, load: Load) -> Result<TcpStream> {
    let mut stream = open(to, load).context("connecting")?;
    let mut message = [0x5a; TRIP_BYTES];
    for _ in 0..if load == Load::RoundTrip { WARM_UP_TRIPS } else { 0 } {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    Ok(stream)
}

fn round_trip(mut stream: TcpStream, order: Order, times: &mut Histogram) -> Result<Slice> {
    let mut message = [0x5a; TRIP_BYTES];
    let begun = Instant::now();
    let mut now = begun;
    let mut count = 0;
    while count < order.count() && now - begun < order.time() {
        stream.write_all(&message)?;
        stream.read_exact(&mut message).with_context(|| format!("round trip {count}"))?;
        let before = now;
        now = Instant::now();
        times.add(now - before);
        count += 1;
    }
    let elapsed_ns = nanoseconds(now - begun);
    let bytes = count * TRIP_BYTES as u64;
    Ok(Slice { count, connections: 1, bytes, elapsed_ns, times: times.clone() })
}

/// Connections that carry a request and its answer each. The server closes them.
fn request(to: SocketAddr, order: Order, times: &mut Histogram) -> Result<Slice> {
    let mut message = [Load::Request.byte(); TRIP_BYTES];
    let begun = Instant::now();
    let mut now = begun;
    let mut count = 0;
    while count < order.count() && now - begun < order.time() {
        let mut stream = TcpStream::connect(to).with_context(|| format!("connection {count}"))?;
        stream.set_nodelay(true)?;
        stream.write_all(&message)?;
        stream.read_exact(&mut message).with_context(|| format!("answer {count}"))?;
        ensure!(stream.read(&mut [0])? == 0, "more than an answer");
        let before = now;
        now = Instant::now();
        times.add(now - before);
        count += 1;
    }
    let elapsed_ns = nanoseconds(now - begun);
    let bytes = count * TRIP_BYTES as u64;
    Ok(Slice { count, connections: count, bytes, elapsed_ns, times: times.clone() })
}

/// Connections that stay open until the next order.
fn hold(to: SocketAddr, order: Order, held: &mut Vec<TcpStream>) -> Result<Slice> {
    let begun = Instant::now();
    for count in 0..order.count() {
        held.push(open(to, Load::Hold).with_context(|| format!("connection {count}"))?);
    }
    let (count, elapsed_ns) = (order.count(), nanoseconds(begun.elapsed()));
    let times = Histogram::default();
    Ok(Slice { count, connections: count, bytes: count, elapsed_ns, times })
}

fn stream(mut stream: TcpStream, order: Order, buffer: &mut [u8]) -> Result<Slice> {
    let begun = Instant::now();
    let mut count = 0;
    while count < order.count() && begun.elapsed() < order.time() {
        stream.write_all(buffer).with_context(|| format!("write {count}"))?;
        count += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut received = [0; 8];
    stream.read_exact(&mut received).context("the server's count")?;
    let elapsed_ns = nanoseconds(begun.elapsed());
    let (sent, bytes) = (count * buffer.len() as u64, u64::from_be_bytes(received));
    ensure!(sent == bytes, "{sent} bytes were sent, but {bytes} received");
    Ok(Slice { count, connections: 1, bytes, elapsed_ns, times: Histogram::default() })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
