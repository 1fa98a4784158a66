//! The relay over real loopback sockets.

mod basics;
mod bounds;
mod failures;
mod plain;
mod seeded;
mod streams;

use std::future::Future;

use tokio::net::TcpStream;

use super::*;
use crate::wire::SessionError;
use crate::wire::testing::{Mesh, in_time, open, sample_open, soon, tcp_pair};

/// Both relays of one connection, run until both have ended.
async fn carry_both(
    sessions: (Session, Session),
    agents: (TcpStream, TcpStream),
) -> (Carried, Carried) {
    let (a, b) = (AppStream::new(agents.0).unwrap(), AppStream::new(agents.1).unwrap());
    let (count_a, count_b) = (Counters::default(), Counters::default());
    tokio::join!(
        carry(sessions.0, a, &count_a, CarryOptions::default()),
        carry(sessions.1, b, &count_b, CarryOptions::default()),
    )
}

/// Application – agent ═ agent – application: the two applications' ends, and what happens between
/// them.
async fn mesh_pair(
    mesh: &Mesh,
) -> (TcpStream, TcpStream, impl Future<Output = (Carried, Carried)> + use<>) {
    let sessions = mesh.connection().await;
    let (app_a, agent_a) = tcp_pair().await;
    let (agent_b, app_b) = tcp_pair().await;
    (app_a, app_b, carry_both(sessions, (agent_a, agent_b)))
}

/// A small generator of reproducible bytes and choices (xorshift64*).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
