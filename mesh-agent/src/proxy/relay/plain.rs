//! The rules of [`super::carry`] between two plain connections, for what the agent carries without
//! TLS.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use mesh_wire::{
    ResetCode,
    buffers::{self, UNIT_BYTES},
    hello::{self, Hello},
    io::{poll_read, poll_write, shutdown_write},
};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::appetite::Appetite;
use super::end::reset_code;
use super::{AppStream, CarryOptions, Counters, End, GRACE, Memory, Party, far_future, stopped};
use crate::proxy::memory::Lease;
use crate::proxy::socket_memory::Meter;

/// Carries one connection between two sockets without TLS. It ends as in [`super::carry`]: `app` is
/// [`Party::App`], `peer` is [`Party::Peer`]. There is no OPEN that must be answered in time.
///
/// # Cancel safety
/// Dropping the future resets both.
pub async fn relay_plain(
    app: AppStream,
    peer: AppStream,
    counters: &Counters,
    options: CarryOptions<'_>,
) -> End {
    let CarryOptions { memory, stop, .. } = options;
    let ([room_up, room_down], meter) = Memory::split(memory);
    let up = Pipe::new(app.tcp(), peer.tcp(), room_up);
    finish(run(up, (room_down, meter), counters, stop).await, app, peer)
}

/// As [`relay_plain`], but holds back the first bytes of `app` until they are known not to be an
/// agent's `ClientHello`. If they are one, both sides are reset and not a byte has reached `peer`.
///
/// # Cancel safety
/// Dropping the future resets both.
pub async fn relay_plain_held(
    app: AppStream,
    peer: AppStream,
    counters: &Counters,
    options: CarryOptions<'_>,
) -> End {
    let CarryOptions { memory, stop, .. } = options;
    let ([room_up, room_down], meter) = Memory::split(memory);
    let up = Pipe { held: true, ..Pipe::new(app.tcp(), peer.tcp(), room_up) };
    finish(run(up, (room_down, meter), counters, stop).await, app, peer)
}

fn finish(end: End, app: AppStream, peer: AppStream) -> End {
    if matches!(end, End::Finished { .. }) {
        app.finish();
        peer.finish();
    }
    end
}

async fn run(
    mut up: Pipe<'_>,
    (room_down, mut meter): (Option<Lease>, Option<Box<Meter>>),
    counters: &Counters,
    stop: Option<watch::Receiver<Option<ResetCode>>>,
) -> End {
    let (app, peer) = (up.source, up.sink);
    let mut down = Pipe::new(peer, app, room_down);
    let mut stopped = pin!(stopped(stop));
    let mut app_error = pin!(app.ready(Interest::ERROR));
    let mut peer_error = pin!(peer.ready(Interest::ERROR));
    let (mut app_failed, mut peer_failed) = (false, false);
    let mut first_fin = None;
    let mut grace = pin!(tokio::time::sleep_until(far_future()));
    let mut grace_runs = false;
    poll_fn(|cx| {
        if let Poll::Ready(code) = stopped.as_mut().poll(cx) {
            return Poll::Ready(End::Stopped(code));
        }
        app_failed = app_failed || app_error.as_mut().poll(cx).is_ready();
        peer_failed = peer_failed || peer_error.as_mut().poll(cx).is_ready();
        let (mut up_moved, mut down_moved) = (false, false);
        loop {
            let step_up = up.step(cx, down.sink_error, app_failed, |n| counters.add_to_peer(n));
            let step_down =
                down.step(cx, up.sink_error, peer_failed, |n| counters.add_from_peer(n));
            if up.fin {
                first_fin.get_or_insert(Party::App);
            }
            if down.fin {
                first_fin.get_or_insert(Party::Peer);
            }
            if up.is_agent {
                return Poll::Ready(End::LateClientHello);
            }
            match (step_up, step_down) {
                (Err(code), _) => return Poll::Ready(End::ResetByApp(code)),
                (_, Err(code)) => return Poll::Ready(End::ResetByPeer(code)),
                (Ok(_), Ok(_)) if up.shut && down.shut => {
                    let first = first_fin.unwrap_or(Party::App);
                    return Poll::Ready(End::Finished { first });
                }
                (Ok(false), Ok(false)) => {
                    up.rest();
                    down.rest();
                    break;
                }
                (Ok(up), Ok(down)) => {
                    up_moved |= up;
                    down_moved |= down;
                }
            }
        }
        if let Some(meter) = &mut meter {
            let is_blocked = up.start < up.end || down.start < down.end;
            meter.poll(cx, [app, peer], is_blocked, counters.sum());
        }
        let app_is_dead = app_failed || down.sink_error.is_some();
        if app_is_dead || peer_failed || up.sink_error.is_some() {
            // The direction that leads away from the failure has to make progress.
            if !grace_runs || if app_is_dead { up_moved } else { down_moved } {
                grace.as_mut().reset(Instant::now() + GRACE);
                grace_runs = true;
            }
            if grace.as_mut().poll(cx).is_ready() {
                let code = ResetCode::ApplicationReset;
                let end = if app_is_dead { End::ResetByApp } else { End::ResetByPeer };
                return Poll::Ready(end(code));
            }
        }
        Poll::Pending
    })
    .await
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
        }
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
        if self.start < self.end && !self.held {
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
