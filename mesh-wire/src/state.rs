//! Which frame may come when (docs/wire.md, states). Pure logic: no bytes, no sockets.

use super::reason::StateError;

/// Which end of the TLS session we are. Only the client opens connections on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// A frame's type, as far as order is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Open,
    Accepted,
    Refused,
    Data,
    Fin,
    Reset,
}

/// Where the conversation on a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConversationState {
    /// No connection; the client may open one.
    Idle,
    /// A connection, from OPEN on.
    Connection {
        /// The server has accepted it.
        accepted: bool,
        /// The client has ended its direction.
        client_fin: bool,
        /// The server has ended its direction.
        server_fin: bool,
    },
    /// After REFUSED or RESET: nothing may follow but `close_notify`.
    Over,
}

impl ConversationState {
    /// The state after `by` has sent `step`.
    ///
    /// # Errors
    /// The step may not come now from that side.
    pub(super) fn after(self, by: Role, step: Step) -> Result<Self, StateError> {
        let refused = match step {
            Step::Open => StateError::Open,
            Step::Accepted | Step::Refused => StateError::Answer,
            Step::Data => StateError::Data,
            Step::Fin => StateError::Fin,
            Step::Reset => StateError::Reset,
        };
        let Self::Connection { accepted, client_fin, server_fin } = self else {
            return match (self, by, step) {
                (Self::Idle, Role::Client, Step::Open) => {
                    Ok(Self::Connection { accepted: false, client_fin: false, server_fin: false })
                }
                _ => Err(refused),
            };
        };
        let (may_send, fin_of_other) = match by {
            Role::Client => (!client_fin, server_fin),
            Role::Server => (accepted && !server_fin, client_fin),
        };
        match (by, step) {
            (Role::Server, Step::Accepted) if !accepted => {
                Ok(Self::Connection { accepted: true, client_fin, server_fin })
            }
            (Role::Server, Step::Refused) if !accepted => Ok(Self::Over),
            (_, Step::Reset) => Ok(Self::Over),
            (_, Step::Data) if may_send => Ok(self),
            (_, Step::Fin) if may_send && fin_of_other => Ok(Self::Idle),
            (Role::Client, Step::Fin) if may_send => {
                Ok(Self::Connection { accepted, client_fin: true, server_fin })
            }
            (Role::Server, Step::Fin) if may_send => {
                Ok(Self::Connection { accepted, client_fin, server_fin: true })
            }
            _ => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: &[(Role, Step)]) -> Result<ConversationState, StateError> {
        steps.iter().try_fold(ConversationState::Idle, |state, &(by, step)| state.after(by, step))
    }

    #[test]
    fn a_connection_from_open_to_idle_in_every_order_of_fins() {
        use Role::{Client as C, Server as S};
        use Step::{Accepted, Data, Fin, Open};
        for steps in [
            &[(C, Open), (C, Data), (S, Accepted), (S, Data), (C, Fin), (S, Fin)][..],
            &[(C, Open), (C, Fin), (S, Accepted), (S, Data), (S, Fin)],
            &[(C, Open), (S, Accepted), (S, Fin), (C, Data), (C, Fin)],
        ] {
            assert_eq!(run(steps), Ok(ConversationState::Idle), "{steps:?}");
        }
    }

    #[test]
    fn what_may_not_come_is_named() {
        use Role::{Client as C, Server as S};
        use Step::{Accepted, Data, Fin, Open, Refused, Reset};
        for (steps, error) in [
            (&[(S, Open)][..], StateError::Open),
            (&[(C, Open), (C, Open)], StateError::Open),
            (&[(C, Data)], StateError::Data),
            (&[(C, Fin)], StateError::Fin),
            (&[(C, Reset)], StateError::Reset),
            (&[(S, Accepted)], StateError::Answer),
            (&[(C, Accepted)], StateError::Answer),
            (&[(C, Open), (C, Accepted)], StateError::Answer),
            (&[(C, Open), (S, Data)], StateError::Data),
            (&[(C, Open), (S, Fin)], StateError::Fin),
            (&[(C, Open), (C, Fin), (C, Data)], StateError::Data),
            (&[(C, Open), (C, Fin), (C, Fin)], StateError::Fin),
            (&[(C, Open), (S, Accepted), (S, Accepted)], StateError::Answer),
            (&[(C, Open), (S, Accepted), (S, Refused)], StateError::Answer),
            (&[(C, Open), (S, Refused), (C, Data)], StateError::Data),
            (&[(C, Open), (S, Refused), (C, Open)], StateError::Open),
            (&[(C, Open), (S, Reset), (C, Fin)], StateError::Fin),
            (&[(C, Open), (C, Reset), (C, Reset)], StateError::Reset),
        ] {
            assert_eq!(run(steps), Err(error), "{steps:?}");
        }
    }
}
