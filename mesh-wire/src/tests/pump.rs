//! A network that delivers in pieces, or changes a byte on the way.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// What the pump does to a byte, given its place in its direction.
type Tamper = dyn Fn(usize, u8) -> u8;

/// Carries bytes both ways, at most `piece` at a time, until either side ends.
async fn pump(left: TcpStream, right: TcpStream, piece: usize, tamper: [&Tamper; 2]) {
    left.set_nodelay(true).unwrap();
    right.set_nodelay(true).unwrap();
    let ((mut left_read, mut left_write), (mut right_read, mut right_write)) =
        (left.into_split(), right.into_split());
    let there = async {
        let (mut buffer, mut at) = (vec![0; piece], 0);
        while let Ok(count @ 1..) = left_read.read(&mut buffer).await {
            for (i, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = tamper[0](at + i, *byte);
            }
            at += count;
            if right_write.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        right_write.shutdown().await.ok();
    };
    let back = async {
        let (mut buffer, mut at) = (vec![0; piece], 0);
        while let Ok(count @ 1..) = right_read.read(&mut buffer).await {
            for (i, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = tamper[1](at + i, *byte);
            }
            at += count;
            if left_write.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        left_write.shutdown().await.ok();
    };
    tokio::join!(there, back);
}

/// A handshake, a connection and its proper end, over that pump.
async fn whole_session(mesh: &Mesh, piece: usize, tamper: [&Tamper; 2]) -> Result<(), String> {
    let ((near, left), (right, far)) = (tcp_pair().await, tcp_pair().await);
    let text = |error: &dyn std::error::Error| error.to_string();
    // What a tampered length field would wait for never comes.
    let limit = || tokio::time::Instant::now() + Duration::from_millis(300);
    let (client_tls, server_tls) = (mesh.client(), mesh.server());
    let client = async {
        let mut session =
            Session::connect(near, &client_tls, limit()).await.map_err(|e| text(&e))?;
        session.send_open(&sample_open()).map_err(|e| text(&e))?;
        session.flush().await.map_err(|e| text(&e))?;
        session.recv_accepted(limit()).await.map_err(|e| text(&e))?;
        session.close().await;
        Ok(())
    };
    let server = async {
        let mut session = Session::accept(far, &server_tls, limit()).await.map_err(|e| text(&e))?;
        let open = session.recv_open(limit()).await.map_err(|e| text(&e))?;
        assert_eq!(open, sample_open());
        session.send_accepted(&Accepted::default()).map_err(|e| text(&e))?;
        session.flush().await.map_err(|e| text(&e))?;
        Ok(())
    };
    let pump = pump(left, right, piece, tamper);
    let (client, server, ()) =
        in_time("a session", async { tokio::join!(client, server, pump) }).await;
    client.and(server)
}

#[tokio::test]
async fn a_session_survives_delivery_byte_by_byte() {
    let mesh = Mesh::new().await;
    for piece in [1, 2, 3, 7, 64, 1000] {
        let same: &Tamper = &|_, byte| byte;
        assert_eq!(whole_session(&mesh, piece, [same, same]).await, Ok(()), "pieces of {piece}");
    }
}

/// Every byte of both directions is changed in turn (every seventh, to be quick). Nothing panics or
/// hangs, and no altered byte is ever accepted.
#[tokio::test]
async fn no_changed_byte_is_accepted() {
    let mesh = Mesh::new().await;
    let mut accepted = Vec::new();
    for direction in 0..2 {
        for place in (0..3000).step_by(7) {
            let flip: &Tamper = &move |at, byte| if at == place { byte ^ 0x41 } else { byte };
            let same: &Tamper = &|_, byte| byte;
            let tamper = if direction == 0 { [flip, same] } else { [same, flip] };
            if whole_session(&mesh, 65536, tamper).await.is_ok() {
                accepted.push((direction, place));
            }
        }
    }
    // Beyond the end of what a direction sends, nothing is changed. The legacy version in a
    // record's header and the content of ChangeCipherSpec mean nothing in TLS 1.3.
    let in_the_middle = accepted.iter().filter(|(_, place)| *place < 1100).count();
    assert!(in_the_middle <= 3, "accepted although changed at {accepted:?}");
}
