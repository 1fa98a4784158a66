//! The pcap file format (draft-ietf-opsawg-pcap): a header, then records of a header and a frame
//! each.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

/// Microsecond time stamps, in the machine's byte order, as tcpdump writes them unless told
/// otherwise.
const MAGIC: u32 = 0xa1b2_c3d4;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const ETHERNET: u32 = 1;

/// A frame, and when it went over the link.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) at: SystemTime,
    pub(super) bytes: Vec<u8>,
}

/// The frames of a file, in order.
pub(super) fn frames(file: &[u8]) -> Result<Vec<Frame>> {
    ensure!(word(file, 0)? == MAGIC, "not a pcap file of this machine");
    ensure!(word(file, 20)? == ETHERNET, "link type {} is not Ethernet", word(file, 20)?);
    let mut frames = Vec::new();
    let mut rest = &file[FILE_HEADER..];
    while !rest.is_empty() {
        let (kept, sent) = (word(rest, 8)? as usize, word(rest, 12)? as usize);
        ensure!(kept == sent, "a frame of {sent} bytes was cut to {kept}");
        let at = Duration::new(word(rest, 0)?.into(), word(rest, 4)? * 1000);
        let bytes = rest.get(RECORD_HEADER..RECORD_HEADER + kept).context("cut off")?.to_vec();
        frames.push(Frame { at: UNIX_EPOCH + at, bytes });
        rest = &rest[RECORD_HEADER + kept..];
    }
    Ok(frames)
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("cut off")?;
    Ok(u32::from_ne_bytes(word.try_into()?))
}
