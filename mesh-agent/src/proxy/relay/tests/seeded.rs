//! Two hundred connections with random sizes and ends. Each is compared with the same conversation
//! over one direct TCP connection: both applications must see the same.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;

/// What one application does, decided before it begins.
#[derive(Debug, Clone, Copy)]
struct Part {
    seed: u64,
    /// Bytes it sends.
    bytes: usize,
    /// How it ends its direction.
    end: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Half-close at once; the other direction may go on.
    HalfClose,
    /// Half-close after the other side has ended.
    HalfCloseAfterPeer,
    /// Reset once the other side has read all of it (it says so on the side).
    ResetWhenRead,
}

/// What one application saw of the other.
#[derive(Debug, PartialEq, Eq)]
struct ReceivedStream {
    bytes: usize,
    hash: u64,
    end: Result<(), ErrorKind>,
}

fn parts(seed: u64) -> (Part, Part) {
    let mut dice = Dice::new(seed);
    let mut part = |may_wait: bool, may_reset: bool| {
        let bytes = match dice.below(4) {
            0 => 0,
            1 => dice.below(100) as usize,
            2 => dice.below(40_000) as usize,
            _ => dice.below(600_000) as usize,
        };
        let end = match dice.below(4) {
            0 if may_reset => Ending::ResetWhenRead,
            1 if may_wait => Ending::HalfCloseAfterPeer,
            _ => Ending::HalfClose,
        };
        Part { seed: dice.number(), bytes, end }
    };
    // Only one side waits for the other, and only one resets. Otherwise the conversation has no
    // end, or two.
    let a = part(true, true);
    let b = part(a.end != Ending::HalfCloseAfterPeer, a.end != Ending::ResetWhenRead);
    (a, b)
}

/// Plays one part. `has_read` and `peer_has_read` are the side channel.
async fn play(
    stream: TcpStream,
    part: Part,
    expected: usize,
    has_read: watch::Sender<bool>,
    mut peer_has_read: watch::Receiver<bool>,
) -> ReceivedStream {
    let (ended, mut peer_ended) = watch::channel(false);
    let (mut read, mut write) = stream.into_split();
    let reading = async {
        let mut seen = ReceivedStream { bytes: 0, hash: 0, end: Ok(()) };
        let mut buffer = vec![0; 30_000];
        if expected == 0 {
            has_read.send_replace(true);
        }
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => break,
                Ok(size) => {
                    for &byte in &buffer[..size] {
                        seen.hash = seen.hash.rotate_left(5).wrapping_mul(31) ^ u64::from(byte);
                    }
                    seen.bytes += size;
                    if seen.bytes == expected {
                        has_read.send_replace(true);
                    }
                }
                Err(error) => {
                    seen.end = Err(error.kind());
                    break;
                }
            }
        }
        ended.send_replace(true);
        (seen, read)
    };
    let writing = async {
        let mut dice = Dice::new(part.seed);
        let mut bytes = vec![0; part.bytes];
        dice.fill(&mut bytes);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let size = (1 + dice.below(50_000) as usize).min(rest.len());
            if write.write_all(&rest[..size]).await.is_err() {
                break; // the reader finds out how it ended
            }
            rest = &rest[size..];
        }
        match part.end {
            Ending::HalfClose => write.shutdown().await.unwrap_or_default(),
            Ending::HalfCloseAfterPeer => {
                peer_ended.wait_for(|ended| *ended).await.unwrap();
                write.shutdown().await.unwrap_or_default();
            }
            Ending::ResetWhenRead => {
                peer_has_read.wait_for(|read| *read).await.unwrap();
                write.as_ref().set_zero_linger().unwrap();
            }
        }
        write
    };
    if part.end == Ending::ResetWhenRead {
        let reading = async {
            let kept = reading.await;
            std::future::pending::<()>().await;
            drop(kept);
        };
        tokio::select! {
            () = reading => {}
            write = writing => write.forget(), // dropped, it would send FIN
        }
        return ReceivedStream { bytes: 0, hash: 0, end: Ok(()) }; // its own view is not compared
    }
    let ((seen, read), write) = tokio::join!(reading, writing);
    drop((read, write));
    seen
}

async fn converse(
    a: TcpStream,
    b: TcpStream,
    parts: (Part, Part),
) -> (ReceivedStream, ReceivedStream) {
    let (a_read, a_has_read) = watch::channel(false);
    let (b_read, b_has_read) = watch::channel(false);
    tokio::join!(
        play(a, parts.0, parts.1.bytes, a_read, b_has_read),
        play(b, parts.1, parts.0.bytes, b_read, a_has_read),
    )
}

#[tokio::test]
async fn two_hundred_conversations_look_like_direct_tcp() {
    let mesh = Mesh::new().await;
    let mut resets = 0;
    for seed in 0..200 {
        let parts = parts(seed);
        let (a, b) = tcp_pair().await;
        let direct = in_time("the direct one", converse(a, b, parts)).await;
        let (a, b, carried) = mesh_pair(&mesh).await;
        let (meshed, ends) =
            in_time("the meshed one", async { tokio::join!(converse(a, b, parts), carried) }).await;
        assert_eq!(meshed, direct, "seed {seed}: {parts:?}, {:?} {:?}", ends.0.end, ends.1.end);
        resets += u32::from(direct.0.end.is_err() || direct.1.end.is_err());
    }
    assert!(resets > 20, "only {resets} of the conversations ended with a reset");
}

#[tokio::test]
async fn fifty_conversations_between_plain_sockets_look_like_direct_tcp() {
    for seed in 1000..1050 {
        let parts = parts(seed);
        let (a, b) = tcp_pair().await;
        let direct = in_time("the direct one", converse(a, b, parts)).await;
        let ((a, agent_a), (agent_b, b)) = (tcp_pair().await, tcp_pair().await);
        let (agent_a, agent_b) =
            (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
        let counters = ByteCounts::default();
        let relay = relay_plain(agent_a, agent_b, &counters, None);
        let (plain, end) =
            in_time("the relayed one", async { tokio::join!(converse(a, b, parts), relay) }).await;
        assert_eq!(plain, direct, "seed {seed}: {parts:?}, {end:?}");
    }
}
