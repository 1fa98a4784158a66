//! Any failure in between reaches the application as a reset, and the agent with its reason.

use std::io::ErrorKind;
use std::sync::Arc;

use mesh_wire::{
    HandshakeError, JudgedBy, Received, Refusal, Refused, TlsReason, frame,
    testing::{send_frame, uri},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// One relay, its application, and the bare session of a peer that will misbehave.
async fn half(mesh: &Mesh) -> (TcpStream, Session, impl Future<Output = Carried> + use<>) {
    let (client, server) = mesh.connection().await;
    let (app, agent) = tcp_pair().await;
    let carried = async move {
        let app = AppStream::new(agent).unwrap();
        carry(client, app, &ByteCounts::default(), CarryOptions::default()).await
    };
    (app, server, carried)
}

async fn read_kind(app: &mut TcpStream) -> Option<ErrorKind> {
    let mut rest = Vec::new();
    app.read_to_end(&mut rest).await.err().map(|error| error.kind())
}

#[tokio::test]
async fn a_session_that_is_cut_off_resets_the_application() {
    let mesh = Mesh::new().await;
    for with_reset in [false, true] {
        let (mut app, mut peer, carried) = half(&mesh).await;
        let play = async move {
            peer.channel.send(&Frame::Data(b"half a sentence")).unwrap();
            peer.flush().await.unwrap();
            let mut got = [0; 15];
            app.read_exact(&mut got).await.unwrap();
            if with_reset {
                peer.tcp.set_zero_linger().unwrap();
            }
            drop(peer);
            assert_eq!(read_kind(&mut app).await, Some(ErrorKind::ConnectionReset));
        };
        let ((), carried) = in_time("the cut", async { tokio::join!(play, carried) }).await;
        assert!(
            matches!(carried.end, End::PeerFailed(SessionError::Truncated)),
            "{:?}",
            carried.end
        );
    }
}

#[tokio::test]
async fn a_close_in_the_middle_is_no_end_of_stream() {
    let mesh = Mesh::new().await;
    let (mut app, mut peer, carried) = half(&mesh).await;
    let play = async move {
        peer.channel.send(&Frame::Data(b"half a sentence")).unwrap();
        peer.channel.close();
        peer.flush().await.unwrap();
        let kind = read_kind(&mut app).await;
        drop(peer);
        kind
    };
    let (kind, carried) = in_time("the close", async { tokio::join!(play, carried) }).await;
    assert_eq!(kind, Some(ErrorKind::ConnectionReset));
    assert_eq!(carried.end.reason().code(), "unexpected_frame", "{:?}", carried.end);
}

#[tokio::test]
async fn a_record_altered_on_the_way_resets_the_application_and_tells_the_peer() {
    let mesh = Mesh::new().await;
    let (mut app, mut peer, carried) = half(&mesh).await;
    let play = async move {
        peer.channel.send(&Frame::Data(b"truth")).unwrap();
        let mut record = peer.channel.pending().to_vec();
        peer.channel.written(usize::MAX);
        record[7] ^= 0x20;
        peer.tcp.write_all(&record).await.unwrap();
        assert_eq!(read_kind(&mut app).await, Some(ErrorKind::ConnectionReset));
        peer.ended().await
    };
    let (told, carried) = in_time("the alert", async { tokio::join!(play, carried) }).await;
    assert_eq!(carried.end.reason().code(), "bad_record");
    let reason = TlsReason::BadRecord;
    assert!(
        matches!(told, SessionError::Tls { reason: r, judged_by: JudgedBy::Peer } if r == reason),
        "{told:?}"
    );
}

/// A peer that sends anything while a connection is carried. The application always gets the data
/// before the first fault. It sees a clean end if and only if the peer sent FIN.
#[tokio::test]
async fn whatever_the_peer_says_only_fin_is_a_clean_end() {
    let mesh = Mesh::new().await;
    let (mut clean, mut reset) = (0, 0);
    for seed in 0..120 {
        let mut dice = Dice::new(seed);
        let (mut app, mut peer, carried) = half(&mesh).await;
        app.shutdown().await.unwrap();
        let play = async move {
            assert!(matches!(peer.next().await.unwrap(), Received::Fin));
            let (mut expected, mut end) = (Vec::new(), None);
            for _ in 0..dice.below(8) {
                let (body, ends) = something(&mut dice);
                send_frame(&mut peer, &body);
                if end.is_none() && body.first() == Some(&frame::kind::DATA) && ends.is_none() {
                    expected.extend_from_slice(&body[1..]);
                }
                end = end.or(ends);
            }
            peer.flush().await.unwrap();
            drop(peer);
            let mut got = Vec::new();
            let seen = app.read_to_end(&mut got).await.map_err(|error| error.kind());
            assert_eq!(got.len(), expected.len(), "seed {seed}");
            assert!(got == expected, "seed {seed}: other bytes");
            match end {
                Some(Ok(())) => assert_eq!(seen, Ok(got.len()), "seed {seed}"),
                Some(Err(())) | None => {
                    assert_eq!(seen, Err(ErrorKind::ConnectionReset), "seed {seed}");
                }
            }
            end == Some(Ok(()))
        };
        let (was_clean, carried) = in_time("an end", async { tokio::join!(play, carried) }).await;
        assert_eq!(was_clean, matches!(carried.end, End::Finished { .. }), "{:?}", carried.end);
        *(if was_clean { &mut clean } else { &mut reset }) += 1;
    }
    assert!(clean > 20 && reset > 20, "{clean} clean, {reset} reset");
}

/// A frame's bytes, and whether it ends the connection: `Ok` by FIN, `Err` in any other way.
fn something(dice: &mut Dice) -> (Vec<u8>, Option<Result<(), ()>>) {
    match dice.below(12) {
        0..7 => {
            let mut body = vec![0; 2 + dice.below(16_382) as usize];
            dice.fill(&mut body);
            body[0] = frame::kind::DATA;
            (body, None)
        }
        7 => (vec![0x80 | dice.number() as u8; 20], None), // may be skipped
        8 | 9 => (vec![frame::kind::FIN], Some(Ok(()))),
        10 => (vec![frame::kind::RESET, 0, 1], Some(Err(()))),
        _ => {
            let faults: [&[u8]; 6] =
                [&[], &[0], &[0x7f, 1], &[frame::kind::DATA], &[frame::kind::FIN, 1], &[2]];
            (faults[dice.below(6) as usize].to_vec(), Some(Err(())))
        }
    }
}

#[tokio::test]
async fn an_open_that_is_not_answered_is_given_up() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.sessions().await;
    let (mut app, agent) = tcp_pair().await;
    client.send_open(&sample_open()).unwrap();
    let answer_by = Some(Instant::now() + Duration::from_millis(50));
    let counters = ByteCounts::default();
    let carried = carry(
        client,
        AppStream::new(agent).unwrap(),
        &counters,
        CarryOptions { answer_by, ..CarryOptions::default() },
    );
    let play = async {
        server.recv_open(soon()).await.unwrap();
        let kind = read_kind(&mut app).await;
        let told = server.recv_open(soon()).await.unwrap_err();
        drop(server);
        (kind, told)
    };
    let ((kind, told), carried) = in_time("giving up", async { tokio::join!(play, carried) }).await;
    assert!(matches!(carried.end, End::NotAnswered), "{:?}", carried.end);
    assert_eq!(kind, Some(ErrorKind::ConnectionReset));
    assert_eq!(told.reason().code(), "unexpected_frame"); // RESET where OPEN was awaited
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_applications() {
    let mesh = Mesh::new().await;
    let (mut a, mut b, carried) = mesh_pair(&mesh).await;
    let play = async {
        a.write_all(b"x").await.unwrap();
        b.read_exact(&mut [0]).await.unwrap();
    };
    tokio::select! {
        () = play => {}
        ends = carried => panic!("{ends:?}"),
    }
    let kinds = in_time("the resets", async { tokio::join!(read_kind(&mut a), read_kind(&mut b)) });
    assert_eq!(kinds.await, (Some(ErrorKind::ConnectionReset), Some(ErrorKind::ConnectionReset)));
}

/// As for a certificate: REFUSED must arrive although data behind OPEN is never read.
#[tokio::test]
async fn the_reason_of_a_refusal_survives_early_data() {
    let mesh = Mesh::new().await;
    for round in 0..30 {
        let (mut client, mut server) = mesh.sessions().await;
        let (mut app, agent) = tcp_pair().await;
        client.send_open(&sample_open()).unwrap();
        let app_stream = AppStream::new(agent).unwrap();
        let counters = ByteCounts::default();
        let carried = carry(client, app_stream, &counters, CarryOptions::default());
        let refusing = async {
            server.recv_open(soon()).await.unwrap();
            let reason = Refusal::NotEnrolled;
            server.refuse(Refused { reason, text: String::new() }).await.unwrap();
        };
        let writer = async {
            app.write_all(&vec![round; 2 << 20]).await.ok();
            read_kind(&mut app).await
        };
        let (carried, (), kind) =
            in_time("the refusal", async { tokio::join!(carried, refusing, writer) }).await;
        assert_eq!(kind, Some(ErrorKind::ConnectionReset));
        assert_eq!(carried.end.reason().code(), "destination_not_enrolled", "{:?}", carried.end);
    }
}

/// The server judges our certificate while early data is already on its way to it. Its close on
/// unread data makes its kernel send a reset. The reason must arrive every time nevertheless.
#[tokio::test]
async fn the_reason_of_a_refused_certificate_survives_early_data() {
    let mesh = Mesh::new().await;
    let key = mesh.forged(|p| p.subject_alt_names = vec![uri("spiffe://other/ns/shop/sa/web")]);
    for round in 0..30 {
        let ((near, far), (mut app, agent)) = (tcp_pair().await, tcp_pair().await);
        let client_tls = mesh.client_with(Arc::clone(&key));
        let server_tls = mesh.server();
        let client = async {
            let mut session = Session::connect(near, &client_tls, soon()).await.unwrap();
            session.send_open(&sample_open()).unwrap();
            let app = AppStream::new(agent).unwrap();
            carry(session, app, &ByteCounts::default(), CarryOptions::default()).await
        };
        let server = async { Session::accept(far, &server_tls, soon()).await.unwrap_err() };
        let writer = async {
            let data = vec![round; 1 << 20];
            app.write_all(&data).await.ok();
            read_kind(&mut app).await
        };
        let (carried, refused, kind) =
            in_time("the refusal", async { tokio::join!(client, server, writer) }).await;
        assert_eq!(kind, Some(ErrorKind::ConnectionReset));
        assert!(matches!(refused, HandshakeError::Tls { judged_by: JudgedBy::Us, .. }));
        assert_eq!(refused.reason().code(), "foreign_trust_domain");
        assert_eq!(carried.end.reason().code(), "foreign_trust_domain", "{:?}", carried.end);
    }
}
