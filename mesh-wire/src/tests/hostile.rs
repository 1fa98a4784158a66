//! An authenticated peer that breaks the protocol, or a network that does. Every state and every
//! kind of damage gives a named error, never a panic.

use tokio::io::AsyncWriteExt as _;

use super::record::{Content, HEADER_BYTES, TRAILER_BYTES};
use super::*;

const TLS_BY_US: fn(TlsReason) -> SessionError =
    |reason| SessionError::Tls { reason, judged_by: JudgedBy::Us };

/// The victim's state at the attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Opened,
    Accepted,
    PeerEnded,
}

const STAGES: [Stage; 4] = [Stage::Idle, Stage::Opened, Stage::Accepted, Stage::PeerEnded];

/// An attacking client, and a victim server in that state.
async fn at_stage(mesh: &Mesh, stage: Stage) -> (Session, Session) {
    let (mut client, mut server) = mesh.sessions().await;
    if stage == Stage::Idle {
        return (client, server);
    }
    client.send_open(&sample_open()).unwrap();
    client.flush().await.unwrap();
    server.recv_open(soon()).await.unwrap();
    if stage != Stage::Opened {
        server.send_accepted(&Accepted::default()).unwrap();
        server.flush().await.unwrap();
        client.recv_accepted(soon()).await.unwrap();
    }
    if stage == Stage::PeerEnded {
        client.channel.send(&Frame::Fin).unwrap();
        client.flush().await.unwrap();
        assert!(matches!(server.next().await.unwrap(), Received::Fin));
    }
    (client, server)
}

/// The victim's answer to these bytes, put on the socket as they are.
async fn says_to_bytes(mesh: &Mesh, stage: Stage, bytes: &[u8]) -> SessionError {
    let (mut client, mut server) = at_stage(mesh, stage).await;
    client.tcp.write_all(bytes).await.unwrap();
    client.tcp.shutdown().await.unwrap();
    in_time("an error", server.next()).await.unwrap_err()
}

/// The victim's answer to what the attacker has sealed, and what the attacker is told.
async fn exchange(
    mut client: Session,
    mut server: Session,
) -> (Result<Received, SessionError>, Result<Received, SessionError>) {
    client.flush().await.unwrap();
    // Each is dropped when it has heard, so that the other side need not wait.
    let attacker = async move { client.next().await };
    let victim = async move { server.next().await };
    in_time("an error", async { tokio::join!(victim, attacker) }).await
}

fn same(left: &SessionError, right: &SessionError) -> bool {
    format!("{left:?}") == format!("{right:?}")
}

#[tokio::test]
async fn garbage_on_the_socket_is_named_in_every_state() {
    let mesh = Mesh::new().await;
    for stage in STAGES {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], TlsReason::UnexpectedMessage),
            (
                &[
                    23, 3, 3, 0, 40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1,
                    2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0,
                ],
                TlsReason::BadRecord,
            ),
            (&[23, 3, 3, 0, 0], TlsReason::BadRecord),
            (&[23, 3, 3, 0, 1, 9], TlsReason::BadRecord),
            (&[23, 3, 3, 0x41, 1, 9], TlsReason::OversizedRecord),
            (&[23, 3, 3, 0xff, 0xff, 9], TlsReason::OversizedRecord),
            (&[21, 3, 3, 0, 2, 2, 40], TlsReason::UnexpectedMessage), // a plaintext alert
            (&[22, 3, 3, 0, 1, 1], TlsReason::UnexpectedMessage),
            (&[20, 3, 3, 0, 1, 1], TlsReason::UnexpectedMessage),
        ] {
            let error = says_to_bytes(&mesh, stage, bytes).await;
            assert!(same(&error, &TLS_BY_US(expected)), "{error:?} to {bytes:02x?} in {stage:?}");
        }
        // A stream that ends too early is truncated, not ended.
        for bytes in [&[][..], &[23], &[23, 3, 3, 0], &[23, 3, 3, 1, 0, 5, 5]] {
            let error = says_to_bytes(&mesh, stage, bytes).await;
            assert!(matches!(error, SessionError::Truncated), "{error:?} to {bytes:02x?}");
        }
    }
}

#[tokio::test]
async fn a_sealed_record_that_tls_does_not_allow_is_named() {
    use Content::{Alert, Data, Handshake};
    let mesh = Mesh::new().await;
    let peer = |reason| SessionError::Tls { reason, judged_by: JudgedBy::Peer };
    let largest = vec![0x80; 16_384];
    let too_large = vec![0x80; 16_385];
    for (content, body, expected) in [
        (Data, &[][..], SessionError::Frame(FrameError::Empty)),
        (Data, &too_large, TLS_BY_US(TlsReason::OversizedRecord)),
        (Alert, &[], TLS_BY_US(TlsReason::MalformedMessage)),
        (Alert, &[2], TLS_BY_US(TlsReason::MalformedMessage)),
        (Alert, &[2, 40, 0], TLS_BY_US(TlsReason::MalformedMessage)),
        (Alert, &[1, 40], peer(TlsReason::NothingInCommon)),
        (Alert, &[2, 49], peer(TlsReason::WrongIdentity)),
        (Alert, &[2, 255], peer(TlsReason::OtherAlert(255))),
        (Handshake, &[], TLS_BY_US(TlsReason::UnexpectedMessage)),
        (Handshake, &[24, 0, 0, 1, 2], TLS_BY_US(TlsReason::IllegalParameter)),
        (Handshake, &[24, 0, 0, 0], TLS_BY_US(TlsReason::IllegalParameter)),
        (Handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], TLS_BY_US(TlsReason::UnexpectedMessage)),
        (Handshake, &[24, 0, 0, 1, 0, 4], TLS_BY_US(TlsReason::UnexpectedMessage)),
        (Handshake, &[4, 0, 0, 1, 0], TLS_BY_US(TlsReason::UnexpectedMessage)), // from a client
        (Handshake, &[1, 0, 0, 0], TLS_BY_US(TlsReason::UnexpectedMessage)),    // renegotiation
        (Handshake, &[24, 0xff, 0, 0], TLS_BY_US(TlsReason::MalformedMessage)),
    ] {
        let (mut client, server) = mesh.sessions().await;
        send_raw(&mut client, Data, &largest); // the largest that may be, and ignorable
        send_raw(&mut client, content, body);
        let error = exchange(client, server).await.0.unwrap_err();
        assert!(same(&error, &expected), "{error:?} to {content:?} {:02x?}", body.get(..8));
    }
}

#[tokio::test]
async fn handshake_messages_may_be_split_but_not_interleaved() {
    let mesh = Mesh::new().await;
    let (mut client, server) = mesh.sessions().await;
    for byte in [24, 0, 0, 1] {
        send_raw(&mut client, Content::Handshake, &[byte]);
    }
    send_raw(&mut client, Content::Data, &[0x80]);
    let error = exchange(client, server).await.0.unwrap_err();
    assert!(same(&error, &TLS_BY_US(TlsReason::UnexpectedMessage)), "{error:?}");
}

#[tokio::test]
async fn a_flood_of_key_updates_is_stopped() {
    let mesh = Mesh::new().await;
    let (mut client, server) = mesh.sessions().await;
    for _ in 0..33 {
        client.channel.update_keys(true).unwrap();
    }
    let error = exchange(client, server).await.0.unwrap_err();
    assert!(same(&error, &TLS_BY_US(TlsReason::UnexpectedMessage)), "{error:?}");
}

#[tokio::test]
async fn frames_that_may_not_come_are_named_in_every_state() {
    use Stage as S;
    use StateError as E;
    let mesh = Mesh::new().await;
    let mut open = Vec::new();
    Frame::Open(sample_open()).encode(&mut open);
    let fin: &[u8] = &[frame::kind::FIN];
    let data: &[u8] = &[frame::kind::DATA, 1];
    let reset: &[u8] = &[frame::kind::RESET, 0, 1];
    let accepted: &[u8] = &[frame::kind::ACCEPTED];
    let refused: &[u8] = &[frame::kind::REFUSED, 0, 1];
    for (stage, body, expected) in [
        (S::Idle, fin, E::Fin),
        (S::Idle, data, E::Data),
        (S::Idle, reset, E::Reset),
        (S::Idle, accepted, E::Answer),
        (S::Idle, refused, E::Answer),
        (S::Opened, &open, E::Open),
        (S::Opened, accepted, E::Answer),
        (S::Opened, refused, E::Answer),
        (S::Accepted, &open, E::Open),
        (S::Accepted, accepted, E::Answer),
        (S::Accepted, refused, E::Answer),
        (S::PeerEnded, &open, E::Open),
        (S::PeerEnded, data, E::Data),
        (S::PeerEnded, fin, E::Fin),
    ] {
        let (mut client, server) = at_stage(&mesh, stage).await;
        send_raw(&mut client, Content::Data, body);
        let (error, told) = exchange(client, server).await;
        let error = error.unwrap_err();
        let text = format!("{error:?} to {body:02x?} in {stage:?}");
        assert!(matches!(error, SessionError::State(got) if got == expected), "{text}");
        // The attacker is told that it, not the network, is at fault.
        let told = told.unwrap_err();
        let reason = TlsReason::UnexpectedMessage;
        assert!(same(&told, &SessionError::Tls { reason, judged_by: JudgedBy::Peer }), "{told:?}");
    }
    for stage in STAGES {
        for body in [&[0x00][..], &[0x07], &[0x7f, 1], &[frame::kind::DATA], &[frame::kind::FIN, 0]]
        {
            let (mut client, server) = at_stage(&mesh, stage).await;
            send_raw(&mut client, Content::Data, body);
            let error = exchange(client, server).await.0.unwrap_err();
            assert!(matches!(error, SessionError::Frame(_)), "{error:?} to {body:02x?}");
        }
        // Frames of a newer version that may be skipped are skipped.
        let (mut client, mut server) = at_stage(&mesh, stage).await;
        send_raw(&mut client, Content::Data, &[0xfe, 1, 2, 3]);
        client.close().await;
        match (stage, in_time("the close", server.next()).await) {
            (Stage::Idle, Ok(Received::Closed))
            | (_, Err(SessionError::State(StateError::Close))) => {}
            (stage, other) => panic!("{other:?} in {stage:?}"),
        }
    }
}

/// Each bit of a sealed record matters, and so does the order of records.
#[tokio::test]
async fn records_can_be_neither_altered_nor_replayed_nor_reordered() {
    let mesh = Mesh::new().await;
    let length = HEADER_BYTES + 4 + TRAILER_BYTES;
    for place in 0..length {
        let (mut client, mut server) = mesh.sessions().await;
        send_raw(&mut client, Content::Data, &[0x80, 1, 2, 3]);
        let mut record = client.channel.pending().to_vec();
        assert_eq!(record.len(), length);
        record[place] ^= 1;
        client.tcp.write_all(&record).await.unwrap();
        client.tcp.shutdown().await.unwrap();
        let error = in_time("an error", server.next()).await.unwrap_err();
        let expected = match place {
            0 => TLS_BY_US(TlsReason::UnexpectedMessage),
            3 => SessionError::Truncated, // 256 bytes more are awaited
            _ => TLS_BY_US(TlsReason::BadRecord),
        };
        assert!(same(&error, &expected), "{error:?}, byte {place} altered");
    }
    for order in [[0, 0], [1, 0]] {
        let (mut client, mut server) = mesh.sessions().await;
        let records = [0x80, 0x81].map(|kind| {
            send_raw(&mut client, Content::Data, &[kind]);
            let record = client.channel.pending().to_vec();
            client.channel.written(usize::MAX);
            record
        });
        for which in order {
            client.tcp.write_all(&records[which]).await.unwrap();
        }
        let error = in_time("an error", server.next()).await.unwrap_err();
        assert!(same(&error, &TLS_BY_US(TlsReason::BadRecord)), "{error:?}, order {order:?}");
    }
}

/// Padding is part of TLS (RFC 8446 §5.4): it is removed, and a record of zeros only is refused.
#[tokio::test]
async fn padding_is_allowed_and_nothing_but_padding_is_not() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.connection().await;
    // A DATA frame with its inner type and 100 zeros: sealed with the type byte 0 after them.
    let padded = [&[frame::kind::DATA, 7][..], &[23], &[0; 100]].concat();
    for (body, expected) in [(padded, Some(7)), (vec![0; 50], None)] {
        let record = seal_with_inner_type_zero(&mut client, &body);
        client.tcp.write_all(&record).await.unwrap();
        match (in_time("the record", server.next()).await, expected) {
            (Ok(Received::Data(place)), Some(byte)) => {
                assert_eq!(server.channel.data(place), [byte]);
            }
            (Err(error), None) => {
                assert!(same(&error, &TLS_BY_US(TlsReason::UnexpectedMessage)), "{error:?}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

fn seal_with_inner_type_zero(session: &mut Session, body: &[u8]) -> Vec<u8> {
    let mut record = vec![0; HEADER_BYTES + body.len() + TRAILER_BYTES];
    record[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
    session.channel.traffic.sealer.seal_as(&mut record, 0).unwrap();
    record
}

/// An authenticated peer that sends anything: frames whole and damaged, TLS messages, alerts, in
/// any order. Each conversation ends with a named error, or with everything understood.
#[tokio::test]
async fn a_peer_that_says_anything_is_understood_or_refused() {
    let mesh = Mesh::new().await;
    let mut ends = std::collections::BTreeMap::new();
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let (mut client, mut server) = mesh.sessions().await;
        if dice.below(4) > 0 {
            client.send_open(&sample_open()).unwrap(); // else most would end at once
        }
        for _ in 0..=dice.below(12) {
            say_anything(&mut client, &mut dice);
        }
        client.flush().await.unwrap();
        drop(client);
        let end = in_time("an end", async {
            loop {
                match server.next().await {
                    Ok(Received::Open(_)) if dice.below(2) == 0 => {
                        server.send_accepted(&Accepted::default()).unwrap();
                    }
                    Ok(Received::Closed) => break "closed",
                    Ok(_) => {}
                    Err(error) => break error.reason().code(),
                }
            }
        })
        .await;
        *ends.entry(end).or_insert(0) += 1;
    }
    println!("{ends:?}");
    assert!(ends.len() >= 5, "the seeds reach too little: {ends:?}");
}

fn say_anything(session: &mut Session, dice: &mut Dice) {
    let kind = dice.below(20);
    let mut body = Vec::new();
    match kind {
        0..4 => Frame::Open(sample_open()).encode(&mut body),
        4..8 => Frame::Data(&vec![7; 1 + dice.below(16_383) as usize]).encode(&mut body),
        8 | 9 => Frame::Fin.encode(&mut body),
        10 => Frame::Reset(ResetCode::from_wire(dice.number() as u16)).encode(&mut body),
        11..14 => body = vec![0x80 | dice.number() as u8; 1 + dice.below(100) as usize],
        14 => return session.channel.update_keys(dice.below(2) == 0).unwrap(),
        15 => body = vec![24, 0, 0, 1, dice.below(3) as u8],
        _ => {
            body = vec![0; dice.below(40) as usize];
            dice.fill(&mut body);
        }
    }
    if dice.below(12) == 0 && !body.is_empty() {
        let at = dice.below(body.len() as u64) as usize;
        body[at] = dice.number() as u8;
    }
    let content = match (kind, dice.below(30)) {
        (15, _) | (_, 0) => Content::Handshake,
        (_, 1) => Content::Alert,
        _ => Content::Data,
    };
    send_raw(session, content, &body);
}
