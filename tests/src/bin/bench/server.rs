//! The server inside a pod: answers every kind of load until its standard input ends.

use std::{
    fmt::{self, Display},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    num::ParseIntError,
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};

use crate::slice::{Load, TRIP_BYTES, WRITE_BYTES};

/// Threads that accept on a port, each serving one connection to its end. A client's next
/// connection must not wait until the end of its last one has arrived.
const THREADS: usize = 8;

/// The stack of a thread that serves one connection.
const STACK_BYTES: usize = 128 * 1024;

/// What it prints once it listens.
pub(crate) const READY: &str = "ready";

/// How a server listens, as a word of its command line.
#[derive(Debug, Clone)]
pub(crate) enum Listen {
    /// `8080`: a few threads that accept.
    Pool(u16),
    /// `8080+`: a new thread for each connection.
    Thread(u16),
    /// `8080-8099`: a thread for each of these ports.
    Many(RangeInclusive<u16>),
}

impl Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(port) => write!(f, "{port}"),
            Self::Thread(port) => write!(f, "{port}+"),
            Self::Many(ports) => write!(f, "{}-{}", ports.start(), ports.end()),
        }
    }
}

impl FromStr for Listen {
    type Err = ParseIntError;

    fn from_str(word: &str) -> Result<Self, ParseIntError> {
        Ok(match (word.strip_suffix('+'), word.split_once('-')) {
            (Some(port), _) => Self::Thread(port.parse()?),
            (None, Some((first, last))) => Self::Many(first.parse()?..=last.parse()?),
            (None, None) => Self::Pool(word.parse()?),
        })
    }
}

pub(crate) fn run(listen: &[Listen]) -> Result<()> {
    for how in listen {
        match how.clone() {
            Listen::Pool(port) => {
                let listener = Arc::new(listen_on(port)?);
                for _ in 0..THREADS {
                    let listener = Arc::clone(&listener);
                    thread::spawn(move || accept(&listener));
                }
            }
            Listen::Thread(port) => {
                let listener = listen_on(port)?;
                thread::spawn(move || accept_each(&listener));
            }
            Listen::Many(ports) => {
                for port in ports {
                    let listener = listen_on(port)?;
                    let server = thread::Builder::new().stack_size(STACK_BYTES);
                    server.spawn(move || accept(&listener))?;
                }
            }
        }
    }
    println!("{READY}");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

fn listen_on(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    listener.with_context(|| format!("listening on port {port}"))
}

fn accept(listener: &TcpListener) {
    let mut buffer = vec![0; WRITE_BYTES];
    loop {
        report(listener.accept().and_then(|(stream, _)| serve(stream, &mut buffer)));
    }
}

fn accept_each(listener: &TcpListener) {
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| {
            let server = thread::Builder::new().stack_size(STACK_BYTES);
            server.spawn(move || report(serve(stream, &mut vec![0; WRITE_BYTES])))
        });
        report(accepted.map(drop));
    }
}

fn report(served: io::Result<()>) {
    if let Err(e) = served {
        eprintln!("a connection failed: {e}");
    }
}

fn serve(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind == [Load::Request.byte()] {
        let message = buffer.split_at_mut(TRIP_BYTES).0;
        let (first, rest) = message.split_at_mut(1);
        first.copy_from_slice(&kind);
        stream.read_exact(rest)?;
        return stream.write_all(message);
    }
    stream.write_all(&kind)?;
    let [kind] = kind;
    if kind == Load::RoundTrip.byte() {
        let message = buffer.split_at_mut(TRIP_BYTES).0;
        loop {
            match stream.read_exact(message) {
                Ok(()) => stream.write_all(message)?,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
    let mut received: u64 = 0;
    loop {
        match stream.read(buffer)? {
            0 if kind == Load::Stream.byte() => return stream.write_all(&received.to_be_bytes()),
            0 => return Ok(()),
            count => received += count as u64,
        }
    }
}
