//! The question and its answer (docs/wire.md, the path probe).

use std::{net::SocketAddr, time::Duration};

use mesh_common::{ports, verdict::Verdict};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{Answer, MeshedPeer, Seen};
use crate::{
    flows::{Bytes, Direction, Ended, Party},
    proxy::{
        Mesh,
        dial::{self, DialError},
        outbound::HANDSHAKE_TIMEOUT,
        peer::PeerError,
        pod::Pod,
    },
    wire::{Accepted, Frame, Open, Session},
};

/// How long an answer may take in all: somebody's connection waits for it. A SYN that was lost is sent again after a second,
/// which is not waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks a pod's agent from where it is reached: dials exactly as for an application.
///
/// # Cancel safety
/// Dropped, the question is given up.
pub(super) async fn ask(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer) -> Answer {
    let deadline = Instant::now() + ASK_TIMEOUT;
    let asked = timeout_at(deadline, sent_and_seen(mesh, pod, peer, deadline)).await;
    let detail = match asked {
        Ok(Ok((sent, Some(seen)))) if sent == seen => return Answer::Intact,
        Ok(Ok((sent, Some(seen)))) => {
            return Answer::Masqueraded(Seen {
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
    let to = SocketAddr::new(peer.target.ip(), ports::PATH_PROBE);
    let tls = mesh.tls.client(&pod.identity, Some(&peer.expected))?;
    let (stream, _lease) = dial::to_peer(mesh, pod, to).await?;
    let sent = stream.local_addr().map_err(DialError::Socket)?;
    let mut session = Session::connect(stream, &tls, deadline).await?;
    session.send_open(&Open {
        source: sent,
        original_destination: to,
        source_pod: None,
        trace_id: None,
    })?;
    session.channel.send(&Frame::Fin)?;
    let accepted = session.recv_accepted(deadline).await?;
    session.close().await;
    Ok((sent, accepted.seen_source))
}

/// Tells a peer's agent from where it is seen; whether it could be told. Only what goes wrong becomes a record.
pub(in crate::proxy) async fn answer(
    mesh: &Mesh,
    pod: &Pod,
    stream: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
) -> bool {
    let told = tell(mesh, pod, stream, from).await;
    if let Err(error) = &told {
        let (mut client, mut server) = (Party::at(from), Party::at(to));
        mesh.name(&mut client);
        server.pod = Some(pod.name.to_string());
        let verdict = Verdict::InboundProbe.code();
        let flow = mesh.flows.begin(Direction::Inbound, client, server, verdict);
        flow.end(&Ended::new(error.code(), error.to_string()), Bytes::default());
    }
    told.is_ok()
}

async fn tell(
    mesh: &Mesh,
    pod: &Pod,
    stream: TcpStream,
    from: SocketAddr,
) -> Result<(), PeerError> {
    let tls = mesh.tls.server(&pod.identity)?;
    let mut session = Session::accept(stream, &tls, Instant::now() + HANDSHAKE_TIMEOUT).await?;
    drop(tls);
    let _asked: Open = session.recv_open(Instant::now() + HANDSHAKE_TIMEOUT).await?;
    let destination_pod_uid = Some(pod.uid.to_string());
    session.send_accepted(&Accepted { destination_pod_uid, seen_source: Some(from) })?;
    session.channel.send(&Frame::Fin)?;
    session.flush().await?;
    // The peer has all it wanted and closes.
    drop(timeout_at(Instant::now() + HANDSHAKE_TIMEOUT, session.ended()).await);
    Ok(())
}
