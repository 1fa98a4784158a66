//! The relay between two plain sockets: the same ends.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

async fn plain_pair() -> (TcpStream, TcpStream, impl Future<Output = (End, u64, u64)>) {
    let ((a, agent_a), (agent_b, b)) = (tcp_pair().await, tcp_pair().await);
    let relay = async move {
        let counters = Counters::default();
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
    assert!(matches!(end, End::Finished { first: Party::App }), "{end:?}");
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
        assert_eq!(end.by(), Some(if from_app { Party::App } else { Party::Peer }), "{end:?}");
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
