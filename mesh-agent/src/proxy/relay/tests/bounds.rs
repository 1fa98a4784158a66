//! Memory, backpressure, and resets that meet it.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use super::*;

/// The limit on the buffers of one connection, both directions.
const MEMORY_BYTES: usize = 300 * 1024;

/// Writes until nothing has been taken for a while.
async fn fill(app: &mut TcpStream) -> usize {
    let piece = vec![5; 64 * 1024];
    let mut written = 0;
    while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), app.write(&piece)).await
    {
        written += count.unwrap();
    }
    written
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer_within_bounds() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.connection().await;
    let ((mut a, agent_a), (agent_b, mut b)) = (tcp_pair().await, tcp_pair().await);
    let (app_a, app_b) = (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
    let (count_a, count_b) = (ByteCounts::default(), ByteCounts::default());
    let (near, far) = {
        let mut relay_a = Relay::new(&mut client, &app_a, &count_a);
        let mut relay_b = Relay::new(&mut server, &app_b, &count_b);
        let (ends_a, ends_b) = ([relay_a.app, relay_a.tcp], [relay_b.app, relay_b.tcp]);
        let both = async {
            tokio::join!(
                drive(&mut relay_a, ends_a, &count_a, None, None),
                drive(&mut relay_b, ends_b, &count_b, None, None),
            )
        };
        // Both directions are filled at once: the worst case.
        let stuffed = async { tokio::join!(fill(&mut a), fill(&mut b)) };
        tokio::select! {
            written = stuffed => written,
            ends = both => panic!("{ends:?}"),
        }
    };
    // What the applications' kernels took is in our counters or still in the agents' kernels.
    assert!(near > MEMORY_BYTES && far > MEMORY_BYTES, "the writers were stopped at once");
    for session in [&client, &server] {
        let held = session.memory_bytes();
        println!("one connection's buffers, stuffed: {held} bytes");
        assert!(held <= MEMORY_BYTES, "{held}");
        assert!(held > 200 * 1024, "{held}: busy streams get eight records per direction");
    }
    let sealed_and_not_delivered = count_a.to_peer() - count_b.from_peer();
    println!("between the applications' sockets: {sealed_and_not_delivered} bytes");
}

#[tokio::test]
async fn a_quiet_connection_holds_little_and_an_idle_session_nothing() {
    let mesh = Mesh::new().await;
    let (a, b, carried) = mesh_pair(&mesh).await;
    let (mut a, mut b) = (a, b);
    let play = async move {
        for _ in 0..100 {
            a.write_all(b"ping").await.unwrap();
            b.read_exact(&mut [0; 4]).await.unwrap();
        }
        drop((a, b));
    };
    let ((), (near, far)) = in_time("the pings", async { tokio::join!(play, carried) }).await;
    for session in [near.session.unwrap(), far.session.unwrap()] {
        assert_eq!(session.memory_bytes(), 0);
    }
}

#[tokio::test]
async fn a_stream_that_turns_quiet_gives_its_memory_back() {
    let mesh = Mesh::new().await;
    let (mut client, server) = mesh.connection().await;
    let ((mut a, agent_a), (agent_b, mut b)) = (tcp_pair().await, tcp_pair().await);
    let (app_a, app_b) = (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
    let (count_a, count_b) = (ByteCounts::default(), ByteCounts::default());
    {
        let mut relay_a = Relay::new(&mut client, &app_a, &count_a);
        let ends_a = [relay_a.app, relay_a.tcp];
        let far = carry(server, app_b, &count_b, CarryOptions::default());
        let play = async {
            let (mut read, mut write) = b.split();
            let bulk = vec![1; 4 << 20];
            let mut got = vec![0; 4 << 20];
            let (sent, received) = tokio::join!(a.write_all(&bulk), read.read_exact(&mut got));
            sent.unwrap();
            received.unwrap();
            for _ in 0..64 {
                a.write_all(b"ping").await.unwrap();
                read.read_exact(&mut [0; 4]).await.unwrap();
                write.write_all(b"pong").await.unwrap();
                a.read_exact(&mut [0; 4]).await.unwrap();
            }
        };
        tokio::select! {
            () = in_time("the stream", play) => {}
            end = drive(&mut relay_a, ends_a, &count_a, None, None) => panic!("{end:?}"),
            carried = far => panic!("{carried:?}"),
        }
    }
    let held = client.memory_bytes();
    println!("one connection's buffers, quiet after a stream: {held} bytes");
    assert!(held <= 40 * 1024, "{held}");
}

#[tokio::test]
async fn a_reset_overtakes_data_that_the_other_application_does_not_take() {
    let mesh = Mesh::new().await;
    let (mut a, b, carried) = mesh_pair(&mesh).await;
    let play = async move {
        fill(&mut a).await;
        let started = Instant::now();
        a.set_zero_linger().unwrap();
        drop(a);
        // Not a byte is read: the event alone must come.
        b.ready(Interest::ERROR).await.unwrap();
        started.elapsed()
    };
    let (took, (near, far)) = in_time("the reset", async { tokio::join!(play, carried) }).await;
    println!("a reset through stuffed buffers took {took:?}");
    assert!(took < 4 * GRACE, "{took:?}");
    assert!(matches!(near.end, End::CutOff(ResetCode::ApplicationReset)), "{:?}", near.end);
    assert!(matches!(far.end, End::PeerFailed(SessionError::Truncated)), "{:?}", far.end);
}

/// The other application only writes and never reads. What it writes to a dead application must not
/// keep the connection alive.
#[tokio::test]
async fn a_reset_reaches_an_application_that_only_writes() {
    let mesh = Mesh::new().await;
    for meshed in [true, false] {
        let (mut a, mut b, relays): (_, _, std::pin::Pin<Box<dyn Future<Output = ()>>>) = if meshed
        {
            let (a, b, carried) = mesh_pair(&mesh).await;
            (a, b, Box::pin(async { drop(carried.await) }))
        } else {
            let ((a, agent_a), (agent_b, b)) = (tcp_pair().await, tcp_pair().await);
            let relay = async {
                let (app, peer) =
                    (AppStream::new(agent_a).unwrap(), AppStream::new(agent_b).unwrap());
                relay_plain(app, peer, &ByteCounts::default(), None).await;
            };
            (a, b, Box::pin(relay))
        };
        let play = async {
            fill(&mut a).await;
            a.set_zero_linger().unwrap();
            drop(a);
            let started = Instant::now();
            let piece = vec![9; 10_000];
            while b.write_all(&piece).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await; // a writer that never stops
            }
            started.elapsed()
        };
        let (took, ()) = in_time("the reset", async { tokio::join!(play, relays) }).await;
        assert!(took < 4 * GRACE, "{took:?}");
    }
}

#[tokio::test]
async fn a_reader_that_resets_stops_the_writer() {
    let mesh = Mesh::new().await;
    let (mut a, b, carried) = mesh_pair(&mesh).await;
    let play = async move {
        fill(&mut a).await;
        b.set_zero_linger().unwrap();
        drop(b);
        let piece = vec![0; 64 * 1024];
        loop {
            if let Err(error) = a.write_all(&piece).await {
                break error.kind();
            }
        }
    };
    let (kind, (near, far)) = in_time("the reset", async { tokio::join!(play, carried) }).await;
    assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
    assert!(matches!(near.end, End::ResetByPeer(_)), "{:?}", near.end);
    assert!(matches!(far.end, End::ResetByApp(_)), "{:?}", far.end);
}

#[tokio::test]
async fn a_connections_future_is_small() {
    let mesh = Mesh::new().await;
    let (client, _server) = mesh.connection().await;
    let (_app, agent) = tcp_pair().await;
    let counters = ByteCounts::default();
    let app = AppStream::new(agent).unwrap();
    let bytes = size_of_val(&carry(client, app, &counters, CarryOptions::default()));
    println!("the future of a carried connection: {bytes} bytes");
    assert!(bytes < 2304, "{bytes}");
}

/// A slow reader is not a dead one: after the writer's reset-free end it gets every byte.
#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let mesh = Mesh::new().await;
    let (mut a, mut b, carried) = mesh_pair(&mesh).await;
    let write = async move {
        let all = vec![3; 6 << 20];
        a.write_all(&all).await.unwrap();
        drop(a);
    };
    let read = async move {
        let (mut total, mut buffer) = (0, vec![0; 200_000]);
        loop {
            match b.read(&mut buffer).await.unwrap() {
                0 => break total,
                count => total += count,
            }
            tokio::time::sleep(Duration::from_millis(1)).await; // the slowness under test
        }
    };
    let ((), total, _) = in_time("all", async { tokio::join!(write, read, carried) }).await;
    assert_eq!(total, 6 << 20);
}
