//! As much of TLS as can be seen from outside: the record types and the hellos (RFC 8446, 4.1 and
//! 5.1).

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const LEGACY_VERSION: u16 = 0x0303;

/// What the two first records of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The version that the server has chosen: 0x0304 is TLS 1.3. `None` if it has not answered.
    pub version: Option<u16>,
    /// Whether both directions are TLS records to their end.
    pub only_records: bool,
}

impl Tls {
    /// `None` if the client does not begin with a `ClientHello`.
    pub(super) fn of(to_server: &[u8], to_client: &[u8]) -> Option<Self> {
        hello(to_server, CLIENT_HELLO)?;
        let version = hello(to_client, SERVER_HELLO).and_then(chosen_version);
        Some(Self { version, only_records: only_records(to_server) && only_records(to_client) })
    }

    /// Whether a stream that has been under way for some time is sealed data and nothing else.
    pub(super) fn is_sealed(stream: &[u8]) -> bool {
        stream.first().is_none_or(|first| *first == APPLICATION_DATA) && only_records(stream)
    }

    /// Whether TLS 1.3 was agreed upon and nothing else was sent.
    pub fn is_1_3(&self) -> bool {
        self.version == Some(0x0304) && self.only_records
    }
}

/// The body of the handshake message that a stream begins with, if it is of this type.
fn hello(stream: &[u8], kind: u8) -> Option<&[u8]> {
    let [HANDSHAKE, 3, _, high, low, record @ ..] = stream else {
        return None;
    };
    let record = record.get(..usize::from(u16::from_be_bytes([*high, *low])))?;
    (*record.first()? == kind).then(|| record.get(4..))?
}

/// `selected_version` of a `ServerHello` or `HelloRetryRequest`; without the extension it is TLS
/// 1.2 or older.
fn chosen_version(hello: &[u8]) -> Option<u16> {
    let session_id = usize::from(*hello.get(34)?);
    // Version, random, session id; cipher suite, compression; the length of the extensions.
    let mut extensions = hello.get(2 + 32 + 1 + session_id + 3 + 2..)?;
    while let [a, b, c, d, rest @ ..] = extensions {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        if u16::from_be_bytes([*a, *b]) == SUPPORTED_VERSIONS {
            return Some(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?));
        }
        extensions = rest.get(length..)?;
    }
    Some(LEGACY_VERSION)
}

/// Whether a stream is a sequence of TLS records. The last one may be cut: a reset may end it
/// anywhere.
fn only_records(mut stream: &[u8]) -> bool {
    while !stream.is_empty() {
        let [20..=23, 3, _, high, low, rest @ ..] = stream else {
            return stream.len() < 5;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        stream = rest.get(length..).unwrap_or_default();
    }
    true
}
