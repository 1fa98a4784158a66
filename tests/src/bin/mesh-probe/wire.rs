//! One connection's bytes: written, read, counted; and its end told.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::SockRef;
use tests::probe::{Conn, Digest, End, Noise};

use crate::sys;

/// How much is read or written with one system call.
const BUFFER: usize = 256 * 1024;

/// A connection and the time since it was begun.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) start: Instant,
    /// What `getpeername`, `getsockname` and `SO_PEERNAME` said at once: later the answer may be
    /// ENOTCONN.
    ends: [Option<SocketAddr>; 3],
}

/// What one side writes.
#[derive(Debug, Default)]
pub(crate) struct Speech<'a> {
    pub(crate) text: &'a str,
    pub(crate) bytes: u64,
    pub(crate) seed: u64,
    /// Whether to end the direction afterwards.
    pub(crate) fin: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) digest: Digest,
    pub(crate) first: Vec<u8>,
    pub(crate) first_byte: Option<Duration>,
    /// `None` if reading stopped at the limit.
    pub(crate) end: Option<End>,
    pub(crate) error: Option<String>,
}

/// What was written.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    pub(crate) digest: Digest,
    pub(crate) error: Option<String>,
    /// It failed by a reset.
    reset: bool,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, start: Instant) -> Self {
        let ends =
            [stream.peer_addr(), stream.local_addr(), sys::peer_name(&stream)].map(Result::ok);
        Self { stream, start, ends }
    }

    /// No read or write takes longer than this.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(timeout))?;
        self.stream.set_write_timeout(Some(timeout))?;
        Ok(())
    }

    /// Reads to the end, or until `limit` bytes have been heard in all. Nothing more after an end.
    pub(crate) fn hear(&self, heard: &mut Heard, limit: Option<u64>) {
        if heard.end.is_some() {
            return;
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            let left = limit.map_or(u64::MAX, |limit| limit - heard.digest.bytes);
            if left == 0 {
                return;
            }
            let room = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            match (&self.stream).read(&mut buffer[..room]) {
                Ok(0) => heard.end = Some(End::Fin),
                Ok(count) => {
                    heard.take(&buffer[..count], self.start);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    heard.end = Some(End::from(&e));
                    heard.error = Some(format!("read: {e}"));
                }
            }
            return;
        }
    }

    /// Writes it all.
    pub(crate) fn speak(&self, speech: &Speech<'_>) -> Spoken {
        let mut spoken = Spoken::default();
        if let Err(e) = self.try_speak(speech, &mut spoken.digest) {
            spoken.error = Some(format!("write: {e}"));
            spoken.reset = e.kind() == io::ErrorKind::ConnectionReset;
        }
        spoken
    }

    /// Reads and writes at once.
    pub(crate) fn both(&self, speech: &Speech<'_>, limit: Option<u64>) -> (Spoken, Heard) {
        thread::scope(|scope| {
            let writer = scope.spawn(|| self.speak(speech));
            let mut heard = Heard::default();
            self.hear(&mut heard, limit);
            (writer.join().unwrap_or_default(), heard)
        })
    }

    /// Ends our direction. Fails if the connection is gone, which reading will tell too.
    pub(crate) fn fin(&self) {
        let _gone_already = self.stream.shutdown(Shutdown::Write);
    }

    /// Makes the coming close a reset (socket(7), `SO_LINGER` of 0).
    pub(crate) fn reset_on_close(&self) -> Result<()> {
        Ok(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }

    /// The report of this connection.
    pub(crate) fn report(
        &self,
        accepted: Option<SocketAddr>,
        spoken: &Spoken,
        heard: Heard,
    ) -> Conn {
        Conn {
            connected: true,
            accepted,
            peer: self.ends[0],
            local: self.ends[1],
            peer_option: self.ends[2],
            received: heard.digest.bytes,
            received_hash: heard.digest.hex(),
            sent: spoken.digest.bytes,
            sent_hash: spoken.digest.hex(),
            first: heard.first.escape_ascii().to_string(),
            end: match heard.end {
                // The reset was told to the writer, and the kernel tells it only once.
                Some(End::Fin) if spoken.reset => End::Reset,
                end => end.unwrap_or(End::Closed),
            },
            error: heard.error.or_else(|| spoken.error.clone()),
            first_byte_us: heard.first_byte.map(micros),
            total_us: micros(self.start.elapsed()),
            ..Conn::default()
        }
    }

    fn try_speak(&self, speech: &Speech<'_>, digest: &mut Digest) -> io::Result<()> {
        (&self.stream).write_all(speech.text.as_bytes())?;
        digest.update(speech.text.as_bytes());
        let mut noise = Noise::new(speech.seed);
        let mut buffer = vec![0; BUFFER];
        let mut left = speech.bytes;
        while left > 0 {
            let count = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            noise.fill(&mut buffer[..count]);
            (&self.stream).write_all(&buffer[..count])?;
            digest.update(&buffer[..count]);
            left -= count as u64;
        }
        if speech.fin {
            self.fin();
        }
        Ok(())
    }
}

impl Heard {
    pub(crate) fn take(&mut self, bytes: &[u8], start: Instant) {
        self.first_byte.get_or_insert_with(|| start.elapsed());
        let room = Conn::FIRST - self.first.len();
        self.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.digest.update(bytes);
    }
}

/// Whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
