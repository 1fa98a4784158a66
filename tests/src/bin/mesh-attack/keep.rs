//! A server that accepts, never reads and never closes: thousands of connections in one thread.

use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use tests::attack::KeepSpec;

/// Accepts until it is killed.
pub(crate) fn run(spec: &KeepSpec) -> Result<()> {
    let listener = TcpListener::bind(spec.listen).context("binding")?;
    println!("listening on {}", listener.local_addr()?);
    let kept: Result<Vec<TcpStream>, _> = listener.incoming().collect();
    kept.map(drop).context("accepting")
}
