//! The client: connections one after the other, by as many workers as wanted.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    libc::MSG_FASTOPEN,
    sys::socket::{setsockopt, sockopt::TcpFastOpenConnect},
};
use socket2::{Domain, Protocol, Socket, Type};
use tests::probe::{Conn, DialSpec, End, Event, Manner, Talk};

use crate::{
    emit, lines,
    play::{Role, play},
    sys,
    wire::{Speech, Wire, micros},
};

pub(crate) fn run(spec: &DialSpec) -> Result<()> {
    if spec.talk == Talk::Lines {
        return lines::ask(spec);
    }
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= spec.connections {
                    return Ok(());
                }
                emit(&Event::Conn(Box::new(one(spec, spec.seed + number)?)))?;
            }
        };
        let workers: Vec<_> = (0..spec.workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| unreachable!("work does not panic"))
        })
    })
}

fn one(spec: &DialSpec, seed: u64) -> Result<Conn> {
    let start = Instant::now();
    let wire = match connect(spec) {
        Ok(stream) => Wire::new(stream, start),
        Err(e) => {
            let total_us = micros(start.elapsed());
            return Ok(Conn {
                seed,
                end: End::from(&e),
                error: Some(format!("connect: {e}")),
                total_us,
                ..Conn::default()
            });
        }
    };
    let connect_us = micros(start.elapsed());
    wire.set_timeout(Duration::from_secs(spec.timeout_s))?;
    let report = match spec.talk {
        Talk::Script => {
            // If this fails, the play will see why.
            let _seen_later = (&wire.stream).write_all(&seed.to_le_bytes());
            play(&wire, Role::Client, seed)?
        }
        _ => exchange(spec, &wire)?,
    };
    Ok(Conn { seed, connect_us, ..report })
}

fn exchange(spec: &DialSpec, wire: &Wire) -> Result<Conn> {
    let fin = spec.half_close || spec.talk == Talk::Bulk;
    let text = if spec.manner == Manner::FastOpenSend { "" } else { &*spec.say };
    let speech = Speech { text, bytes: spec.send_bytes, seed: spec.seed, fin };
    // With a limit the connection is closed after reading, so all must have been written first.
    let (spoken, mut heard) = wire.both(&speech, spec.read_bytes);
    if spec.reset && heard.end.is_none_or(|end| end == End::Fin) {
        wire.reset_on_close()?;
        heard.end = Some(End::SentReset);
    }
    Ok(wire.report(None, &spoken, heard))
}

/// Connects as the spec says: from an address, with a socket of a kind, in a manner, in time.
pub(crate) fn connect(spec: &DialSpec) -> io::Result<TcpStream> {
    let to = match spec.to.ip() {
        IpAddr::V4(v4) if spec.mapped => SocketAddr::from((v4.to_ipv6_mapped(), spec.to.port())),
        _ => spec.to,
    };
    let protocol = if spec.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if !spec.device.is_empty() {
        socket.bind_device(Some(spec.device.as_bytes()))?;
    }
    if let Some(from) = spec.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    if let Some(first) = spec.first
        && by(Manner::Blocking, &socket, first, spec).is_ok()
    {
        sys::disconnect(&socket)?;
    }
    by(spec.manner, &socket, to, spec)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn by(manner: Manner, socket: &Socket, to: SocketAddr, spec: &DialSpec) -> io::Result<()> {
    let timeout = Duration::from_secs(spec.timeout_s);
    // A blocking connect obeys it too (socket(7)).
    socket.set_write_timeout(Some(timeout))?;
    match manner {
        Manner::NonBlocking => socket.connect_timeout(&to.into(), timeout),
        Manner::Blocking => socket.connect(&to.into()),
        Manner::FastOpenSend => {
            let said = socket.send_to_with_flags(spec.say.as_bytes(), &to.into(), MSG_FASTOPEN)?;
            // A few words always fit in.
            if said == spec.say.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        }
        Manner::FastOpenConnect => {
            setsockopt(socket, TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())
        }
        Manner::IoUring => sys::ring_connect(socket, &to.into()),
    }
}
