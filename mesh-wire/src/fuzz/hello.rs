//! Target `hello`: the look at a connection's first bytes.
//!
//! The verdict may not change as more bytes come. Where rustls reads a `ClientHello`, it has to
//! find the same protocols: an agent that is not recognised would send its TLS to an application.

use rustls::server::Acceptor;

use crate::hello::{Hello, MAX_BYTES, look};
use crate::identity::tls::ALPN;

/// At how many places a beginning is looked at, besides all of it.
const CUTS: usize = 64;
const HEADER_BYTES: usize = 5;

/// Looks at the input as the agent does: at a growing beginning.
pub(crate) fn hello(data: &[u8]) {
    let data = data.get(..MAX_BYTES).unwrap_or(data);
    let verdict = look(data);
    let step = data.len() / CUTS + 1;
    let beginnings = (0..data.len()).step_by(step).filter_map(|end| data.get(..end));
    let mut earlier = Hello::Incomplete;
    for beginning in beginnings.chain([data]) {
        let now = look(beginning);
        if earlier != Hello::Incomplete {
            assert_eq!(now, earlier, "changed its mind at byte {}", beginning.len());
        }
        earlier = now;
    }
    assert!(verdict != Hello::Incomplete || data.len() < MAX_BYTES, "never decides");

    if let Some(offers_mesh) = rustls_says(data) {
        let expected = if offers_mesh { Hello::Mesh } else { Hello::OtherTls };
        assert_eq!(verdict, expected, "rustls has read the protocols");
    }
}

/// Whether a `ClientHello` that is one whole record, as every agent's is, offers our protocol;
/// `None` if rustls sees none.
fn rustls_says(data: &[u8]) -> Option<bool> {
    let &[_, _, _, high, low, _, a, b, c] = data.first_chunk::<9>()?;
    let record = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if record != HEADER_BYTES + 4 + u32::from_be_bytes([0, a, b, c]) as usize {
        return None;
    }
    let mut rest = data.get(..record)?;
    let mut acceptor = Acceptor::default();
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
    }
    let accepted = acceptor.accept().ok()??;
    let protocols = accepted.client_hello().alpn();
    Some(protocols.into_iter().flatten().any(|name| name == ALPN))
}
