//! The rules of [`super::carry`] between two plain connections, for what the agent carries without
//! TLS.

use std::io;
use std::task::{Context, Poll};

use mesh_wire::{
    ResetCode,
    buffers::{self, UNIT_BYTES},
    hello::{self, Hello},
    io::{poll_read, poll_write, shutdown_write},
};
use tokio::net::TcpStream;

use super::appetite::Appetite;
use super::drive::{Dead, Directions, drive};
use super::end::reset_code;
use super::{AppStream, ByteCounts, End, Memory, RelaySide};
use crate::proxy::memory::Lease;

/// Carries one connection between two sockets without TLS. It ends as in [`super::carry`]: `app` is
/// [`RelaySide::App`], `peer` is [`RelaySide::Peer`]. `memory` is what it may take beyond its first
/// buffers; `None`: as much as it wants.
///
/// # Cancel safety
/// Dropping the future resets both.
pub async fn relay_plain(
    app: AppStream,
    peer: AppStream,
    counters: &ByteCounts,
    memory: Option<Memory>,
) -> End {
    relay(app, peer, counters, memory, false).await
}

/// As [`relay_plain`], but holds back the first bytes of `app` until they are known not to be an
/// agent's `ClientHello`. If they are one, both sides are reset and not a byte has reached `peer`.
///
/// # Cancel safety
/// Dropping the future resets both.
pub async fn relay_plain_held(
    app: AppStream,
    peer: AppStream,
    counters: &ByteCounts,
    memory: Option<Memory>,
) -> End {
    relay(app, peer, counters, memory, true).await
}

async fn relay(
    app: AppStream,
    peer: AppStream,
    counters: &ByteCounts,
    memory: Option<Memory>,
    held: bool,
) -> End {
    let ([room_up, room_down], meter) = Memory::split(memory);
    let sockets = [app.tcp(), peer.tcp()];
    let mut pipes = Pipes {
        up: Pipe { held, ..Pipe::new(app.tcp(), peer.tcp(), room_up) },
        down: Pipe::new(peer.tcp(), app.tcp(), room_down),
        counters,
        first_fin: None,
    };
    let end = drive(&mut pipes, sockets, counters, meter, None).await;
    if matches!(end, End::Finished { .. }) {
        app.finish();
        peer.finish();
    }
    end
}

struct Pipes<'a> {
    up: Pipe<'a>,
    down: Pipe<'a>,
    counters: &'a ByteCounts,
    first_fin: Option<RelaySide>,
}

impl Directions for Pipes<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, dead: Dead) -> Poll<End> {
        let Self { up, down, counters, first_fin } = self;
        loop {
            let step_up = up.step(cx, down.sink_error, dead.app, |n| counters.add_to_peer(n));
            let step_down = down.step(cx, up.sink_error, dead.peer, |n| counters.add_from_peer(n));
            if up.fin {
                first_fin.get_or_insert(RelaySide::App);
            }
            if down.fin {
                first_fin.get_or_insert(RelaySide::Peer);
            }
            if up.is_agent {
                return Poll::Ready(End::LateClientHello);
            }
            match (step_up, step_down) {
                (Err(code), _) => return Poll::Ready(End::ResetByApp(code)),
                (_, Err(code)) => return Poll::Ready(End::ResetByPeer(code)),
                (Ok(_), Ok(_)) if up.shut && down.shut => {
                    let first = first_fin.unwrap_or(RelaySide::App);
                    return Poll::Ready(End::Finished { first });
                }
                (Ok(false), Ok(false)) => {
                    up.rest();
                    down.rest();
                    return Poll::Pending;
                }
                (Ok(moved_up), Ok(moved_down)) => {
                    up.moved |= moved_up;
                    down.moved |= moved_down;
                }
            }
        }
    }

    fn is_blocked(&self) -> bool {
        self.up.is_blocked() || self.down.is_blocked()
    }

    fn take_moved(&mut self) -> [bool; 2] {
        [&mut self.up.moved, &mut self.down.moved].map(std::mem::take)
    }

    fn failed(&self, dead: Dead) -> Option<RelaySide> {
        if dead.app || self.down.sink_error.is_some() {
            Some(RelaySide::App)
        } else if dead.peer || self.up.sink_error.is_some() {
            Some(RelaySide::Peer)
        } else {
            None
        }
    }

    fn peer_is_silent(&mut self) -> End {
        End::ResetByPeer(ResetCode::ApplicationTimedOut)
    }

    fn give_up(&mut self, failed: RelaySide) -> End {
        match failed {
            RelaySide::App => End::ResetByApp(ResetCode::ApplicationReset),
            RelaySide::Peer => End::ResetByPeer(ResetCode::ApplicationReset),
        }
    }
}

/// One direction.
struct Pipe<'a> {
    source: &'a TcpStream,
    sink: &'a TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The source has ended.
    fin: bool,
    /// … and the sink has been told, after all data.
    shut: bool,
    /// The source was reset. Passed on once all data before it is written.
    reset: Option<ResetCode>,
    /// Why the sink takes nothing more.
    sink_error: Option<io::ErrorKind>,
    /// What has been read is held until it is known whether an agent speaks.
    held: bool,
    /// … and one does.
    is_agent: bool,
    appetite: Appetite,
    moved: bool,
}

impl<'a> Pipe<'a> {
    fn new(source: &'a TcpStream, sink: &'a TcpStream, room: Option<Lease>) -> Self {
        let mut appetite = Appetite::default();
        appetite.feed_from(room);
        Self {
            source,
            sink,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            fin: false,
            shut: false,
            reset: None,
            sink_error: None,
            held: false,
            is_agent: false,
            appetite,
            moved: false,
        }
    }

    fn is_blocked(&self) -> bool {
        self.start < self.end
    }

    /// Reads once or writes once. `write_error` is the error that the other direction met when it
    /// wrote to our source. `failed` says whether the source's socket has an error.
    ///
    /// # Errors
    /// The source was reset, and everything before it has been written.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        write_error: Option<io::ErrorKind>,
        failed: bool,
        count: impl Fn(usize),
    ) -> Result<bool, ResetCode> {
        if self.is_blocked() && !self.held {
            if self.sink_error.is_some() {
                self.start = self.end;
                return Ok(true);
            }
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            return match poll_write(self.sink, cx, rest) {
                Poll::Pending => Ok(false),
                Poll::Ready(Ok(written)) => {
                    count(written);
                    self.start += written;
                    Ok(true)
                }
                Poll::Ready(Err(error)) => {
                    self.sink_error = Some(error.kind());
                    Ok(true)
                }
            };
        }
        if let Some(code) = self.reset {
            return Err(code);
        }
        if self.fin {
            let newly = !self.shut;
            if newly {
                shutdown_write(self.sink).ok(); // if it fails, the other direction finds out
                self.shut = true;
            }
            return match write_error {
                Some(error) => Err(reset_code(error)),
                None if failed => Err(ResetCode::ApplicationReset),
                None => Ok(newly),
            };
        }
        Ok(self.read(cx, write_error))
    }

    fn read(&mut self, cx: &mut Context<'_>, write_error: Option<io::ErrorKind>) -> bool {
        if !self.held {
            (self.start, self.end) = (0, 0);
        }
        if self.end == 0 {
            let size = self.appetite.records() * UNIT_BYTES;
            if self.buffer.len() != size {
                buffers::give_back(std::mem::take(&mut self.buffer));
                self.buffer = buffers::take(size);
            }
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let room = free.len();
        match poll_read(self.source, cx, free) {
            Poll::Pending => return false,
            // The beginning of an agent's `ClientHello`, and then the end: it must not reach an
            // application either.
            Poll::Ready(Ok(0)) if self.held && self.end > 0 => self.is_agent = true,
            Poll::Ready(Ok(0)) => match write_error {
                Some(error) if error != io::ErrorKind::BrokenPipe => {
                    self.reset = Some(reset_code(error));
                }
                _ => self.fin = true,
            },
            Poll::Ready(Ok(count)) => {
                self.end += count;
                self.appetite.fed(count, room);
                self.judge();
            }
            Poll::Ready(Err(error)) => self.reset = Some(reset_code(error.kind())),
        }
        true
    }

    /// Nothing moves for now: an empty buffer goes back for other connections.
    fn rest(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            buffers::give_back(std::mem::take(&mut self.buffer));
            self.appetite.rest();
        }
    }

    /// Releases what is held once it is known not to come from an agent.
    fn judge(&mut self) {
        if self.held {
            // The buffer holds more than `hello::MAX_BYTES`, which is enough to tell.
            let looks = hello::look(self.buffer.get(..self.end).unwrap_or_default());
            self.is_agent = looks == Hello::Mesh;
            self.held = matches!(looks, Hello::Mesh | Hello::Incomplete);
        }
    }
}

const _: () = assert!(hello::MAX_BYTES < UNIT_BYTES);
