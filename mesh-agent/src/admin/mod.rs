//! The Unix socket through which the command line asks a running agent.
//!
//! One request per connection, a JSON object on a line; the answer is JSON, one object per line,
//! until the agent closes. Only root may connect: the socket's mode is 0600.

mod client;
mod followers;
mod server;

pub use client::{Answers, ClientError};
pub use followers::Followers;
pub use server::{AdminContext, ServeError, bind, serve};

use std::path::{Path, PathBuf};

/// Where the socket is, in a runtime directory.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("agent.sock")
}
