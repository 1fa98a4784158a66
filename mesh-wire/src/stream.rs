//! One application connection on a session, as a byte stream.
//!
//! For callers that want [`AsyncRead`] and [`AsyncWrite`], such as an HTTP client. The relay drives
//! the [`Channel`](crate::Channel) itself, because it moves whole records.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{Received, SMALL_BACKLOG_BYTES};
use super::frame::{DATA_BYTES, Frame};
use super::io::{poll_read, poll_write};
use super::outbox::MAX_RECORDS;
use super::reason::{ResetCode, SessionError, StateError};
use super::session::{Session, cut_off};

/// The connection that a session carries: OPEN has been sent on it (and perhaps not yet answered),
/// or received and accepted.
///
/// - A read returns 0 bytes once the peer has sent FIN. Everything that is not a FIN is an error,
///   with a [`StreamError`] inside: a RESET, a refusal, a session that was cut off.
/// - `shutdown` sends FIN. The other direction goes on.
/// - A write seals as much as may wait, and hands to the socket what it takes. The rest goes out
///   with `flush`, with the next write, or while the other side is read.
/// - Dropping it before both directions have ended cuts the session off. The peer sees a truncated
///   connection, never a clean end.
///
/// An OPEN that has not been written yet goes out together with the first bytes.
///
/// # Cancel safety
/// All of its state is in the stream. A read or write that is dropped has neither lost nor sent
/// anything that it did not report.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    /// Data that is opened and not yet read, by its place in the receive buffer.
    ready: Range<usize>,
    reading: Reading,
    /// FIN has been sealed.
    fin: bool,
    tasks: Arc<Tasks>,
}

/// What a read finds after the data.
#[derive(Debug)]
enum Reading {
    More,
    /// FIN has come.
    Ended,
    Failed(StreamError),
}

/// Why a [`Stream`] failed. It is inside the [`io::Error`]: see [`StreamError::of`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The peer has broken the connection off.
    #[error("reset by the peer: {0}")]
    Reset(ResetCode),
    /// The connection was refused, or the session has ended or broken.
    #[error(transparent)]
    Session(Arc<SessionError>),
}

/// The tasks that wait for a stream. A socket remembers one task that waits until it takes more
/// bytes, but the task that reads may have something to write as well (OPEN, a key update). So
/// either of them wakes both.
#[derive(Debug, Default)]
struct Tasks(Mutex<[Option<Waker>; 2]>);

/// The task that calls.
#[derive(Clone, Copy)]
enum Task {
    Reads,
    Writes,
}

impl Stream {
    /// The stream of the connection that a session carries.
    pub fn new(session: Session) -> Self {
        Self { session, ready: 0..0, reading: Reading::More, fin: false, tasks: Arc::default() }
    }

    /// The session below, for its identities and addresses.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, for the next connection. `None` if this one has not properly ended in both
    /// directions, or if its end has not been read and flushed; the session is then cut off.
    pub fn into_session(mut self) -> Option<Session> {
        self.session.channel.release_inbox();
        self.session.channel.release_outbox();
        let is_over = self.session.is_idle() && self.session.channel.pending().is_empty();
        is_over.then_some(self.session)
    }

    /// Opens records until there is data to read. Resolves when there is, or at the end of the
    /// stream.
    fn poll_data(&mut self, cx: &mut Context<'_>, records: usize) -> Poll<io::Result<()>> {
        self.send_what_waits(cx);
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match &self.reading {
                Reading::More => {}
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Failed(error) => return Poll::Ready(Err(error.clone().into())),
            }
            match self.session.channel.receive() {
                Ok(None) => {}
                Ok(Some(received)) => {
                    self.take(received);
                    continue;
                }
                Err(error) => {
                    self.session.channel.explain(&error);
                    self.fail(error);
                    self.send_what_waits(cx);
                    continue;
                }
            }
            let Session { tcp, channel, .. } = &mut self.session;
            let Poll::Ready(read) = poll_read(tcp, cx, channel.spare(records)) else {
                channel.release_inbox(); // it may be long
                return Poll::Pending;
            };
            match read {
                Ok(0) => self.fail(SessionError::Truncated),
                Ok(count) => self.session.channel.received(count),
                Err(error) => self.fail(cut_off(error)),
            }
        }
    }

    fn take(&mut self, received: Received) {
        match received {
            Received::Data(place) => self.ready = place,
            Received::Accepted(_) => {}
            Received::Fin => self.reading = Reading::Ended,
            Received::Reset(code) => self.reading = Reading::Failed(StreamError::Reset(code)),
            Received::Refused(refused) => self.fail(SessionError::Refused(refused)),
            Received::Closed => self.fail(SessionError::Closed),
            Received::Open(_) => self.fail(StateError::Open.into()),
        }
    }

    fn fail(&mut self, error: SessionError) {
        self.reading = Reading::Failed(error.into());
    }

    /// Before a read: writes what is sealed, as far as the socket takes it. If it fails, the read
    /// says why, since the peer may have sent the reason.
    fn send_what_waits(&mut self, cx: &mut Context<'_>) {
        if self.session.channel.pending().is_empty() {
            // A key update that the peer has asked for. What cannot be sealed fails with the next
            // write.
            self.session.channel.settle().ok();
        }
        drop(self.poll_pending(cx, Task::Reads, 0));
    }

    /// Writes sealed bytes until at most `rest` are left.
    fn poll_pending(
        &mut self,
        cx: &mut Context<'_>,
        task: Task,
        rest: usize,
    ) -> Poll<io::Result<()>> {
        if self.session.channel.pending().len() <= rest {
            return Poll::Ready(Ok(()));
        }
        let waker = Waker::from(self.tasks.with(task, cx.waker()));
        let mut both = Context::from_waker(&waker);
        let Session { tcp, channel, .. } = &mut self.session;
        while channel.pending().len() > rest {
            let count = ready!(poll_write(tcp, &mut both, channel.pending()))?;
            channel.written(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Fails if the peer takes no more bytes.
    fn check_peer(&self) -> io::Result<()> {
        match &self.reading {
            Reading::Failed(error) => Err(error.clone().into()),
            Reading::More | Reading::Ended => Ok(()),
        }
    }

    /// Seals bytes out of several slices, as many as fit into the records of one write.
    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_peer()?;
        if self.fin {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_pending(cx, Task::Writes, SMALL_BACKLOG_BYTES))?;
        let channel = &mut self.session.channel;
        let mut room = channel.data_slices(records_of(length)).map_err(StreamError::from)?;
        let count = fill(&mut room, slices);
        channel.send_data(count).map_err(StreamError::from)?;
        if let Poll::Ready(written) = self.poll_pending(cx, Task::Writes, 0) {
            written?;
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(stream.poll_data(cx, records_of(buffer.remaining())))?;
        let end = stream.ready.end.min(stream.ready.start + buffer.remaining());
        buffer.put_slice(stream.session.channel.data(stream.ready.start..end));
        stream.ready.start = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.check_peer()?;
        ready!(stream.poll_pending(cx, Task::Writes, 0))?;
        stream.session.channel.release_outbox();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_peer()?;
        if !self.fin {
            self.session.channel.send(&Frame::Fin).map_err(StreamError::from)?;
            self.fin = true;
        }
        self.poll_flush(cx)
    }
}

impl StreamError {
    /// The stream's own error in an error of its reads and writes. `None` if the socket failed.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    fn kind(&self) -> io::ErrorKind {
        let Self::Session(error) = self else { return io::ErrorKind::ConnectionReset };
        match &**error {
            SessionError::Closed => io::ErrorKind::ConnectionAborted,
            SessionError::Truncated => io::ErrorKind::UnexpectedEof,
            SessionError::Refused(_) => io::ErrorKind::ConnectionRefused,
            SessionError::TimedOut | SessionError::Silent => io::ErrorKind::TimedOut,
            SessionError::Tls { .. } | SessionError::Frame(_) | SessionError::State(_) => {
                io::ErrorKind::InvalidData
            }
            SessionError::Io(error) => error.kind(),
        }
    }
}

impl From<SessionError> for StreamError {
    fn from(error: SessionError) -> Self {
        Self::Session(Arc::new(error))
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(error.kind(), error)
    }
}

impl Tasks {
    /// Remembers a task, and returns what wakes it and the other one.
    fn with(self: &Arc<Self>, task: Task, waker: &Waker) -> Arc<Self> {
        let [reads, writes] = &mut *self.lock();
        let remembered = match task {
            Task::Reads => reads,
            Task::Writes => writes,
        };
        remembered.get_or_insert_with(|| waker.clone()).clone_from(waker);
        Arc::clone(self)
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Waker>; 2]> {
        // A panic elsewhere does not make it wrong: each change is one assignment.
        self.0.lock()
    }
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        let tasks = std::mem::take(&mut *self.lock());
        tasks.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The records that so many bytes take, of those that are read or written at once.
fn records_of(bytes: usize) -> usize {
    bytes.div_ceil(DATA_BYTES).min(MAX_RECORDS)
}

/// Copies bytes into the room, in order, and returns how many.
fn fill(room: &mut [IoSliceMut<'_>], slices: &[IoSlice<'_>]) -> usize {
    let mut room = room.iter_mut();
    let mut to: &mut [u8] = &mut [];
    let mut count = 0;
    for slice in slices {
        let mut bytes: &[u8] = slice;
        while !bytes.is_empty() {
            if to.is_empty() {
                let Some(next) = room.next() else { return count };
                to = next;
                continue;
            }
            let length = bytes.len().min(to.len());
            let (now, later) = bytes.split_at(length);
            let (here, behind) = std::mem::take(&mut to).split_at_mut(length);
            here.copy_from_slice(now);
            (bytes, to) = (later, behind);
            count += length;
        }
    }
    count
}
