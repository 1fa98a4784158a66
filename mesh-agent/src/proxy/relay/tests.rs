//! The relay over real loopback sockets.

mod again;
mod basics;
mod bounds;
mod failures;
mod plain;
mod seeded;
mod streams;

use std::future::Future;

use mesh_wire::{
    SessionError,
    testing::{Dice, Mesh, in_time, open, sample_open, soon, tcp_pair},
};
use tokio::net::TcpStream;

use super::*;

/// Both relays of one connection, run until both have ended.
async fn carry_both(
    sessions: (Session, Session),
    agents: (TcpStream, TcpStream),
) -> (Carried, Carried) {
    let (a, b) = (AppStream::new(agents.0).unwrap(), AppStream::new(agents.1).unwrap());
    let (count_a, count_b) = (ByteCounts::default(), ByteCounts::default());
    tokio::join!(
        carry(sessions.0, a, &count_a, CarryOptions::default()),
        carry(sessions.1, b, &count_b, CarryOptions::default()),
    )
}

/// Application – agent ═ agent – application: the two applications' ends, and what happens
/// between them.
async fn mesh_pair(
    mesh: &Mesh,
) -> (TcpStream, TcpStream, impl Future<Output = (Carried, Carried)> + use<>) {
    let sessions = mesh.connection().await;
    let (app_a, agent_a) = tcp_pair().await;
    let (agent_b, app_b) = tcp_pair().await;
    (app_a, app_b, carry_both(sessions, (agent_a, agent_b)))
}
