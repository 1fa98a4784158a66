//! The server inside a pod: answers every kind of load until its standard input ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};

use crate::slice::{Load, TRIP_BYTES, WRITE_BYTES};

/// Threads that accept on a port, each serving one connection to its end. A client's next
/// connection must not wait until the end of its last one has arrived.
const THREADS: usize = 8;

/// What it prints once it listens.
pub(crate) const READY: &str = "ready";

pub(crate) fn run(ports: &[u16]) -> Result<()> {
    for &port in ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        let listener = Arc::new(listener.with_context(|| format!("listening on port {port}"))?);
        for _ in 0..THREADS {
            let listener = Arc::clone(&listener);
            thread::spawn(move || accept(&listener));
        }
    }
    println!("{READY}");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

fn accept(listener: &TcpListener) {
    let mut buffer = vec![0; WRITE_BYTES];
    loop {
        let served = listener.accept().and_then(|(stream, _)| serve(stream, &mut buffer));
        if let Err(e) = served {
            eprintln!("a connection failed: {e}");
        }
    }
}

fn serve(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
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
