//! A kept session that the peer closes while OPEN is on its way: another one carries the
//! connection, and no byte is lost or comes twice.

use mesh_wire::{Received, StateError, frame::DATA_BYTES};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// More than a record, so that some of it has to wait for the answer to OPEN.
const MUCH: usize = 40_000;

fn remembered() -> CarryOptions<'static> {
    CarryOptions { first: FirstData::Remembered, ..CarryOptions::default() }
}

/// What a server's agent has received when it has got OPEN and so many bytes.
async fn receive(server: &mut Session, count: usize) -> Vec<u8> {
    assert_eq!(server.recv_open(soon()).await.unwrap(), sample_open());
    receive_more(server, count).await
}

async fn receive_more(server: &mut Session, count: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < count {
        match server.next().await.unwrap() {
            Received::Data(place) => data.extend_from_slice(server.channel.data(place)),
            other => panic!("{other:?}"),
        }
    }
    data
}

async fn accept(server: &mut Session) {
    server.send_accepted(&Accepted::default()).unwrap();
    server.flush().await.unwrap();
}

fn noise(count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    Dice::new(1).fill(&mut data);
    data
}

/// A session on which OPEN is sealed, and its server's side.
async fn opening(mesh: &Mesh) -> (Session, Session) {
    let (mut client, server) = mesh.sessions().await;
    client.send_open(&sample_open()).unwrap();
    (client, server)
}

#[tokio::test]
async fn another_session_carries_on_with_what_was_sent() {
    let mesh = Mesh::new().await;
    for count in [0, 1, 5000, MUCH] {
        let data = noise(count);
        let (first, mut closes) = opening(&mesh).await;
        let (second, mut answers) = opening(&mesh).await;
        let (mut app, agent) = tcp_pair().await;
        let agent = AppStream::new(agent).unwrap();
        let counters = ByteCounts::default();
        let carried = async {
            let carried = carry(first, agent, &counters, remembered()).await;
            let (agent, sent) = carried.again.expect("it may begin again");
            assert!(sent.len() <= DATA_BYTES, "{} bytes are remembered", sent.len());
            let options = CarryOptions { first: FirstData::Again(sent), ..CarryOptions::default() };
            carry(second, agent, &counters, options).await
        };
        let client = async {
            app.write_all(&data).await.unwrap();
            app.shutdown().await.unwrap();
            let mut answer = Vec::new();
            app.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let servers = async {
            receive(&mut closes, count.min(1)).await;
            closes.close().await;
            let got = receive(&mut answers, count).await;
            accept(&mut answers).await;
            answers.channel.send(&Frame::Data(b"answer")).unwrap();
            answers.channel.send(&Frame::Fin).unwrap();
            answers.flush().await.unwrap();
            assert!(matches!(answers.next().await, Ok(Received::Fin)), "or more than was sent");
            got
        };
        let all = async { tokio::join!(carried, client, servers) };
        let (carried, answer, got) = in_time("the second session", all).await;
        assert!(got == data, "{} of {count} bytes, or others", got.len());
        assert_eq!((&*answer, counters.to_peer()), (&b"answer"[..], count as u64));
        assert!(matches!(carried.end, End::Finished { .. }), "{:?}", carried.end);
    }
}

/// It cannot be known what the peer's agent has done with OPEN.
#[tokio::test]
async fn a_session_that_is_cut_off_instead_resets_the_application() {
    let mesh = Mesh::new().await;
    let (client, mut server) = opening(&mesh).await;
    let (mut app, agent) = tcp_pair().await;
    let play = async move {
        app.write_all(b"once").await.unwrap();
        receive(&mut server, 4).await;
        drop(server);
        app.read_u8().await.unwrap_err().kind()
    };
    let counters = ByteCounts::default();
    let carried = carry(client, AppStream::new(agent).unwrap(), &counters, remembered());
    let both = async { tokio::join!(play, carried) };
    let (seen, carried) = in_time("the cut", both).await;
    assert_eq!(seen, std::io::ErrorKind::ConnectionReset);
    assert!(carried.again.is_none() && carried.session.is_none(), "{carried:?}");
}

/// The client is done with a connection, and the server's side breaks it off all the same.
#[tokio::test]
async fn a_reset_of_the_connection_before_is_not_of_this_one() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = mesh.connection().await;
    server.channel.send(&Frame::Fin).unwrap();
    server.flush().await.unwrap();
    assert!(matches!(client.next().await, Ok(Received::Fin)));
    client.channel.send(&Frame::Fin).unwrap();
    client.send_open(&sample_open()).unwrap();
    let (mut app, agent) = tcp_pair().await;
    let play = async {
        app.write_all(b"of this one").await.unwrap();
        server.channel.send(&Frame::Reset(ResetCode::ApplicationReset)).unwrap();
        server.flush().await.unwrap();
    };
    let counters = ByteCounts::default();
    let carried = carry(client, AppStream::new(agent).unwrap(), &counters, remembered());
    let ((), carried) = in_time("the reset", async { tokio::join!(play, carried) }).await;
    let (_agent, sent) = carried.again.expect("it may begin again");
    assert!(b"of this one".starts_with(&sent), "{sent:?}");
}

/// Nothing is sent on a session that was idle for a while, so that it may even be cut off.
#[tokio::test]
async fn what_is_held_back_goes_to_another_session() {
    let mesh = Mesh::new().await;
    let (client, mut server) = opening(&mesh).await;
    let (mut app, agent) = tcp_pair().await;
    let play = async {
        app.write_all(b"later").await.unwrap();
        server.recv_open(soon()).await.unwrap();
        let data = tokio::time::timeout(Duration::from_millis(100), server.next()).await;
        assert!(data.is_err(), "{data:?} was not held back");
        drop(server);
    };
    let counters = ByteCounts::default();
    let options = CarryOptions { first: FirstData::HeldBack, ..CarryOptions::default() };
    let carried = carry(client, AppStream::new(agent).unwrap(), &counters, options);
    let ((), carried) = in_time("the cut", async { tokio::join!(play, carried) }).await;
    let (_agent, sent) = carried.again.expect("it may begin again");
    assert!(sent.is_empty() && counters.to_peer() == 0, "{sent:?}");
}

/// The answer to OPEN goes with the application's first data, or soon without.
#[tokio::test]
async fn accepted_waits_for_the_first_data() {
    let mesh = Mesh::new().await;
    for answers in [true, false] {
        let (mut client, mut server) = opening(&mesh).await;
        client.channel.send(&Frame::Data(b"request")).unwrap();
        client.flush().await.unwrap();
        server.recv_open(soon()).await.unwrap();
        server.send_accepted(&Accepted::default()).unwrap();
        let (mut app, agent) = tcp_pair().await;
        let counters = ByteCounts::default();
        if answers {
            app.write_all(b"answer").await.unwrap();
        }
        let agent = AppStream::new(agent).unwrap();
        let carried = carry(server, agent, &counters, CarryOptions::default());
        let play = async {
            client.recv_accepted(soon()).await.unwrap();
            // Both are in one segment.
            assert_eq!(client.channel.has_received(), answers);
            drop(client);
        };
        in_time("the answer", async { tokio::join!(play, carried) }).await;
    }
}

#[tokio::test]
async fn after_the_answer_nothing_is_sent_again() {
    let mesh = Mesh::new().await;
    let (client, mut server) = opening(&mesh).await;
    let (mut app, agent) = tcp_pair().await;
    let data = noise(MUCH);
    let play = async {
        app.write_all(&data).await.unwrap();
        let first = receive(&mut server, 1).await;
        accept(&mut server).await;
        let rest = receive_more(&mut server, MUCH - first.len()).await;
        assert!([first, rest].concat() == data, "the rest goes on after the answer");
        server.close().await;
        app.read_u8().await.unwrap_err().kind()
    };
    let counters = ByteCounts::default();
    let carried = carry(client, AppStream::new(agent).unwrap(), &counters, remembered());
    let both = async { tokio::join!(play, carried) };
    let (seen, carried) = in_time("the close", both).await;
    assert_eq!(seen, std::io::ErrorKind::ConnectionReset);
    assert!(carried.again.is_none(), "{carried:?}");
    let end = carried.end;
    assert!(matches!(end, End::PeerFailed(SessionError::State(StateError::Close))), "{end:?}");
}
