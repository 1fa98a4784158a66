//! Much data, checked by hash.

use aws_lc_rs::digest::{Context, SHA256};
use mesh_wire::{MAX_RECORDS, frame::DATA_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::*;

const MIB: usize = 1 << 20;

/// Writes `length` bytes of a seed in writes of uneven sizes, then ends the direction.
async fn write_seeded(mut to: impl AsyncWrite + Unpin, seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 200_000];
    let mut left = length;
    while left > 0 {
        let size = (1 + dice.below(buffer.len() as u64) as usize).min(left);
        let piece = &mut buffer[..size];
        dice.fill(piece);
        hash.update(piece);
        to.write_all(piece).await.unwrap();
        left -= size;
    }
    to.shutdown().await.unwrap();
    hash.finish().as_ref().to_vec()
}

async fn read_hash(mut from: impl AsyncRead + Unpin) -> (usize, Vec<u8>) {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 100_000];
    let mut length = 0;
    loop {
        match from.read(&mut buffer).await.unwrap() {
            0 => return (length, hash.finish().as_ref().to_vec()),
            size => {
                hash.update(&buffer[..size]);
                length += size;
            }
        }
    }
}

#[tokio::test]
async fn sixty_four_mib_each_way_at_once() {
    let mesh = Mesh::new().await;
    let (a, b, carried) = mesh_pair(&mesh).await;
    let ((a_read, a_write), (b_read, b_write)) = (a.into_split(), b.into_split());
    let started = std::time::Instant::now();
    let (sent_a, sent_b, at_a, at_b, (a, b)) = in_time("the transfer", async {
        tokio::join!(
            write_seeded(a_write, 1, 64 * MIB),
            write_seeded(b_write, 2, 64 * MIB),
            read_hash(a_read),
            read_hash(b_read),
            carried,
        )
    })
    .await;
    println!("128 MiB through two relays and all ends in one thread: {:?}", started.elapsed());
    assert_eq!(at_b, (64 * MIB, sent_a));
    assert_eq!(at_a, (64 * MIB, sent_b));
    assert!(matches!(a.end, End::Finished { .. }), "{:?}", a.end);
    assert!(matches!(b.end, End::Finished { .. }), "{:?}", b.end);
}

#[tokio::test]
async fn every_size_around_a_record_arrives_whole() {
    let mesh = Mesh::new().await;
    let mut sessions = mesh.sessions().await;
    let (one, two, most) = (DATA_BYTES, 2 * DATA_BYTES, MAX_RECORDS * DATA_BYTES);
    for size in [1, 2, one - 1, one, one + 1, 16_383, 16_384, two, two + 1, most, most + 1] {
        open(&mut sessions.0, &mut sessions.1).await;
        let ((a, agent_a), (agent_b, b)) = (tcp_pair().await, tcp_pair().await);
        let carried = carry_both(sessions, (agent_a, agent_b));
        let (sent, got, (near, far)) = in_time("a size", async {
            let apps = async { tokio::join!(write_seeded(a, size as u64, size), read_hash(b)) };
            let ((sent, got), carried) = tokio::join!(apps, carried);
            (sent, got, carried)
        })
        .await;
        assert_eq!(got, (size, sent));
        sessions = (near.session.unwrap(), far.session.unwrap());
    }
}
