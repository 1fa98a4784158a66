//! The figures: what is done, and which two runs of it are compared.

use anyhow::{Result, bail};
use serde::Serialize;

use crate::slice::Load;

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Figure {
    /// A new connection, one byte there and back, close.
    Connect,
    /// The same to a port that the client has not dialled before.
    First,
    /// 128 bytes there and back on a kept connection.
    RoundTrip,
    /// Bytes one way, as fast as they go.
    Stream,
    /// 16 of those at once.
    Streams,
    /// Bytes one way in small writes.
    SmallWrites,
    /// 64 clients with a connection each: round trips of 128 bytes.
    KeepAlive,
    /// 64 clients that make a connection for each round trip; the server closes it.
    Requests,
    /// [`Figure::Connect`] between pods that are not in the mesh, in a cgroup with our programs.
    Untouched,
    /// [`Figure::Connect`] between two pods of one node that say `local`.
    LocalConnect,
    /// [`Figure::RoundTrip`] between them.
    LocalRoundTrip,
    /// [`Figure::Stream`] between them.
    LocalStream,
    /// [`Figure::Connect`] between two pods of one node that say `tls`.
    TlsConnect,
    /// [`Figure::RoundTrip`] between them.
    TlsRoundTrip,
    /// [`Figure::Stream`] between them.
    TlsStream,
}

/// One of the runs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arm {
    /// Two pods outside the mesh, in a cgroup without our programs.
    NoMesh,
    /// Two pods in the mesh.
    Mesh,
    /// As `NoMesh`, on other ports: connections in `TIME_WAIT` after one figure must not slow the
    /// other.
    Unattached,
    /// The pods of `NoMesh`, in a cgroup with our programs.
    Attached,
    /// As `NoMesh`, both pods on the first node.
    OneNode,
    /// Two pods in the mesh on the first node, which say `same-node: local`.
    Local,
    /// The same with `same-node: tls`.
    Tls,
}

/// What a figure is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// The median time of an operation in µs: less is better.
    Us,
    /// Operations per second: more is better.
    PerS,
    /// Bytes per second: more is better.
    BytesPerS,
}

impl Figure {
    pub(crate) const ALL: [Self; 15] = [
        Self::Connect,
        Self::First,
        Self::RoundTrip,
        Self::Stream,
        Self::Streams,
        Self::SmallWrites,
        Self::KeepAlive,
        Self::Requests,
        Self::Untouched,
        Self::LocalConnect,
        Self::LocalRoundTrip,
        Self::LocalStream,
        Self::TlsConnect,
        Self::TlsRoundTrip,
        Self::TlsStream,
    ];

    /// Those of a quick run.
    pub(crate) const QUICK: [Self; 4] =
        [Self::Connect, Self::RoundTrip, Self::Stream, Self::Untouched];

    /// Its name on the command line and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::First => "first",
            Self::RoundTrip => "round-trip",
            Self::Stream => "stream",
            Self::Streams => "streams",
            Self::SmallWrites => "small-writes",
            Self::KeepAlive => "keep-alive",
            Self::Requests => "requests",
            Self::Untouched => "untouched",
            Self::LocalConnect => "local-connect",
            Self::LocalRoundTrip => "local-round-trip",
            Self::LocalStream => "local-stream",
            Self::TlsConnect => "tls-connect",
            Self::TlsRoundTrip => "tls-round-trip",
            Self::TlsStream => "tls-stream",
        }
    }

    /// Its place among the ratios: what is done, and how it goes there.
    pub(crate) fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::First => ("connect", "resumed"),
            Self::Untouched => ("connect", "outside"),
            Self::LocalConnect => ("connect", "local"),
            Self::LocalRoundTrip => ("round-trip", "local"),
            Self::LocalStream => ("stream", "local"),
            Self::TlsConnect => ("connect", "tls"),
            Self::TlsRoundTrip => ("round-trip", "tls"),
            Self::TlsStream => ("stream", "tls"),
            across => (across.name(), "across"),
        }
    }

    /// From the command line.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let Some(figure) = Self::ALL.into_iter().find(|figure| figure.name() == name) else {
            bail!("no figure {name}; there are {}", Self::ALL.map(Self::name).join(", "));
        };
        Ok(figure)
    }

    /// What it is, for the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connect => "connect, 1 byte each way, close",
            Self::First => "connect, first dial to a port",
            Self::RoundTrip => "round trip of 128 bytes",
            Self::Stream => "stream of 64 KiB writes",
            Self::Streams => "16 streams at once",
            Self::SmallWrites => "stream of 1 KiB writes",
            Self::KeepAlive => "64 connections, round trips",
            Self::Requests => "64 clients, a dial a round trip",
            Self::Untouched => "untouched: connect … close",
            Self::LocalConnect => "one node, local: connect",
            Self::LocalRoundTrip => "one node, local: round trip",
            Self::LocalStream => "one node, local: stream",
            Self::TlsConnect => "one node, tls: connect",
            Self::TlsRoundTrip => "one node, tls: round trip",
            Self::TlsStream => "one node, tls: stream",
        }
    }

    /// What a client does for it.
    pub(crate) fn load(self) -> Load {
        match self {
            Self::Connect | Self::Untouched | Self::LocalConnect | Self::TlsConnect => {
                Load::Connect
            }
            Self::First => Load::First,
            Self::RoundTrip | Self::KeepAlive | Self::LocalRoundTrip | Self::TlsRoundTrip => {
                Load::RoundTrip
            }
            Self::Stream | Self::Streams | Self::LocalStream | Self::TlsStream => Load::Stream,
            Self::SmallWrites => Load::SmallWrites,
            Self::Requests => Load::Request,
        }
    }

    /// How many clients do it at once.
    pub(crate) fn workers(self) -> usize {
        match self {
            Self::Streams => 16,
            Self::KeepAlive | Self::Requests => 64,
            _ => 1,
        }
    }

    /// What is counted.
    pub(crate) fn unit(self) -> Unit {
        match self.load() {
            Load::Stream | Load::SmallWrites => Unit::BytesPerS,
            _ if self.workers() > 1 => Unit::PerS,
            _ => Unit::Us,
        }
    }

    /// What is compared: the yardstick, and what is measured by it.
    pub(crate) fn arms(self) -> [Arm; 2] {
        match self {
            Self::Untouched => [Arm::Unattached, Arm::Attached],
            Self::LocalConnect | Self::LocalRoundTrip | Self::LocalStream => {
                [Arm::OneNode, Arm::Local]
            }
            Self::TlsConnect | Self::TlsRoundTrip | Self::TlsStream => [Arm::OneNode, Arm::Tls],
            _ => [Arm::NoMesh, Arm::Mesh],
        }
    }
}
