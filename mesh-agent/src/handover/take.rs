//! The successor's side.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::{PredecessorInfo, Request, Response, SuccessorInfo};
use mesh_common::maps::ListenerKey;
use socket2::Socket;
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::give;
use crate::{admin::socket_path, flows::FlowStore, sys};

/// How long the predecessor may take for each answer: a leaving pod is given 3 s to leave.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of an answer that was not expected is shown, in characters.
const LONGEST_SHOWN: usize = 200;

/// How long a successor may take from the predecessor's first answer until it has switched. The
/// predecessor waits longer. So a late successor finds it out itself, and never goes on changing
/// what the predecessor has put back.
const SWITCH_WITHIN: Duration = Duration::from_secs(20);
const _: () = assert!(SWITCH_WITHIN.as_secs() < give::PATIENCE.as_secs());

/// Why the node was not taken over.
#[derive(Debug, Error)]
pub enum TakeOverError {
    /// No agent answers although the lock is held.
    #[error(
        "the agent that runs for this node does not answer at {path}: {source}; stop it, or kill it if it hangs"
    )]
    NoAnswer {
        /// Its admin socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It said no.
    #[error("the agent that runs for this node does not hand over: {said}")]
    Refused {
        /// Its sentence.
        said: String,
    },
    /// It said something that the protocol does not have.
    #[error(
        "the agent that runs for this node answered what this version does not understand ({said:?}); stop it first"
    )]
    Answer {
        /// What.
        said: String,
    },
    /// The connection to it failed.
    #[error("the agent that runs for this node broke off the hand-over: {0}")]
    Broken(#[from] io::Error),
    /// This agent was not ready in time.
    #[error(
        "this agent was not ready to take over within {} s, so the one that runs for this node goes on; is the machine too busy? Try again", SWITCH_WITHIN.as_secs()
    )]
    TooSlow,
    /// It has gone on by itself.
    #[error(
        "the agent that runs for this node has taken it back: this one was too slow; try again"
    )]
    TakenBack,
}

/// The listeners of a predecessor, by the cookie of their pod's namespace.
pub type Inherited = HashMap<u64, Vec<(ListenerKey, Socket)>>;

/// The agent that is in charge until [`Predecessor::release`].
pub struct Predecessor {
    stream: BufReader<UnixStream>,
    until: Instant,
    /// Its process.
    pub pid: u32,
    /// The id of the cgroup that it dials from.
    pub cgroup: u64,
}

/// The beginning of an answer that was not expected.
fn shown(answer: &Response) -> String {
    serde_json::to_string(answer).unwrap_or_default().chars().take(LONGEST_SHOWN).collect()
}

impl Predecessor {
    /// Asks the agent of a runtime directory to hand over.
    ///
    /// # Errors
    /// See [`TakeOverError`]; nothing has changed then.
    pub async fn ask(
        runtime_dir: &Path,
        ask: SuccessorInfo,
    ) -> Result<(Self, Inherited), TakeOverError> {
        let path = socket_path(runtime_dir);
        let stream = UnixStream::connect(&path).await;
        let stream = stream.map_err(|source| TakeOverError::NoAnswer { path, source })?;
        let mut stream = BufReader::new(stream);
        let predecessor = match said(&mut stream, &Request::HandOver(ask)).await? {
            Response::HandOver(predecessor) => *predecessor,
            Response::Error(said) => return Err(TakeOverError::Refused { said }),
            other => return Err(TakeOverError::Answer { said: shown(&other) }),
        };
        let until = Instant::now() + SWITCH_WITHIN;
        // Only now, so that no descriptor comes along with the line that was just read into a
        // buffer.
        write(&mut stream, &Request::Give).await?;
        let inherited = timeout(PATIENCE, receive(stream.get_ref(), &predecessor)).await;
        let inherited = inherited.map_err(io::Error::from)??;
        Ok((Self { stream, until, pid: predecessor.pid, cgroup: predecessor.cgroup }, inherited))
    }

    /// Runs a part of what has to be done before [`Predecessor::release`].
    ///
    /// # Errors
    /// [`TakeOverError::TooSlow`]: the predecessor may go on by itself from now on. This agent must
    /// end and change nothing more.
    ///
    /// # Cancel safety
    /// That of the part; it is dropped when the time is over.
    pub async fn in_time<T>(&self, part: impl Future<Output = T>) -> Result<T, TakeOverError> {
        let done = timeout_at(self.until, part).await;
        // Also if the whole process stood still meanwhile.
        done.ok().filter(|_| Instant::now() < self.until).ok_or(TakeOverError::TooSlow)
    }

    /// Says that we have switched; returns once the predecessor has released everything, or is
    /// gone.
    ///
    /// # Errors
    /// The predecessor does not answer. Its lock tells whether it is still in charge.
    pub async fn release(&mut self) -> Result<(), TakeOverError> {
        match said(&mut self.stream, &Request::Switched).await? {
            Response::Released => Ok(()),
            other => Err(TakeOverError::Answer { said: shown(&other) }),
        }
    }

    /// Resolves when the predecessor has ended.
    pub async fn ended(&mut self) {
        let mut line = String::new();
        while self.stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            line.clear();
        }
    }
}

/// Copies the records of an agent until it ends. `stream` has to be connected before the agent's
/// socket is replaced.
pub async fn follow(stream: UnixStream, flows: FlowStore) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    write(&mut stream, &Request::Flows { follow: true }).await?;
    let mut lines = stream.lines();
    while let Some(line) = lines.next_line().await? {
        if let Response::Flow(record) = serde_json::from_str(&line)? {
            flows.adopt(*record);
        }
    }
    Ok(())
}

async fn receive(stream: &UnixStream, predecessor: &PredecessorInfo) -> io::Result<Inherited> {
    let mut sockets = Vec::new();
    while sockets.len() < predecessor.listeners.len() {
        let fds = stream.async_io(Interest::READABLE, || sys::fds::receive(stream)).await?;
        if fds.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        sockets.extend(fds.into_iter().map(Socket::from));
    }
    let mut inherited = Inherited::new();
    for (listener, socket) in predecessor.listeners.iter().zip(sockets) {
        inherited.entry(listener.netns).or_default().push((listener.key(), socket));
    }
    Ok(inherited)
}

/// Asks, and waits for the answer.
async fn said(stream: &mut BufReader<UnixStream>, ask: &Request) -> io::Result<Response> {
    write(stream, ask).await?;
    let mut line = String::new();
    if timeout(PATIENCE, stream.read_line(&mut line)).await?? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

async fn write(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
