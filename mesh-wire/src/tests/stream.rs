//! A session's connection as a byte stream: both directions, every end, and what may come between.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::record::Content;
use super::*;

const MANY_BYTES: usize = 3_000_000;

async fn streams(mesh: &Mesh) -> (Stream, Stream) {
    let (client, server) = mesh.connection().await;
    (Stream::new(client), Stream::new(server))
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Dice::new(length as u64).fill(&mut bytes);
    bytes
}

#[expect(clippy::disallowed_methods, reason = "a task of a test, awaited there")]
fn task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work)
}

/// Everything up to the end, or up to an error.
async fn read_all(stream: &mut Stream) -> (Vec<u8>, Option<io::Error>) {
    let mut bytes = Vec::new();
    let error = in_time("the end", stream.read_to_end(&mut bytes)).await.err();
    (bytes, error)
}

fn session_error(error: &io::Error) -> &SessionError {
    match StreamError::of(error) {
        Some(StreamError::Session(error)) => error,
        other => panic!("{other:?} in {error:?}"),
    }
}

/// The client's two directions are two tasks.
#[tokio::test]
async fn what_is_echoed_is_what_was_written_and_the_session_carries_the_next_connection() {
    let mesh = Mesh::new().await;
    let (client, server) = streams(&mesh).await;
    let echo = task(async move {
        let (mut reader, mut writer) = tokio::io::split(server);
        let count = tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
        (count, reader.unsplit(writer))
    });
    let (mut reader, mut writer) = tokio::io::split(client);
    let writing = task(async move {
        let (bytes, mut dice) = (random_bytes(MANY_BYTES), Dice::new(7));
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let some = usize::try_from(1 + dice.below(200_000)).unwrap().min(rest.len());
            writer.write_all(&rest[..some]).await.unwrap();
            rest = &rest[some..];
        }
        writer.shutdown().await.unwrap();
        writer
    });
    let mut echoed = Vec::new();
    in_time("the echo", reader.read_to_end(&mut echoed)).await.unwrap();
    assert!(echoed == random_bytes(MANY_BYTES));
    let (count, server) = echo.await.unwrap();
    assert_eq!(count, MANY_BYTES as u64);
    let client = reader.unsplit(writing.await.unwrap());
    let [mut client, mut server] = [client, server].map(|it| it.into_session().unwrap());
    assert_eq!((client.memory_bytes(), server.memory_bytes()), (0, 0));
    open(&mut client, &mut server).await;
}

#[tokio::test]
async fn an_end_in_one_direction_leaves_the_other_open() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = streams(&mesh).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    client.shutdown().await.unwrap(); // twice is no fault
    let error = client.write(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

    let (bytes, error) = read_all(&mut server).await;
    assert_eq!((&bytes[..], error.is_none()), (&b"question"[..], true));
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    let (bytes, error) = read_all(&mut client).await;
    assert_eq!((&bytes[..], error.is_none()), (&b"answer"[..], true));
    assert!(client.into_session().is_some() && server.into_session().is_some());
}

#[tokio::test]
async fn a_connection_that_has_not_ended_gives_no_session_back() {
    let mesh = Mesh::new().await;
    let (mut client, server) = streams(&mesh).await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(client.into_session().is_none());
    assert!(server.into_session().is_none());
}

#[tokio::test]
async fn a_reset_is_an_error_with_its_code_after_all_data() {
    let mesh = Mesh::new().await;
    for &code in ResetCode::ALL {
        let (mut client, server) = mesh.connection().await;
        let mut server = Stream::new(server);
        client.channel.send(&Frame::Data(b"half of it")).unwrap();
        client.channel.send(&Frame::Reset(code)).unwrap();
        client.flush().await.unwrap();
        let (bytes, error) = read_all(&mut server).await;
        assert_eq!(bytes, b"half of it");
        let written = server.write(b"answer").await.unwrap_err();
        let shut = server.shutdown().await.unwrap_err();
        for error in [error.unwrap(), written, shut] {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let said = StreamError::of(&error).unwrap();
            assert!(matches!(said, StreamError::Reset(said) if *said == code), "{said:?}");
        }
    }
}

#[tokio::test]
async fn a_session_that_is_cut_off_is_no_end() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = streams(&mesh).await;
    client.write_all(b"half of it").await.unwrap();
    drop(client);
    let (bytes, error) = read_all(&mut server).await;
    assert_eq!(bytes, b"half of it");
    for error in [error.unwrap(), server.read_u8().await.unwrap_err()] {
        assert!(matches!(session_error(&error), SessionError::Truncated), "{error:?}");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    // A record that is cut in the middle.
    let (mut client, server) = mesh.connection().await;
    let mut server = Stream::new(server);
    client.channel.send(&Frame::Data(&[7; 1000])).unwrap();
    let record = client.channel.pending().to_vec();
    client.tcp.write_all(&record[..500]).await.unwrap();
    drop(client);
    let (bytes, error) = read_all(&mut server).await;
    assert!(bytes.is_empty());
    assert!(matches!(session_error(&error.unwrap()), SessionError::Truncated));
}

#[tokio::test]
async fn other_records_between_the_data_are_not_seen_and_small_reads_lose_nothing() {
    let mesh = Mesh::new().await;
    let (client, mut server) = mesh.connection().await;
    let mut client = Stream::new(client);
    let expected = random_bytes(20_000);
    let sent = expected.clone();
    let sending = task(async move {
        let mut dice = Dice::new(3);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            match dice.below(4) {
                0 => send_frame(&mut server, &[0x80, 1, 2, 3]), // of a newer version
                1 => server.channel.update_keys(dice.below(2) == 0).unwrap(),
                _ => {}
            }
            let some = usize::try_from(1 + dice.below(900)).unwrap().min(rest.len());
            server.channel.send(&Frame::Data(&rest[..some])).unwrap();
            server.flush().await.unwrap();
            rest = &rest[some..];
        }
        for _ in 0..5 {
            send_raw(&mut server, Content::Handshake, &[4, 0, 0, 3, 1, 2, 3]); // a ticket
        }
        server.channel.send(&Frame::Fin).unwrap();
        server.flush().await.unwrap();
        // It was asked to change its keys, and has to be understood.
        loop {
            match server.next().await.unwrap() {
                Received::Data(place) => assert_eq!(server.channel.data(place), b"bye"),
                Received::Fin => return,
                other => panic!("{other:?}"),
            }
        }
    });
    let mut read = Vec::new();
    while let Ok(byte) = in_time("a byte", client.read_u8()).await {
        read.push(byte);
    }
    assert!(read == expected);
    assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0, "the end stays the end");
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    in_time("the peer", sending).await.unwrap();
}

/// A reader alone sends what waits: the client's last flight, and OPEN.
#[tokio::test]
async fn an_open_goes_out_with_the_first_bytes_or_with_a_read() {
    let mesh = Mesh::new().await;
    for speaks_first in [true, false] {
        let (near, far) = tcp_pair().await;
        let (client_tls, server_tls) = (mesh.client(), mesh.server());
        let client = async {
            let mut session = Session::connect(near, &client_tls, soon()).await.unwrap();
            session.send_open(&sample_open()).unwrap();
            let mut client = Stream::new(session);
            if speaks_first {
                client.write_all(b"hello").await.unwrap();
                assert!(client.session().channel.pending().is_empty(), "no flush is needed");
            }
            let mut answer = [0; 6];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"answer");
        };
        let server = async {
            let mut session = Session::accept(far, &server_tls, soon()).await.unwrap();
            assert_eq!(session.recv_open(soon()).await.unwrap(), sample_open());
            session.send_accepted(&Accepted::default()).unwrap();
            let mut server = Stream::new(session);
            if speaks_first {
                let mut said = [0; 5];
                server.read_exact(&mut said).await.unwrap();
                assert_eq!(&said, b"hello");
            }
            server.write_all(b"answer").await.unwrap();
            server
        };
        in_time("the answer", async { tokio::join!(client, server) }).await;
    }
}

#[tokio::test]
async fn no_connection_is_told_apart_from_a_broken_one() {
    let mesh = Mesh::new().await;
    for refuses in [true, false] {
        let (mut client, mut server) = mesh.sessions().await;
        client.send_open(&sample_open()).unwrap();
        client.flush().await.unwrap();
        let mut client = Stream::new(client);
        let reading = async {
            let error = read_all(&mut client).await.1.unwrap();
            drop(client);
            error
        };
        let refusing = async {
            if refuses {
                server.recv_open(soon()).await.unwrap();
                let reason = Refusal::Draining;
                server.refuse(Refused { reason, text: String::new() }).await.unwrap();
            } else {
                server.close().await;
            }
        };
        let (error, ()) = in_time("no", async { tokio::join!(reading, refusing) }).await;
        match session_error(&error) {
            SessionError::Refused(refused) if refuses => {
                assert_eq!(refused.reason, Refusal::Draining);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            SessionError::Closed if !refuses => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_so() {
    let mesh = Mesh::new().await;
    for (frame, code) in [(&[0x02][..], "unexpected_frame"), (&[0x7f][..], "malformed_frame")] {
        let (mut client, server) = mesh.connection().await;
        let mut server = Stream::new(server);
        client.channel.send(&Frame::Data(b"x")).unwrap();
        send_frame(&mut client, frame);
        client.flush().await.unwrap();
        let (bytes, error) = read_all(&mut server).await;
        let error = error.unwrap();
        assert_eq!((&bytes[..], error.kind()), (&b"x"[..], io::ErrorKind::InvalidData));
        assert_eq!(session_error(&error).reason().code(), code);
        let heard = in_time("the alert", client.next()).await.unwrap_err();
        assert!(matches!(heard, SessionError::Tls { judged_by: JudgedBy::Peer, .. }), "{heard:?}");
    }
}

/// A peer that does not read stops the writer within bounds. A write that is given up has sent
/// nothing; what was taken goes out while another task reads.
#[tokio::test]
async fn what_a_write_has_taken_arrives_once_and_nothing_else() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = streams(&mesh).await;
    let bytes = random_bytes(50_000_000);
    let mut taken = 0;
    let patience = Duration::from_millis(200);
    while let Ok(count) = tokio::time::timeout(patience, client.write(&bytes[taken..])).await {
        taken += count.unwrap();
    }
    assert!(taken > 0 && taken < bytes.len(), "{taken} bytes are taken by a peer that reads none");
    assert!(!client.session().channel.pending().is_empty(), "the socket is full");
    let held = client.session().memory_bytes();
    assert!(held <= 300 * 1024, "{held}");

    let answered = task(async move { (client.read_u8().await.unwrap(), client) });
    let mut read = vec![0; taken];
    in_time("the rest", server.read_exact(&mut read)).await.unwrap();
    assert!(read == bytes[..taken]);
    server.write_all(b"!").await.unwrap();
    let (answer, mut client) = in_time("the answer", answered).await.unwrap();
    assert_eq!(answer, b'!');
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.0, b"", "nothing but what was taken");
}

/// The reading task finds unwritten bytes and waits for the socket as well. The writing task is
/// woken all the same.
#[tokio::test]
async fn a_task_that_reads_does_not_take_the_writers_turn() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = streams(&mesh).await;
    let bytes = random_bytes(50_000_000);
    let mut taken = 0;
    let patience = Duration::from_millis(200);
    while let Ok(count) = tokio::time::timeout(patience, client.write(&bytes[taken..])).await {
        taken += count.unwrap();
    }
    let (mut reader, mut writer) = tokio::io::split(client);
    let more = random_bytes(1_000_000);
    let expected = [&bytes[..taken], &more[..]].concat();
    let writing = task(async move { writer.write_all(&more).await.unwrap() });
    tokio::task::yield_now().await; // it waits
    let reading = task(async move { reader.read_u8().await.unwrap() });
    tokio::task::yield_now().await; // it waits, too
    assert!(!writing.is_finished() && !reading.is_finished());
    let mut read = vec![0; expected.len()];
    in_time("all of it", server.read_exact(&mut read)).await.unwrap();
    assert!(read == expected);
    server.write_all(b"!").await.unwrap();
    in_time("the writer", writing).await.unwrap();
    assert_eq!(in_time("the reader", reading).await.unwrap(), b'!');
}

#[tokio::test]
async fn one_write_of_several_slices_keeps_their_order() {
    let mesh = Mesh::new().await;
    let (mut client, mut server) = streams(&mesh).await;
    let bytes = random_bytes(40_000);
    let slices = [&bytes[..1], &[], &bytes[1..20_000], &bytes[20_000..]].map(io::IoSlice::new);
    assert!(tokio::io::AsyncWrite::is_write_vectored(&client));
    assert_eq!(client.write_vectored(&slices).await.unwrap(), bytes.len());
    client.shutdown().await.unwrap();
    assert!(read_all(&mut server).await.0 == bytes);
}

/// A real HTTP server on one end. Three requests use the same connection.
#[tokio::test]
async fn http_runs_on_it() {
    let mesh = Mesh::new().await;
    let (mut client, server) = streams(&mesh).await;
    let body = "x".repeat(100_000);
    let answer = body.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = format!("{}{answer}", request.uri().path());
        async move { Ok::<_, Infallible>(Response::new(answer)) }
    });
    let http = hyper::server::conn::http1::Builder::new();
    let serving = task(http.serve_connection(TokioIo::new(server), service));
    for (path, connection) in [("/1", "keep-alive"), ("/2", "keep-alive"), ("/3", "close")] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: cart\r\nconnection: {connection}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let ending = format!("\r\n\r\n{path}{body}");
        let mut said = Vec::new();
        while !said.ends_with(ending.as_bytes()) {
            let count = in_time("an answer", client.read_buf(&mut said)).await.unwrap();
            assert!(count > 0, "{:?}", String::from_utf8_lossy(&said));
        }
        assert!(said.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    let (rest, error) = read_all(&mut client).await;
    assert!(rest.is_empty() && error.is_none(), "{error:?}");
    in_time("the server", serving).await.unwrap().unwrap();
}
