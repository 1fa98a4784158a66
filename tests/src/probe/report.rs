//! What the probe prints: one JSON object per line.

use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::race::RaceTally;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The server listens here.
    Listening(SocketAddr),
    /// A connection has ended.
    Conn(Box<Conn>),
    /// A line-wise server has read what is not a request; its first bytes, escaped.
    Garbage(String),
    /// A client under load, until now.
    Progress(Load),
    /// A client under load, when it has been stopped.
    Load(Load),
    /// The race tests' load, until now.
    Race(Box<RaceTally>),
    /// What must not happen, in words.
    Violation(String),
}

/// A connection as one side saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conn {
    /// The seed that both sides know it by, where there is one.
    pub seed: u64,
    /// Whether `connect` succeeded (a client's).
    pub connected: bool,
    /// Which listener of the group accepted it (a server's).
    pub listener: u64,
    /// What `accept` returned (a server's).
    pub accepted: Option<SocketAddr>,
    /// What `getpeername` says.
    pub peer: Option<SocketAddr>,
    /// What `SO_PEERNAME` says.
    pub peer_option: Option<SocketAddr>,
    /// What `getsockname` says.
    pub local: Option<SocketAddr>,
    /// How many bytes were read.
    pub received: u64,
    /// Their hash.
    pub received_hash: String,
    /// How many bytes were written.
    pub sent: u64,
    /// Their hash.
    pub sent_hash: String,
    /// The first bytes that were read, at most [`Conn::FIRST`], escaped as in Rust.
    pub first: String,
    /// How reading ended.
    pub end: End,
    /// The error of `connect`, reading or writing, if any.
    pub error: Option<String>,
    /// Microseconds until `connect` returned.
    pub connect_us: u64,
    /// Microseconds until the first byte was read, from the start of `connect` or from `accept`.
    pub first_byte_us: Option<u64>,
    /// Microseconds until the end.
    pub total_us: u64,
}

impl Conn {
    /// How many bytes `first` tells of.
    pub const FIRST: usize = 256;
}

/// How a connection ended, as this side saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The other side finished: `read` returned 0.
    #[default]
    Fin,
    /// ECONNRESET or EPIPE.
    Reset,
    /// ECONNREFUSED: at `connect`.
    Refused,
    /// EPERM: refused by a program on the cgroup.
    NotPermitted,
    /// EHOSTUNREACH or ENETUNREACH.
    Unreachable,
    /// EADDRNOTAVAIL or EADDRINUSE: our own address was not available.
    NoAddress,
    /// Nothing came in time.
    Timeout,
    /// This side has sent a reset, as it was told to.
    SentReset,
    /// This side closed without waiting for the other, as it was told to.
    Closed,
    /// Another error, see `error`.
    Other,
}

impl From<&io::Error> for End {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Self::Reset,
            Kind::ConnectionRefused => Self::Refused,
            Kind::PermissionDenied => Self::NotPermitted,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Self::Unreachable,
            Kind::AddrNotAvailable | Kind::AddrInUse => Self::NoAddress,
            // A read timeout on Linux is EAGAIN (socket(7), SO_RCVTIMEO).
            Kind::TimedOut | Kind::WouldBlock => Self::Timeout,
            _ => Self::Other,
        }
    }
}

/// The result of many requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Requests that were answered rightly.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Connections made.
    pub connections: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Microseconds that requests took, from before `connect` to the end; only told at the end.
    #[serde(default)]
    pub took: Took,
}

/// How long requests took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Half of them took no longer.
    pub p50_us: u64,
    /// Of a hundred, 99 took no longer.
    pub p99_us: u64,
    /// The longest.
    pub longest_us: u64,
}

impl Took {
    /// Out of the time that each took.
    pub fn of(mut each_us: Vec<u64>) -> Self {
        each_us.sort_unstable();
        let rank = |percent: usize| {
            each_us.get((each_us.len() * percent / 100).min(each_us.len().saturating_sub(1)))
        };
        let rank = |percent| rank(percent).copied().unwrap_or(0);
        Self { p50_us: rank(50), p99_us: rank(99), longest_us: rank(100) }
    }
}
