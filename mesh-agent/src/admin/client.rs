//! The command line's side.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use mesh_api::{Request, Response};
use thiserror::Error;

use super::socket_path;

/// How much is read at a time, in bytes.
const CHUNK: usize = 16 * 1024;

/// Why an agent did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No agent listens.
    #[error(
        "no agent answers at {path}: {source}; is it running (as root), and is --runtime-dir the one it was given?"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the agent stopped answering: {0}")]
    Io(#[from] io::Error),
    /// The answer could not be read: agent and command line are of different versions.
    #[error(
        "the agent answered what this version does not understand: {0}; use the mesh-agent of the same version"
    )]
    Answer(#[from] serde_json::Error),
    /// The agent did not understand the request.
    #[error("the agent refused the request: {0}")]
    Refused(String),
}

/// What an agent answers to one request, as it comes.
pub struct Answers {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Answers {
    /// Asks the agent of a runtime directory.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn to(request: &Request, runtime_dir: &Path) -> Result<Self, ClientError> {
        let path = socket_path(runtime_dir);
        let mut stream =
            UnixStream::connect(&path).map_err(|source| ClientError::NoAgent { path, source })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Whether an answer is available without reading.
    pub fn has_one(&self) -> bool {
        self.read.contains(&b'\n')
    }

    /// The next answer, once it is there; `None` when the agent has closed the connection.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn receive(&mut self) -> Result<Option<Response>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return match serde_json::from_slice(&line)? {
                    Response::Error(message) => Err(ClientError::Refused(message)),
                    response => Ok(Some(response)),
                };
            }
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk)? {
                0 => return Ok(None),
                read => self.read.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            }
        }
    }
}

impl AsFd for Answers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
