//! A successor of our own: it asks a node's agent to hand over as `run --take-over` does, and then
//! does what a test wants. So it dies exactly where the test says.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{Node, agent::SOON};

/// While it lives, the node's agent stands still. Dead when dropped.
#[derive(Debug)]
pub struct Successor {
    _stream: BufReader<UnixStream>,
}

impl Successor {
    /// Asks, and takes the agent's state. From then on the successor may change everything.
    pub fn ask(node: &Node) -> Result<Self> {
        let mut stream = UnixStream::connect(node.runtime_dir().join("agent.sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        let ask = json!({
            "ask": "hand_over",
            "version": 1,
            "pid": std::process::id(),
            "node": node.name,
            "pin_dir": node.pin_dir(),
            "cgroup": fs::metadata(&node.cgroup)?.ino(),
        });
        writeln!(stream, "{ask}")?;
        let mut stream = BufReader::new(stream);
        let mut estate = String::new();
        stream.read_line(&mut estate)?;
        ensure!(estate.starts_with(r#"{"estate""#), "not handed over: {estate}");
        writeln!(stream.get_mut(), "{}", json!({ "ask": "give" }))?;
        Ok(Self { _stream: stream })
    }
}
