//! The look at a connection's first bytes, for arrivals from the mesh's source ports about which what we know is not
//! enough: the source may have joined the mesh a moment ago, may not have heard of an excluded port, or may be somebody's
//! ordinary client behind a masquerade.

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use crate::identity::tls::ALPN;

/// How long the client may be silent before it is taken for one that waits for the server to speak first. An agent sends
/// its `ClientHello` at once; longer takes only one whose segment was lost.
const SILENCE: Duration = Duration::from_millis(50);

/// How long the rest of a `ClientHello` may take: one retransmission.
const REST: Duration = Duration::from_secs(1);

/// Pause between two looks at an unfinished `ClientHello`: bytes that are only peeked at wake nobody.
const PAUSE: Duration = Duration::from_millis(2);

/// Longest `ClientHello` of an agent, with room: with X25519MLKEM768 it takes some 1,450 bytes.
const LONGEST: usize = 4096;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// A `ClientHello` that offers nodemesh/1.
    LikeAgent,
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
    let begun = Instant::now();
    let mut head = vec![0; LONGEST];
    let Ok(first) = timeout_at(begun + SILENCE, stream.peek(&mut head)).await else {
        return Ok(Looks::Silent);
    };
    let mut seen = first?;
    loop {
        match judge(head.get(..seen).unwrap_or_default()) {
            Some(looks) => return Ok(looks),
            None if begun.elapsed() > REST => return Ok(Looks::LikePlaintext),
            None => sleep(PAUSE).await,
        }
        seen = stream.peek(&mut head).await?;
    }
}

/// What a beginning says; `None` if more is needed. RFC 8446, section 5.1: a record is its type (22: handshake), a version
/// (3.x), a length of two bytes; section 4: the handshake's first message is `client_hello` (1). RFC 7301, section 3.1: a
/// protocol's name is preceded by its length.
fn judge(head: &[u8]) -> Option<Looks> {
    let whole = match head {
        [22] | [22, 3] | [22, 3, _] | [22, 3, _, _] | [22, 3, _, _, _] => return None,
        [22, 3, _, high, low, 1, ..] => 5 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Some(Looks::LikePlaintext), // nothing at all is the end of the stream
    };
    let mut offered = vec![ALPN.len() as u8];
    offered.extend_from_slice(ALPN);
    if head.windows(offered.len()).any(|window| window == offered) {
        Some(Looks::LikeAgent)
    } else if head.len() < whole.min(LONGEST) {
        None
    } else {
        Some(Looks::LikePlaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(alpn: &[u8]) -> Vec<u8> {
        let body = [&[1, 0, 0, 99][..], &[7; 90], &[alpn.len() as u8], alpn].concat();
        [&[22, 3, 1, 0, body.len() as u8][..], &body].concat()
    }

    #[test]
    fn an_agents_hello_is_told_from_everything_else() {
        let ours = hello(ALPN);
        assert_eq!(judge(&ours), Some(Looks::LikeAgent));
        for prefix in 1..ours.len() {
            assert_eq!(judge(&ours[..prefix]), None, "{prefix}");
        }
        assert_eq!(judge(&hello(b"h2")), Some(Looks::LikePlaintext), "an application's own TLS");
        for other in [b"GET / ".as_slice(), &[22, 3, 3, 0, 4, 2], &[22, 2], &[0], &[]] {
            assert_eq!(judge(other), Some(Looks::LikePlaintext), "{other:?}");
        }
    }
}
