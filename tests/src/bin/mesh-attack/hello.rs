//! A `ClientHello` that an agent has to take seriously. It offers nodemesh/1 and a share of the
//! preferred key exchange, so the server computes its whole first flight before it can find out
//! anything.

/// `X25519MLKEM768` (draft-ietf-tls-ecdhe-mlkem): an ML-KEM-768 key, then one of X25519.
const GROUP: [u8; 2] = [0x11, 0xec];
const ML_KEM_KEY_BYTES: usize = 1184;

/// RFC 8446 §4.1.2.
pub(crate) fn client_hello() -> Vec<u8> {
    // All zeroes is a valid ML-KEM key (every coefficient is below the modulus); 9 is X25519's base
    // point.
    let mut share = vec![0; ML_KEM_KEY_BYTES];
    share.extend([9]);
    share.extend([0; 31]);
    let key_share = long(&[&GROUP[..], &long(&share)].concat());
    let extensions = [
        extension(16, &long(&short(b"nodemesh/1"))), // ALPN
        extension(43, &short(&[3, 4])),              // supported_versions: 1.3
        extension(10, &long(&GROUP)),                // supported_groups
        extension(13, &long(&[4, 3, 8, 7, 5, 3])),   // signature_algorithms: ECDSA, Ed25519
        extension(51, &key_share),
    ];
    let body = [
        &[3, 3][..],
        &[7; 32], // random
        &[0],     // no session id
        &long(&[0x13, 1]),
        &[1, 0], // no compression
        &long(&extensions.concat()),
    ]
    .concat();
    let message = [&[1, 0][..], &long(&body)].concat();
    [&[22, 3, 1][..], &long(&message)].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(body)].concat()
}

/// With two bytes of length before it.
fn long(body: &[u8]) -> Vec<u8> {
    [&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes()[..], body].concat()
}

/// With one byte of length before it.
fn short(body: &[u8]) -> Vec<u8> {
    [&[u8::try_from(body.len()).unwrap_or(u8::MAX)][..], body].concat()
}
