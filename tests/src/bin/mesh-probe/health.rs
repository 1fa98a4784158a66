//! A gRPC server that answers every call with "serving": what a kubelet's gRPC probe asks
//! (`grpc.health.v1.Health`, `Check`). It has only the HTTP/2 which that takes: frames by RFC 9113,
//! section 4.1. Its answer is always the same, and it does not read the request's headers.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};

/// What every client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames, and flags of these (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest frame that a client may send, since we allow no larger one (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16_384;

/// `:status: 200` and `content-type: application/grpc`, by their numbers in HPACK's table (RFC
/// 7541, appendix A).
const OK: &[u8] = b"\x88\x0f\x10\x10application/grpc";
/// Not compressed, two bytes long: field 1 of `HealthCheckResponse` is `SERVING`.
const SERVING: &[u8] = b"\x00\x00\x00\x00\x02\x08\x01";
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

/// Serves until it is killed.
pub(crate) fn run(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| address.to_owned())?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A client that does not speak HTTP/2, or leaves in the middle, gets no answer.
        thread::spawn(move || drop(answer(stream)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    ensure!(preface == PREFACE, "no HTTP/2");
    send(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let [a, b, c, kind, flags, number @ ..] = header;
        let (length, number) = (u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes(number));
        let length = usize::try_from(length)?;
        ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                send(&mut stream, kind, ACK, 0, &payload_of_ack(kind, payload))?;
            }
            HEADERS | DATA if flags & END_STREAM != 0 => {
                send(&mut stream, HEADERS, END_HEADERS, number, OK)?;
                send(&mut stream, DATA, 0, number, SERVING)?;
                send(&mut stream, HEADERS, END_HEADERS | END_STREAM, number, TRAILERS)?;
            }
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

/// A ping is given back, settings are not.
fn payload_of_ack(kind: u8, payload: Vec<u8>) -> Vec<u8> {
    if kind == PING { payload } else { Vec::new() }
}

fn send(stream: &mut TcpStream, kind: u8, flags: u8, number: u32, payload: &[u8]) -> Result<()> {
    let [_, length @ ..] = u32::try_from(payload.len())?.to_be_bytes();
    let frame = [&length[..], &[kind, flags], &number.to_be_bytes(), payload].concat();
    Ok(stream.write_all(&frame)?)
}
