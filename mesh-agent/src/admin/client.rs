//! The command line's side.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{Request, Response, socket_path};

/// Why an agent did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
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

/// Asks the agent of a runtime directory and hands each answer to `each` until the agent closes or `each` returns `false`.
///
/// # Errors
/// See [`ClientError`].
pub fn ask(
    runtime_dir: &Path,
    request: &Request,
    mut each: impl FnMut(Response) -> bool,
) -> Result<(), ClientError> {
    let path = socket_path(runtime_dir);
    let mut stream =
        UnixStream::connect(&path).map_err(|source| ClientError::NoAgent { path, source })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Response::Error(message) => return Err(ClientError::Refused(message)),
            response => {
                if !each(response) {
                    break;
                }
            }
        }
    }
    Ok(())
}
