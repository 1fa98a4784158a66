//! The question and its answer (docs/wire.md, the path probe).

use std::{net::SocketAddr, time::Duration};

use mesh_common::ports;
use mesh_wire::{Accepted, Frame, Open, Session, SessionError};
use tokio::time::{Instant, timeout_at};

use super::{Answer, MeshedPeer, Seen};
use crate::proxy::{
    Mesh,
    dial::{self, DialError},
    outbound::HANDSHAKE_TIMEOUT,
    peer::PeerError,
    pod::Pod,
};

/// How long an answer may take in all: a connection waits for it. A lost SYN is retransmitted after
/// a second, which is too late.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks a pod's agent which source it sees. Dials exactly as for an application.
///
/// # Cancel safety
/// If dropped, the question is given up.
pub(super) async fn ask(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer) -> Answer {
    let deadline = Instant::now() + ASK_TIMEOUT;
    let asked = timeout_at(deadline, sent_and_seen(mesh, pod, peer, deadline)).await;
    let detail = match asked {
        Ok(Ok((sent, Some(seen)))) if sent == seen => return Answer::Intact,
        Ok(Ok((sent, Some(seen)))) => {
            return Answer::Changed(Seen {
                pod: pod.name.to_string(),
                node: peer.node.clone(),
                target: peer.target.ip(),
                sent,
                arrived: seen,
            });
        }
        Ok(Ok((_sent, None))) => "the peer's agent did not say what it sees".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => format!("no answer within {} s", ASK_TIMEOUT.as_secs()),
    };
    Answer::Unanswered { detail }
}

async fn sent_and_seen(
    mesh: &Mesh,
    pod: &Pod,
    peer: &MeshedPeer,
    deadline: Instant,
) -> Result<(SocketAddr, Option<SocketAddr>), PeerError> {
    let to = SocketAddr::new(peer.target.ip(), ports::AGENTS);
    let tls = mesh.tls.client(&pod.identity, Some(&peer.expected))?;
    let (stream, _lease) = dial::to_peer(mesh, pod, to).await?;
    let sent = stream.local_addr().map_err(DialError::Socket)?;
    let mut session = Session::connect(stream, &tls, deadline).await?;
    session.send_open(&Open {
        source: sent,
        original_destination: to,
        destination_port: None,
        source_pod: None,
        trace_id: None,
    })?;
    session.channel.send(&Frame::Fin)?;
    let accepted = session.recv_accepted(deadline).await?;
    session.close().await;
    Ok((sent, accepted.seen_source))
}

/// Tells a peer's agent, which has sent OPEN, which source it is seen from.
///
/// # Errors
/// The answer did not reach it.
pub(in crate::proxy) async fn answer(
    mut session: Session,
    pod: &Pod,
    from: SocketAddr,
) -> Result<(), SessionError> {
    let destination_pod_uid = Some(pod.uid.to_string());
    session.send_accepted(&Accepted { destination_pod_uid, seen_source: Some(from) })?;
    session.channel.send(&Frame::Fin)?;
    session.flush().await?;
    // The peer has its answer and closes.
    drop(timeout_at(Instant::now() + HANDSHAKE_TIMEOUT, session.ended()).await);
    Ok(())
}
