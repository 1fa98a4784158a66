//! The question and its answer (docs/wire.md, the path probe).

use std::{net::SocketAddr, time::Duration};

use mesh_api::WirePort;
use mesh_common::maps::DialOptions;
use mesh_wire::{Accepted, Frame, Open, Session, SessionError};
use tokio::time::{Instant, timeout_at};

use super::{Answer, MeshedPeer, SourceChange, Unanswered};
use crate::proxy::{
    dial::{DialError, DialledPeer},
    peer::{HANDSHAKE_TIMEOUT, PeerError},
    pod::Pod,
    upstream::{Connector, Target, Upstream},
};

/// How long an answer may take in all: a connection waits for it. A lost SYN is retransmitted after
/// a second, which is too late.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks a pod's agent which source it sees. Dials exactly as for an application.
///
/// # Cancel safety
/// If dropped, the question is given up.
pub(super) async fn ask(connector: Connector<'_>, pod: &Pod, peer: &MeshedPeer) -> Answer {
    let deadline = Instant::now() + ASK_TIMEOUT;
    let target = Target::of(peer, WirePort::Agents, DialOptions::default());
    let unanswered = |is_dropped, detail| {
        Answer::Unanswered(Unanswered {
            pod: pod.name.to_string(),
            node: peer.node.clone(),
            target: peer.target.ip(),
            detail,
            is_dropped,
            is_reached: false,
            is_confirmed: false,
        })
    };
    let no_answer = || format!("no answer within {} s", ASK_TIMEOUT.as_secs());
    let dialled = match timeout_at(deadline, connector.dial(pod, target)).await {
        Ok(Ok(dialled)) => dialled,
        Ok(Err(error)) => {
            let is_dropped =
                matches!(error, DialError::TimedOut { .. } | DialError::Refused { .. });
            return unanswered(is_dropped, error.to_string());
        }
        Err(_elapsed) => return unanswered(true, no_answer()),
    };
    let asking = sent_and_seen(connector, pod, target, dialled, deadline);
    match timeout_at(deadline, asking).await {
        Ok(Ok((sent, Some(seen)))) if sent == seen => Answer::Intact,
        Ok(Ok((sent, Some(seen)))) => Answer::Changed(SourceChange {
            pod: pod.name.to_string(),
            node: peer.node.clone(),
            target: peer.target.ip(),
            sent,
            arrived: seen,
        }),
        Ok(Ok((_sent, None))) => {
            unanswered(false, "the peer's agent did not say what it sees".to_owned())
        }
        Ok(Err(error)) => unanswered(false, error.to_string()),
        Err(_elapsed) => unanswered(false, no_answer()),
    }
}

async fn sent_and_seen(
    connector: Connector<'_>,
    pod: &Pod,
    target: Target<'_>,
    dialled: DialledPeer,
    deadline: Instant,
) -> Result<(SocketAddr, Option<SocketAddr>), PeerError> {
    let Upstream { mut session, from, lease: _lease, .. } =
        connector.secure(pod, target, dialled).await?;
    session.send_open(&Open {
        source: from,
        original_destination: target.on_the_wire(),
        destination_port: None,
        acknowledges_drops: false, // nothing is carried
    })?;
    session.channel.send(&Frame::Fin)?;
    let accepted = session.recv_accepted(deadline).await?;
    session.close().await;
    Ok((from, accepted.seen_source))
}

/// Tells a peer's agent, which has sent OPEN, which source it is seen from.
///
/// # Errors
/// The answer did not reach it.
pub(in crate::proxy) async fn answer(
    mut session: Session,
    from: SocketAddr,
) -> Result<(), SessionError> {
    session.send_accepted(&Accepted { seen_source: Some(from), ..Accepted::default() })?;
    session.channel.send(&Frame::Fin)?;
    session.flush().await?;
    // The peer has its answer and closes.
    drop(timeout_at(Instant::now() + HANDSHAKE_TIMEOUT, session.ended()).await);
    Ok(())
}
