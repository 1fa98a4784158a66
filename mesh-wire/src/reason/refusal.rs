//! Reasons that cross the wire as numbers: in REFUSED and in RESET. Numbers are never reused.

use mesh_api::Fault;

use super::numbered;

numbered! {
    /// Why the destination's agent does not take a connection (REFUSED).
    Refusal(u16), to_wire, from_wire;
    PolicyDenied = 1, PolicyDenied;
    NotEnrolled = 2, DestinationNotEnrolled;
    WrongDestination = 3, WrongDestination;
    SourceMismatch = 4, SourceMismatch;
    ApplicationRefused = 5, ApplicationRefused;
    ApplicationUnreachable = 6, ApplicationUnreachable;
    ApplicationTimedOut = 7, ApplicationTimedOut;
    Draining = 8, AgentDraining;
    Overloaded = 9, AgentOverloaded;
    AgentFailure = 10, AgentFailure;
    _ = Newer, RefusedForNewerReason, "refused for reason {}, which only a newer agent knows";
}

numbered! {
    /// Why a connection is broken off (RESET).
    ResetCode(u16), to_wire, from_wire;
    ApplicationReset = 1, ApplicationReset;
    ApplicationTimedOut = 2, ApplicationConnectionTimedOut;
    ApplicationFailed = 3, ApplicationConnectionFailed;
    AgentStopping = 4, AgentStopping;
    NoLongerAllowed = 5, NoLongerAllowed;
    NotAnswered = 6, NotAnswered;
    _ = Newer, ResetForNewerReason, "reset for reason {}, which only a newer agent knows";
}

impl Refusal {
    /// The party at fault, seen by the agent that is refused.
    pub fn fault_at_client(self) -> Option<Fault> {
        let fault = self.reason().fault();
        match self {
            // The client's agent goes by what this peer, or another one, has announced.
            Self::NotEnrolled | Self::WrongDestination | Self::Newer(_) => fault,
            _ => fault.map(Fault::seen_by_peer),
        }
    }
}

impl ResetCode {
    /// The party at fault, seen by the agent that receives it.
    pub fn fault_at_receiver(self) -> Option<Fault> {
        let fault = self.reason().fault();
        if matches!(self, Self::Newer(_)) { fault } else { fault.map(Fault::seen_by_peer) }
    }
}
