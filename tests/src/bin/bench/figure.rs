//! The four figures: what is done, and which two runs of it are compared.

use anyhow::{Result, bail};
use serde::Serialize;

use crate::slice::Load;

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// A new connection, one byte there and back, close.
    Connect,
    /// 128 bytes there and back on a kept connection.
    RoundTrip,
    /// Bytes one way, as fast as they go.
    Stream,
    /// [`Figure::Connect`] between pods that are not in the mesh, in a cgroup with our programs.
    Untouched,
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
}

impl Figure {
    pub(crate) const ALL: [Self; 4] =
        [Self::Connect, Self::RoundTrip, Self::Stream, Self::Untouched];

    /// From the command line.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "connect" => Ok(Self::Connect),
            "round-trip" => Ok(Self::RoundTrip),
            "stream" => Ok(Self::Stream),
            "untouched" => Ok(Self::Untouched),
            _ => bail!("no figure {name}; there are connect, round-trip, stream and untouched"),
        }
    }

    /// What it is, for the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connect => "connect, 1 byte each way, close",
            Self::RoundTrip => "round trip of 128 bytes",
            Self::Stream => "stream of 64 KiB writes",
            Self::Untouched => "untouched: connect … close",
        }
    }

    /// What a client does for it.
    pub(crate) fn load(self) -> Load {
        match self {
            Self::Connect | Self::Untouched => Load::Connect,
            Self::RoundTrip => Load::RoundTrip,
            Self::Stream => Load::Stream,
        }
    }

    /// What is compared: the yardstick, and what is measured by it.
    pub(crate) fn arms(self) -> [Arm; 2] {
        match self {
            Self::Untouched => [Arm::Unattached, Arm::Attached],
            _ => [Arm::NoMesh, Arm::Mesh],
        }
    }
}
