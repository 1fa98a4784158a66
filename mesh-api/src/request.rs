//! Requests and answers of the admin socket.

use serde::{Deserialize, Serialize};

use crate::{FlowRecord, PredecessorInfo, ResetReport, Status, SuccessorInfo};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Request {
    /// How the agent and its pods are.
    Status,
    /// The records kept, and with `follow` each new one as its connection ends.
    Flows {
        /// Whether to go on with new records.
        follow: bool,
    },
    /// End a pod's (`namespace/name`) connections that predate its mesh membership or strict mode.
    Reset {
        /// The pod.
        pod: String,
        /// Whether they are only to be listed.
        dry_run: bool,
    },
    /// Another agent wants to take over. The rest of this connection is between the two.
    HandOver(SuccessorInfo),
    /// The successor is ready for the listeners.
    Give,
    /// The successor has switched.
    Switched,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Flows`], one for each.
    Flow(Box<FlowRecord>),
    /// This many records were lost to a follower that was too slow.
    Lost(u64),
    /// To [`Request::Reset`].
    Reset(Box<ResetReport>),
    /// To [`Request::HandOver`].
    #[serde(rename = "estate")]
    HandOver(Box<PredecessorInfo>),
    /// To [`Request::Switched`].
    Released,
    /// The request was not understood, or is refused.
    Error(String),
}
