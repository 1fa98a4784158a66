//! What really went over a link: tcpdump records, we read.
//!
//! [`Capture::stop`] sends a sentinel over the link and waits for it in the file, so that "is not
//! there" is said only of a complete recording.

mod pcap;
mod tcp;
mod tls;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use pcap::Frame;
pub use tcp::Conn;
pub use tls::Tls;

use crate::{
    eventually,
    exec::{Place, Process},
    netns,
};

/// The discard port: nothing listens there, and the answer is of no interest.
const DISCARD: u16 = 9;

/// How long tcpdump may take to begin and to end. The kernel waits in both for all processors, and
/// that took more than 5 s while a cluster took pods apart.
const PATIENCE: Duration = Duration::from_secs(30);

/// A recording under way.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
    place: Place,
    everyone: Ipv4Addr,
}

/// A finished recording.
#[derive(Debug)]
pub struct Recording {
    frames: Vec<Frame>,
    conns: Vec<Conn>,
    older: Vec<Conn>,
}

impl Capture {
    /// Returns when tcpdump listens on the interface. `everyone` is the broadcast address there.
    pub(crate) fn start(place: &Place, interface: &str, everyone: Ipv4Addr) -> Result<Self> {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let file = place.logs.with_file_name(format!("{}-{stamp}.pcap", place.name));
        // -Z root: otherwise tcpdump gives up root, and then may not write here. The buffer (-B,
        // KiB) holds bursts on a busy machine. That is some thousands of packets, since each takes
        // as much of it as the longest may (-s).
        let options = [
            "tcpdump",
            "-i",
            interface,
            "-U",
            "-n",
            "-Z",
            "root",
            "-B",
            "262144",
            "-s",
            "65600",
            "--immediate-mode",
            "-w",
        ];
        let mut tcpdump =
            place.spawn(options.iter().map(AsRef::as_ref).chain([file.as_os_str()]))?;
        tcpdump.wait_for_line("listening on", PATIENCE)?;
        Ok(Self { tcpdump, file, place: place.clone(), everyone })
    }

    /// Ends the recording. All that went over the link before this call is in it.
    pub fn stop(self) -> Result<Recording> {
        let sentinel = format!("nodemesh-sentinel-{}", self.file.display());
        netns::inside(&self.place.netns, || -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_broadcast(true)?;
            // Broadcast, so that no neighbour has to answer for its address first.
            socket.send_to(sentinel.as_bytes(), (self.everyone, DISCARD))?;
            Ok(())
        })??;
        eventually(Duration::from_secs(10), || {
            let bytes = fs::read(&self.file)?;
            ensure!(find(&bytes, sentinel.as_bytes()), "the sentinel is not in the capture");
            Ok(())
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        let said = self.tcpdump.wait(PATIENCE)?.stderr;
        ensure!(said.contains("\n0 packets dropped by kernel"), "an incomplete capture: {said}");
        Recording::read(&fs::read(&self.file)?)
    }
}

impl Recording {
    fn read(file: &[u8]) -> Result<Self> {
        let frames = pcap::frames(file)?;
        let all = tcp::connections(&frames).into_iter();
        let (mut older, conns): (Vec<_>, _) = all.partition(|conn| conn.is_older);
        older.retain(|conn| !(conn.to_server.is_empty() && conn.to_client.is_empty()));
        Ok(Self { frames, conns, older })
    }

    /// Whether these bytes occur in any frame or, across frames, in any direction of any
    /// connection.
    pub fn contains(&self, marker: &str) -> bool {
        let marker = marker.as_bytes();
        self.frames.iter().any(|frame| find(&frame.bytes, marker))
            || self.streams().any(|stream| find(stream, marker))
    }

    /// The bytes around an occurrence of `marker`, for people.
    pub fn quote(&self, marker: &str) -> Option<String> {
        let bytes = self.streams().find(|stream| find(stream, marker.as_bytes()))?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    fn streams(&self) -> impl Iterator<Item = &[u8]> {
        let all = self.conns.iter().chain(&self.older);
        all.flat_map(|conn| [&*conn.to_server, &*conn.to_client])
    }

    /// The TCP connections that had begun before, and on which something was sent.
    pub fn older(&self) -> &[Conn] {
        &self.older
    }

    /// All TCP connections that began, oldest first.
    pub fn connections(&self) -> &[Conn] {
        &self.conns
    }

    /// The connections to this address and port that began.
    pub fn to(&self, server: SocketAddr) -> Vec<&Conn> {
        self.conns.iter().filter(|conn| conn.server == server).collect()
    }

    /// The only connection to this address and port.
    pub fn one_to(&self, server: SocketAddr) -> Result<&Conn> {
        let all: Vec<String> = self.conns.iter().map(ToString::to_string).collect();
        let found = self.to(server);
        ensure!(found.len() == 1, "not one connection to {server} in {all:#?}");
        found.first().copied().context("there is one")
    }
}

/// Whether `needle` is somewhere in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> bool {
    // Most windows differ in the first byte: looking for that alone makes a large capture bearable.
    let Some((first, rest)) = needle.split_first() else {
        return true;
    };
    let mut hay = hay;
    while let Some(at) = hay.iter().position(|byte| byte == first) {
        hay = &hay[at + 1..];
        if hay.starts_with(rest) {
            return true;
        }
    }
    false
}
