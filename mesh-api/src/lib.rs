//! What an agent says, and what is asked of it: the admin protocol, the record of a connection, and
//! how a pod stands. The command line prints these types as they are (`-o json`).
//!
//! Nothing here asks the kernel, the network or a clock.
#![warn(missing_docs)]

mod codes;
mod flow;
mod handover;
mod mode;
mod plaintext;
mod pod;
mod ports;
mod problem;
mod request;
mod status;

pub use codes::{
    About, Fault, Outcome, PlaintextReason, PodCode, PodState, ProblemCode, Reason, about_verdict,
};
pub use flow::{Bytes, Direction, FlowRecord, Party, Security, TlsFacts, WirePort};
pub use handover::{HANDOVER_VERSION, Listener, PredecessorInfo, SuccessorInfo};
pub use mode::{Mode, NotSameNode, SameNode};
pub use plaintext::{PlaintextConnection, PlaintextFacts, ResetConnection, ResetReport};
pub use pod::PodStatus;
pub use ports::{MAX_PORTS, MAX_RANGES, PortSet, PortSetError};
pub use problem::ProblemFacts;
pub use request::{Request, Response};
pub use status::{
    IdentityFacts, KnowledgeFacts, KnowledgeSource, NodeCounters, NotCarried, OpenPeer,
    SessionCounters, Status,
};
