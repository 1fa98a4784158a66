//! One connection at a time, each way of ending it.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;

use mesh_wire::Accepted;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use super::*;
use crate::sys::sock::tcp_info;

#[tokio::test]
async fn a_request_and_a_response() {
    let mesh = Mesh::new().await;
    let (mut a, mut b, carried) = mesh_pair(&mesh).await;
    let apps = async {
        a.write_all(b"ping").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "ping");
        b.write_all(b"pong").await.unwrap();
        drop(b);
        let mut got = String::new();
        a.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "pong");
    };
    let ((), (a, b)) = in_time("the exchange", async { tokio::join!(apps, carried) }).await;
    assert!(matches!(a.end, End::Finished { first: RelaySide::App }), "{:?}", a.end);
    assert!(matches!(b.end, End::Finished { first: RelaySide::Peer }), "{:?}", b.end);
    assert!(a.session.unwrap().is_idle());
    assert!(b.session.unwrap().is_idle());
}

/// One packet between the agents and one to the application, instead of two each.
#[tokio::test]
async fn the_end_leaves_with_the_data_that_it_came_with() {
    let mesh = Mesh::new().await;
    let sessions = mesh.connection().await;
    let ((mut a, agent_a), (agent_b, mut b)) = (tcp_pair().await, tcp_pair().await);
    let watched = [&sessions.0.tcp, &agent_b].map(|tcp| tcp.as_fd().try_clone_to_owned().unwrap());
    let sent = || watched.each_ref().map(|tcp| tcp_info(tcp).unwrap().tcpi_segs_out);
    a.write_all(b"last words").await.unwrap();
    a.shutdown().await.unwrap();
    while !agent_a.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
    let before = sent();
    let apps = async {
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        let sent = std::iter::zip(sent(), before).map(|(after, before)| after - before);
        assert_eq!((&*got, sent.collect::<Vec<_>>()), ("last words", vec![1, 1]));
        b.shutdown().await.unwrap();
    };
    let carried = carry_both(sessions, (agent_a, agent_b));
    in_time("the words", async { tokio::join!(apps, carried) }).await;
}

#[tokio::test]
async fn a_session_carries_one_connection_after_another() {
    let mesh = Mesh::new().await;
    let mut sessions = mesh.sessions().await;
    for round in 0..5u8 {
        open(&mut sessions.0, &mut sessions.1).await;
        let ((mut a, agent_a), (agent_b, mut b)) = (tcp_pair().await, tcp_pair().await);
        let apps = async move {
            a.write_all(&vec![round; 100_000]).await.unwrap();
            drop(a);
            let mut got = Vec::new();
            b.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, vec![round; 100_000]);
        };
        let carried = carry_both(sessions, (agent_a, agent_b));
        let ((), (near, far)) = in_time("a round", async { tokio::join!(apps, carried) }).await;
        assert!(matches!(near.end, End::Finished { .. }), "{:?}", near.end);
        sessions = (near.session.unwrap(), far.session.unwrap());
    }
    let (client, mut server) = sessions;
    let (error, ()) = tokio::join!(server.ended(), client.close());
    assert!(matches!(error, SessionError::Closed), "{error:?}");
}

#[tokio::test]
async fn data_travels_with_open_and_finished_before_the_answer() {
    let mesh = Mesh::new().await;
    let (near, far) = tcp_pair().await;
    let (mut a, agent_a) = tcp_pair().await;
    let (agent_b, mut b) = tcp_pair().await;
    let client = async {
        let mut session = Session::connect(near, &mesh.client(), soon()).await.unwrap();
        session.send_open(&sample_open()).unwrap();
        let options = CarryOptions { answer_by: Some(soon()), ..CarryOptions::default() };
        carry(session, AppStream::new(agent_a).unwrap(), &ByteCounts::default(), options).await
    };
    let server = async {
        let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
        assert_eq!(session.recv_open(soon()).await.unwrap(), sample_open());
        let accepted = Accepted { acknowledges_drops: true, ..Accepted::default() };
        session.send_accepted(&accepted).unwrap();
        let app = AppStream::new(agent_b).unwrap();
        carry(session, app, &ByteCounts::default(), CarryOptions::default()).await
    };
    let apps = async {
        a.write_all(b"early").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "early");
        drop(b);
    };
    let ((), a, b) = in_time("early data", async { tokio::join!(apps, client, server) }).await;
    assert!(a.session.is_some() && b.session.is_some());
}

#[tokio::test]
async fn a_reset_by_either_application_is_a_reset_at_the_other() {
    let mesh = Mesh::new().await;
    for from_a in [true, false] {
        let (a, b, carried) = mesh_pair(&mesh).await;
        let (mut first, mut second) = if from_a { (a, b) } else { (b, a) };
        let apps = async move {
            first.write_all(b"ping").await.unwrap();
            let mut got = [0; 4];
            second.read_exact(&mut got).await.unwrap();
            first.set_zero_linger().unwrap();
            drop(first);
            assert_eq!(second.read(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        };
        let ((), (a, b)) = in_time("the reset", async { tokio::join!(apps, carried) }).await;
        let (by, other) = if from_a { (a, b) } else { (b, a) };
        assert!(matches!(by.end, End::ResetByApp(ResetCode::ApplicationReset)), "{:?}", by.end);
        assert!(matches!(other.end, End::ResetByPeer(_)), "{:?}", other.end);
        assert!(by.session.is_none() && other.session.is_none());
    }
}

#[tokio::test]
async fn a_reset_comes_after_the_data_before_it() {
    let mesh = Mesh::new().await;
    let (mut a, mut b, carried) = mesh_pair(&mesh).await;
    let apps = async move {
        a.write_all(&vec![7; 200_000]).await.unwrap();
        let mut got = vec![0; 200_000];
        b.read_exact(&mut got).await.unwrap();
        a.set_zero_linger().unwrap();
        drop(a);
        assert_eq!(b.read(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(got.iter().all(|&byte| byte == 7));
    };
    in_time("the reset", async { tokio::join!(apps, carried) }).await;
}

#[tokio::test]
async fn an_application_that_closes_with_data_unread_resets_its_peer() {
    let mesh = Mesh::new().await;
    let (mut a, b, carried) = mesh_pair(&mesh).await;
    let apps = async move {
        a.write_all(b"never read").await.unwrap();
        b.peek(&mut [0; 1]).await.unwrap(); // it is there
        drop(b); // the kernel answers with a reset
        a.read(&mut [0; 1]).await.map_err(|error| error.kind())
    };
    let (got, (a, b)) = in_time("the reset", async { tokio::join!(apps, carried) }).await;
    assert!(matches!(b.end, End::ResetByApp(ResetCode::ApplicationReset)), "{:?}", b.end);
    assert!(matches!(a.end, End::ResetByPeer(ResetCode::ApplicationReset)), "{:?}", a.end);
    assert_eq!(got, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_application_that_has_closed_for_good_resets_who_goes_on_writing() {
    let mesh = Mesh::new().await;
    let (mut a, b, carried) = mesh_pair(&mesh).await;
    let apps = async move {
        drop(b); // a clean end, in both directions
        assert_eq!(a.read(&mut [0; 1]).await.unwrap(), 0);
        let kind = loop {
            if let Err(error) = a.write_all(&[1; 1000]).await {
                break error.kind();
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
    };
    let ((), (a, b)) = in_time("the reset", async { tokio::join!(apps, carried) }).await;
    assert!(matches!(a.end, End::ResetByPeer(_)), "{:?}", a.end);
    assert!(matches!(b.end, End::ResetByApp(_)), "{:?}", b.end);
}

#[tokio::test]
async fn a_refusal_reaches_the_application_as_a_reset_and_us_with_its_reason() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    let (mut a, agent_a) = tcp_pair().await;
    client.send_open(&sample_open()).unwrap();
    let app = AppStream::new(agent_a).unwrap();
    let refused = mesh_wire::Refused {
        reason: mesh_wire::Refusal::PolicyDenied,
        text: "shop/deny-all".to_owned(),
    };
    let counters = ByteCounts::default();
    let ((), carried, kind) = in_time("the refusal", async {
        tokio::join!(
            async {
                server.recv_open(soon()).await.unwrap();
                server.refuse(refused.clone()).await.unwrap();
            },
            carry(client, app, &counters, CarryOptions::default()),
            async { a.read(&mut [0; 1]).await.unwrap_err().kind() },
        )
    })
    .await;
    assert_eq!(kind, ErrorKind::ConnectionReset);
    match carried.end {
        End::Refused(got) => assert_eq!(got, refused),
        other => panic!("{other:?}"),
    }
}
