//! The server: a thread per connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tests::probe::{Conn, End, Event, ServeSpec, Talk};

use crate::{
    emit, lines,
    play::{Role, play},
    sys,
    wire::{Heard, Speech, Spoken, Wire},
};

/// Longer than any client waits.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn run(spec: &ServeSpec) -> Result<()> {
    let first = listen(spec, spec.listen)?;
    let address = first.local_addr()?;
    let mut group = vec![first];
    for _ in 1..spec.group {
        group.push(listen(spec, address)?);
    }
    emit(&Event::Listening(address))?;
    thread::scope(|scope| {
        let accepting = group.iter().zip(0..).map(|(listener, number)| {
            scope.spawn(move || -> Result<()> {
                loop {
                    let (stream, accepted) = listener.accept()?;
                    let wire = Wire::new(stream, Instant::now());
                    scope.spawn(move || one(spec, &wire, number, accepted));
                }
            })
        });
        accepting.collect::<Vec<_>>().into_iter().try_for_each(|one| {
            one.join().unwrap_or_else(|_| unreachable!("accepting does not panic"))
        })
    })
}

fn listen(spec: &ServeSpec, address: SocketAddr) -> Result<TcpListener> {
    let protocol = if spec.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(spec.group > 1)?;
    if !spec.device.is_empty() {
        socket.bind_device(Some(spec.device.as_bytes()))?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(spec.v6only)?;
    }
    if spec.defer_s > 0 {
        sys::defer_accept(&socket, spec.defer_s)?;
    }
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    socket.listen(spec.backlog)?;
    Ok(socket.into())
}

fn one(spec: &ServeSpec, wire: &Wire, listener: u64, accepted: SocketAddr) -> Result<()> {
    wire.set_timeout(PATIENCE)?;
    let banner = Speech { text: &spec.banner, ..Speech::default() };
    let said = if spec.talk == Talk::Reset { Spoken::default() } else { wire.speak(&banner) };
    let report = match spec.talk {
        Talk::Lines => return lines::answer(wire),
        Talk::Script => {
            let mut seed = [0; 8];
            (&wire.stream).read_exact(&mut seed)?;
            play(wire, Role::Server, u64::from_le_bytes(seed))?
        }
        Talk::Exchange => {
            let (spoken, heard) = echo(wire, said);
            wire.report(None, &spoken, heard)
        }
        Talk::Report => {
            let (peer, local) = (wire.stream.peer_addr()?, wire.stream.local_addr()?);
            let option = sys::peer_name(&wire.stream)?;
            let told =
                json!({ "accepted": accepted, "peer": peer, "option": option, "local": local });
            let text = told.to_string() + "\n";
            let (spoken, heard) =
                wire.both(&Speech { text: &text, fin: true, ..Speech::default() }, None);
            wire.report(None, &spoken, heard)
        }
        Talk::Sink => {
            let mut heard = Heard::default();
            wire.hear(&mut heard, None);
            wire.report(None, &said, heard)
        }
        Talk::Reset => {
            let mut heard = Heard::default();
            let mut buffer = [0; 1024];
            let count = (&wire.stream).read(&mut buffer)?;
            heard.take(&buffer[..count], wire.start);
            let said = wire.speak(&banner);
            wire.reset_on_close()?;
            heard.end = Some(End::SentReset);
            wire.report(None, &said, heard)
        }
        Talk::Bulk => {
            let speech =
                Speech { bytes: spec.send_bytes, seed: spec.seed, fin: true, ..Speech::default() };
            let (spoken, heard) = wire.both(&speech, None);
            wire.report(None, &spoken, heard)
        }
    };
    if spec.quiet {
        return Ok(());
    }
    emit(&Event::Conn(Box::new(Conn { listener, accepted: Some(accepted), ..report })))
}

/// Sends back what comes, and ends when the client has.
fn echo(wire: &Wire, mut spoken: Spoken) -> (Spoken, Heard) {
    let mut heard = Heard::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match (&wire.stream).read(&mut buffer) {
            Ok(0) => {
                wire.fin();
                heard.end = Some(End::Fin);
                break;
            }
            Ok(count) => {
                heard.take(&buffer[..count], wire.start);
                if let Err(e) = (&wire.stream).write_all(&buffer[..count]) {
                    spoken.error.get_or_insert(format!("write: {e}"));
                    continue;
                }
                spoken.digest.update(&buffer[..count]);
            }
            Err(e) => {
                heard.end = Some((&e).into());
                heard.error = Some(format!("read: {e}"));
                break;
            }
        }
    }
    (spoken, heard)
}
