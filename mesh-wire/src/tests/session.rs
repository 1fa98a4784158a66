//! A session's life: deadlines, cancellation, answers, reuse, ends.

use std::num::NonZeroU16;
use std::time::Duration;

use mesh_api::Fault;
use tokio::time::Instant;

use super::*;

fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

#[tokio::test]
async fn open_and_its_answer_carry_what_was_said() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    let destination_port = NonZeroU16::new(8080);
    let said = Open { destination_port, acknowledges_drops: true, ..sample_open() };
    client.send_open(&said).unwrap();
    client.flush().await.unwrap();
    assert!(!client.is_idle());
    assert_eq!(server.recv_open(soon()).await.unwrap(), said);
    let answer = Accepted { acknowledges_drops: true, ..Accepted::default() };
    server.send_accepted(&answer).unwrap();
    server.flush().await.unwrap();
    assert_eq!(client.recv_accepted(soon()).await.unwrap(), answer);
}

#[tokio::test]
async fn each_side_may_only_do_its_part() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    assert!(matches!(server.send_open(&sample_open()), Err(SessionError::State(StateError::Open))));
    assert!(matches!(
        server.send_accepted(&Accepted::default()),
        Err(SessionError::State(StateError::Answer))
    ));
    client.send_open(&sample_open()).unwrap();
    assert!(client.send_open(&sample_open()).is_err());
    assert!(client.send_accepted(&Accepted::default()).is_err());
}

#[tokio::test]
async fn a_refusal_carries_reason_and_rule_and_ends_the_session() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    client.send_open(&sample_open()).unwrap();
    client.flush().await.unwrap();
    server.recv_open(soon()).await.unwrap();
    let refused =
        Refused { reason: Refusal::PolicyDenied, text: "shop/cart-only-from-web".to_owned() };
    let client = async move {
        match client.recv_accepted(soon()).await.unwrap_err() {
            SessionError::Refused(refused) => {
                let closed = client.ended().await;
                assert!(matches!(closed, SessionError::Closed), "{closed:?}");
                refused
            }
            other => panic!("{other:?}"),
        }
    };
    let (heard, done) = tokio::join!(client, server.refuse(refused.clone()));
    done.unwrap();
    assert_eq!(heard, refused);
    let error = SessionError::Refused(heard);
    assert_eq!(
        (error.reason().code(), error.fault()),
        ("policy_denied", Some(Fault::Configuration))
    );
    assert!(error.to_string().contains("shop/cart-only-from-web"));
}

#[tokio::test]
async fn a_deadline_leaves_the_session_as_it_was() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    for _ in 0..3 {
        let error = server.recv_open(shortly()).await.unwrap_err();
        assert!(matches!(error, SessionError::TimedOut));
    }
    open(&mut client, &mut server).await;
}

/// A receive that is dropped in the middle of a frame loses none of it.
#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    client.send_open(&sample_open()).unwrap();
    let record = client.channel.pending().to_vec();
    for byte in &record[..record.len() - 1] {
        client.tcp.write_all(&[*byte]).await.unwrap();
        tokio::select! {
            biased;
            result = server.recv_open(soon()) => panic!("{result:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    client.tcp.write_all(&record[record.len() - 1..]).await.unwrap();
    assert_eq!(server.recv_open(soon()).await.unwrap(), sample_open());
}

/// The server closes an idle session while our OPEN is on its way. That is no failure of the
/// connection: it may begin again on another session.
#[tokio::test]
async fn a_close_that_crosses_an_open_is_told_apart() {
    let mesh = Mesh::new().await;
    let (mut client, server) = mesh.sessions().await;
    client.send_open(&sample_open()).unwrap();
    let opening = async move {
        client.flush().await.unwrap();
        client.recv_accepted(soon()).await.unwrap_err()
    };
    let (error, ()) = in_time("the close", async { tokio::join!(opening, server.close()) }).await;
    assert!(matches!(error, SessionError::Closed), "{error:?}");
}

#[tokio::test]
async fn the_end_of_an_idle_session_is_noticed() {
    let mesh = Mesh::new().await;
    let (mut client, server) = mesh.sessions().await;
    let (ended, ()) = tokio::join!(client.ended(), server.close());
    assert!(matches!(ended, SessionError::Closed), "{ended:?}");

    let (mut client, server) = mesh.sessions().await;
    drop(server);
    let ended = client.ended().await;
    assert!(matches!(ended, SessionError::Truncated), "{ended:?}");

    let (mut client, server) = mesh.sessions().await;
    server.tcp.set_zero_linger().unwrap();
    drop(server);
    let ended = client.ended().await;
    assert!(matches!(ended, SessionError::Truncated), "{ended:?}");

    // A pool stops waiting and uses the session after all.
    let (mut client, mut server) = mesh.sessions().await;
    tokio::select! {
        biased;
        error = client.ended() => panic!("{error:?}"),
        () = tokio::task::yield_now() => {}
    }
    open(&mut client, &mut server).await;
}

#[tokio::test]
async fn what_two_thousand_small_frames_in_one_segment_say_is_heard() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.connection().await;
    let sending = async {
        for n in 0..2000u32 {
            client.channel.send(&Frame::Data(&n.to_be_bytes())).unwrap();
        }
        client.flush().await.unwrap();
    };
    let receiving = async {
        for n in 0..2000u32 {
            match server.next().await.unwrap() {
                Received::Data(place) => assert_eq!(server.channel.data(place), n.to_be_bytes()),
                other => panic!("{other:?}"),
            }
        }
    };
    in_time("the frames", async { tokio::join!(sending, receiving) }).await;
}

/// The server has refused us and is gone; what we still write meets its reset. The alert that waits
/// in our kernel explains it.
#[tokio::test]
async fn a_failed_write_reports_the_alert_behind_it() {
    let mesh = Mesh::new().await;
    let key = mesh.forged(|p| p.subject_alt_names = vec![uri("spiffe://other/ns/shop/sa/web")]);
    let (near, far) = tcp_pair().await;
    let (client_tls, server_tls) = (mesh.client_with(key), mesh.server());
    let client = async {
        let mut session = Session::connect(near, &client_tls, soon()).await.unwrap();
        session.send_open(&sample_open()).unwrap();
        loop {
            if let Err(error) = session.flush().await {
                break error;
            }
            session.channel.send(&Frame::Data(&[0; 10_000])).unwrap();
            tokio::task::yield_now().await;
        }
    };
    let server = async { Session::accept(far, &server_tls, soon()).await.unwrap_err() };
    let (error, refused) = in_time("the alert", async { tokio::join!(client, server) }).await;
    assert_eq!(refused.reason().code(), "foreign_trust_domain");
    assert_eq!(error.reason().code(), "foreign_trust_domain", "{error:?}");
}
