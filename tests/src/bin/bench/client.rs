//! The client inside a pod: reads orders from its standard input, answers on its standard output.
//! The timed loops do not allocate.

use std::{
    io::{self, BufRead, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::slice::{Answer, Histogram, Load, Order, Request, Slice, TRIP_BYTES, WRITE_BYTES};

/// Round trips on a new connection before the first one that counts.
const WARM_UP_TRIPS: usize = 50;

pub(crate) fn run(orders: impl BufRead) -> Result<()> {
    let mut times = Histogram::default();
    let mut buffer = vec![0x5a; WRITE_BYTES];
    for line in orders.lines() {
        let Request { to, order } = serde_json::from_str(&line?)?;
        times.clear();
        let answer = match work(to, order, &mut times, &mut buffer) {
            Ok(slice) => Answer::Done(slice),
            Err(e) => Answer::Failed(format!("{:?} to {to}: {e:#}", order.load())),
        };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn work(to: SocketAddr, order: Order, times: &mut Histogram, buffer: &mut [u8]) -> Result<Slice> {
    match order.load() {
        Load::Connect => connect(to, order, times),
        Load::RoundTrip => round_trip(to, order, times),
        Load::Stream => stream(to, order, buffer),
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

fn connect(to: SocketAddr, order: Order, times: &mut Histogram) -> Result<Slice> {
    let begun = Instant::now();
    let mut now = begun;
    let mut count = 0;
    while count < order.count() && now - begun < order.time() {
        let opened = open(to, Load::Connect).with_context(|| format!("connection {count}"))?;
        drop(opened);
        let before = now;
        now = Instant::now();
        times.add(now - before);
        count += 1;
    }
    let elapsed_ns = nanoseconds(now - begun);
    Ok(Slice { count, connections: count, bytes: count, elapsed_ns, times: times.clone() })
}

fn round_trip(to: SocketAddr, order: Order, times: &mut Histogram) -> Result<Slice> {
    let mut stream = open(to, Load::RoundTrip).context("connecting")?;
    let mut message = [0x5a; TRIP_BYTES];
    for _ in 0..WARM_UP_TRIPS {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
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

fn stream(to: SocketAddr, order: Order, buffer: &mut [u8]) -> Result<Slice> {
    let mut stream = open(to, Load::Stream).context("connecting")?;
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
