//! The relay between two plain sockets ends in the same ways.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use super::*;

async fn plain_pair() -> (TcpStream, TcpStream, impl Future<Output = (End, u64, u64)>) {
    let ((a, agent_a), (agent_b, b)) = (tcp_pair().await, tcp_pair().await);
    let relay = async move {
        let counters = ByteCounts::default();
        let (app, peer) = (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
        let end = relay_plain(app, peer, &counters, None).await;
        (end, counters.to_peer(), counters.from_peer())
    };
    (a, b, relay)
}

#[tokio::test]
async fn half_close_both_ways() {
    let (mut a, mut b, relay) = plain_pair().await;
    let play = async {
        a.write_all(b"request").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        b.write_all(b"response").await.unwrap();
        drop(b);
        a.read_to_string(&mut got).await.unwrap();
        got
    };
    let (got, (end, to_peer, from_peer)) =
        in_time("the exchange", async { tokio::join!(play, relay) }).await;
    assert_eq!(got, "requestresponse");
    assert!(matches!(end, End::Finished { first: RelaySide::App }), "{end:?}");
    assert_eq!((to_peer, from_peer), (7, 8));
}

#[tokio::test]
async fn a_reset_is_a_reset_from_either_side() {
    for from_app in [true, false] {
        let (a, b, relay) = plain_pair().await;
        let (mut first, mut second) = if from_app { (a, b) } else { (b, a) };
        let play = async move {
            first.write_all(b"ping").await.unwrap();
            second.read_exact(&mut [0; 4]).await.unwrap();
            first.set_zero_linger().unwrap();
            drop(first);
            second.read(&mut [0; 1]).await.unwrap_err().kind()
        };
        let (kind, (end, ..)) = in_time("the reset", async { tokio::join!(play, relay) }).await;
        assert_eq!(kind, ErrorKind::ConnectionReset);
        let is_by_app = matches!(end, End::ResetByApp(_));
        assert!(
            is_by_app == from_app && (is_by_app || matches!(end, End::ResetByPeer(_))),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn a_reset_overtakes_data_that_is_not_taken() {
    let (mut a, b, relay) = plain_pair().await;
    let play = async move {
        let piece = vec![5; 64 * 1024];
        while let Ok(count) =
            tokio::time::timeout(Duration::from_millis(200), a.write(&piece)).await
        {
            count.unwrap();
        }
        a.set_zero_linger().unwrap();
        drop(a);
        b.ready(Interest::ERROR).await.unwrap();
    };
    let ((), (end, ..)) = in_time("the reset", async { tokio::join!(play, relay) }).await;
    assert!(matches!(end, End::ResetByApp(ResetCode::ApplicationReset)), "{end:?}");
}

#[tokio::test]
async fn a_stop_or_a_drop_resets_both() {
    let (mut a, mut b, relay) = plain_pair().await;
    tokio::select! {
        _ = relay => panic!("nobody ended it"),
        () = async { a.write_all(b"x").await.unwrap(); b.read_exact(&mut [0]).await.unwrap(); } => {}
    }
    for app in [&mut a, &mut b] {
        assert_eq!(app.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// The end of a relay whose client sends these pieces after the server has spoken, and what the
/// server has read.
async fn held(pieces: Vec<&'static [u8]>) -> (End, std::io::Result<Vec<u8>>) {
    let ((mut a, agent_a), (agent_b, mut b)) = (tcp_pair().await, tcp_pair().await);
    let relay = async move {
        let counters = ByteCounts::default();
        let (app, peer) = (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
        relay_plain_held(app, peer, &counters, None).await
    };
    let server = async {
        b.write_all(b"banner").await.unwrap();
        let mut read = Vec::new();
        let outcome = b.read_to_end(&mut read).await;
        drop(b);
        assert!(outcome.is_ok() || read.is_empty(), "{read:?}");
        outcome.map(|_| read)
    };
    let client = async {
        a.read_exact(&mut [0; 6]).await.unwrap();
        for piece in pieces {
            a.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await; // or they come as one
        }
        a.shutdown().await.ok();
        a.read_to_end(&mut Vec::new()).await.ok();
    };
    let (end, read, ()) =
        in_time("the exchange", async { tokio::join!(relay, server, client) }).await;
    (end, read)
}

#[tokio::test]
async fn what_begins_like_an_agent_is_not_passed_on() {
    // RFC 8446 §4.1.2: version, random, no session id, one cipher suite, no compression; ALPN (RFC
    // 7301 §3.1).
    let alpn = [&[0, 16, 0, 13, 0, 11, 10][..], b"nodemesh/1"].concat();
    let head = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0, 0, 17]].concat();
    let hello = [&[22, 3, 1, 0, 64, 1, 0, 0, 60][..], &head, &alpn].concat().leak();
    let hello = &*hello;
    assert_eq!(mesh_wire::hello::look(hello), mesh_wire::hello::Hello::Mesh);
    let (beginning, rest) = hello.split_at(30);
    for pieces in [vec![hello], vec![beginning, rest], vec![beginning], vec![&hello[..1]]] {
        let (end, read) = held(pieces).await;
        assert!(matches!(end, End::LateClientHello), "{end:?}");
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    for plain in [&b"request"[..], b"r", b"", &[22, 3, 1, 0, 5, 2, 0, 0, 1, 0]] {
        let (end, read) = held(vec![plain]).await;
        assert!(matches!(end, End::Finished { .. }), "{end:?}");
        assert_eq!(read.unwrap(), plain);
    }
}
