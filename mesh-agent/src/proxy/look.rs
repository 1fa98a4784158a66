//! The look at a connection's first bytes, for arrivals from the mesh's source ports of whose source nobody has told us:
//! its pod may have joined a moment ago, or it may be somebody's ordinary client behind a masquerade.

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// How long the client may be silent before it is taken for one that waits for the server to speak first. An agent
/// sends its ClientHello at once; a lost packet of the handshake costs more than this only when it is the first.
pub(super) const SILENCE: Duration = Duration::from_millis(50);

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// A TLS handshake record with a `ClientHello`.
    LikeTls,
    /// Anything else.
    LikePlaintext,
    /// Nothing came.
    Silent,
}

/// Looks, without taking anything from the stream.
///
/// # Errors
/// The connection failed.
///
/// # Cancel safety
/// Nothing is consumed.
pub(super) async fn look(stream: &TcpStream) -> io::Result<Looks> {
    let deadline = Instant::now() + SILENCE;
    let mut head = [0; 6];
    let mut seen = 0;
    loop {
        let Ok(peeked) = timeout_at(deadline, stream.peek(&mut head)).await else {
            return Ok(if seen == 0 {
                Looks::Silent
            } else {
                judge(head.get(..seen).unwrap_or(&[])).unwrap_or(Looks::LikePlaintext)
            });
        };
        let now = peeked?;
        if let Some(looks) = judge(head.get(..now).unwrap_or(&[])) {
            return Ok(looks);
        }
        if now == seen {
            // A prefix of a ClientHello and then the end, or more to come: `peek` returns at once either way.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        seen = now;
    }
}

/// What a beginning says: RFC 8446, sections 5.1 (record: type 22, version 3.x, length) and 4 (`client_hello` is 1).
/// `None` if more is needed; nothing at all is the end of the stream.
fn judge(head: &[u8]) -> Option<Looks> {
    match head {
        [22] | [22, 3] | [22, 3, _] | [22, 3, _, _] | [22, 3, _, _, _] => None,
        [22, 3, _, _, _, 1, ..] => Some(Looks::LikeTls),
        _ => Some(Looks::LikePlaintext),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hello_is_told_from_everything_else() {
        let hello = [22, 3, 1, 2, 0, 1];
        assert_eq!(judge(&hello), Some(Looks::LikeTls));
        for prefix in 1..hello.len() {
            assert_eq!(judge(&hello[..prefix]), None);
        }
        for other in [b"GET / ".as_slice(), &[22, 3, 3, 0, 4, 2], &[22, 2], &[0], &[]] {
            assert_eq!(judge(other), Some(Looks::LikePlaintext), "{other:?}");
        }
    }
}
