//! The probe's arguments: `--some-field value` for each field, `--some-field` alone for `true`.
//! The tests fill the structs, people type the options; serde has the list once.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// `mesh-probe serve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeSpec {
    /// Where to listen.
    pub listen: SocketAddr,
    /// `IPV6_V6ONLY`; by default off, so that an IPv6 listener takes IPv4 clients too.
    pub v6only: bool,
    /// What to do with a connection.
    pub talk: Talk,
    /// What to say before anything is read.
    pub banner: String,
    /// How many bytes to send (`bulk`).
    pub send_bytes: u64,
    /// Which bytes.
    pub seed: u64,
    /// Print nothing about connections.
    pub quiet: bool,
    /// The listener's backlog.
    pub backlog: i32,
    /// How many sockets listen, as a `SO_REUSEPORT` group if it is more than one.
    pub group: u64,
    /// `SO_BINDTODEVICE`.
    pub device: String,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// `TCP_DEFER_ACCEPT`: how long the kernel may keep back a connection that has not said a byte.
    pub defer_s: i32,
}

/// `mesh-probe dial`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DialSpec {
    /// The address to dial.
    pub to: SocketAddr,
    /// From which address and port; port 0 for any.
    pub bind: Option<SocketAddr>,
    /// An IPv4 address dialled on an IPv6 socket, as Java does.
    pub mapped: bool,
    /// How.
    pub manner: Manner,
    /// The address that the same socket dials before, to be disconnected (`AF_UNSPEC`) if that
    /// succeeds.
    pub first: Option<SocketAddr>,
    /// `SO_BINDTODEVICE`.
    pub device: String,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// What to do with the connection.
    pub talk: Talk,
    /// What to say first.
    pub say: String,
    /// Then, how many bytes.
    pub send_bytes: u64,
    /// Which bytes; with `script`, the first connection's story.
    pub seed: u64,
    /// End our direction when all is sent, and read on. Otherwise it stays open until the other
    /// side ends its own.
    pub half_close: bool,
    /// Read this many bytes, then close, instead of reading to the end.
    pub read_bytes: Option<u64>,
    /// Reset when this side has read all that it wanted.
    pub reset: bool,
    /// How many connections (`exchange`, `script`).
    pub connections: u64,
    /// How many at once.
    pub workers: u64,
    /// With `lines`: many requests on one connection. Else each is a connection of its own.
    pub keep_alive: bool,
    /// With `lines`: the pause between a worker's requests.
    pub pause_ms: u64,
    /// With `lines`: what is in each request, to be found again.
    pub marker: String,
    /// How long `connect`, and each read or write, may take.
    pub timeout_s: u64,
}

/// Which system calls connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// `connect` on a non-blocking socket, then `poll`.
    #[default]
    NonBlocking,
    /// `connect`.
    Blocking,
    /// `sendto` with `MSG_FASTOPEN`, which connects and says the first words in one.
    FastOpenSend,
    /// `connect` after `TCP_FASTOPEN_CONNECT`.
    FastOpenConnect,
    /// `IORING_OP_CONNECT`.
    IoUring,
}

/// `mesh-probe raw`: a TCP client without a TCP socket (IPv4). Its caller has to keep the kernel,
/// which does not know the connection, from resetting it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSpec {
    /// From which address and port, whether or not they are ours.
    pub from: SocketAddr,
    /// The address to dial.
    pub to: SocketAddr,
    /// Through a packet socket on this interface; else through a raw IP socket.
    pub device: String,
    /// With a packet socket: to which Ethernet address, `02:00:...`.
    pub gateway: String,
    /// What to say when the connection stands.
    pub say: String,
    /// How long to wait for each answer.
    pub timeout_ms: u64,
}

impl Default for RawSpec {
    fn default() -> Self {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            from: unspecified,
            to: unspecified,
            device: String::new(),
            gateway: String::new(),
            say: String::new(),
            timeout_ms: 1000,
        }
    }
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Talk {
    /// Client: say, send, read to the end. Server: banner, then everything back as it comes.
    #[default]
    Exchange,
    /// Server: banner, then say in one JSON line what it sees of the connection, and end.
    Report,
    /// Server: banner, then read to the end.
    Sink,
    /// Server: read once, banner, and then a reset.
    Reset,
    /// Both: send `send_bytes` of `seed` while reading, then end.
    Bulk,
    /// Both: lines, asked and answered, until standard input ends.
    Lines,
    /// Both: the story that the seed tells.
    Script,
}

impl Default for ServeSpec {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 0).into(),
            v6only: false,
            talk: Talk::default(),
            banner: String::new(),
            send_bytes: 0,
            seed: 0,
            quiet: false,
            backlog: 1024,
            group: 1,
            device: String::new(),
            mptcp: false,
            defer_s: 0,
        }
    }
}

impl ServeSpec {
    /// A server on all IPv4 addresses.
    pub fn new(port: u16, talk: Talk) -> Self {
        Self { listen: ([0, 0, 0, 0], port).into(), talk, ..Self::default() }
    }

    /// A server on all addresses of both families.
    pub fn both_families(port: u16, talk: Talk) -> Self {
        Self { listen: ([0u16; 8], port).into(), talk, ..Self::default() }
    }
}

impl Default for DialSpec {
    fn default() -> Self {
        Self {
            to: ([0, 0, 0, 0], 0).into(),
            bind: None,
            mapped: false,
            manner: Manner::default(),
            first: None,
            device: String::new(),
            mptcp: false,
            talk: Talk::default(),
            say: String::new(),
            send_bytes: 0,
            seed: 0,
            half_close: false,
            read_bytes: None,
            reset: false,
            connections: 1,
            workers: 1,
            keep_alive: false,
            pause_ms: 1,
            marker: String::new(),
            timeout_s: 5,
        }
    }
}

impl DialSpec {
    /// One connection that says `say`, ends its direction and reads to the end.
    pub fn say(to: SocketAddr, say: &str) -> Self {
        Self { to, say: say.to_owned(), half_close: true, ..Self::default() }
    }

    /// One connection in this manner.
    pub fn new(to: SocketAddr, talk: Talk) -> Self {
        Self { to, talk, ..Self::default() }
    }
}

/// Reads a spec from arguments.
pub fn from_args<T: DeserializeOwned>(args: impl IntoIterator<Item = String>) -> Result<T> {
    let mut map = Map::new();
    let mut args = args.into_iter().peekable();
    while let Some(option) = args.next() {
        let Some(field) = option.strip_prefix("--") else { bail!("{option} is not an option") };
        let value = args.next_if(|next| !next.starts_with("--"));
        let value = value.map_or(Value::Bool(true), |text| match text.parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) if text == "true" || text == "false" => Value::Bool(text == "true"),
            Err(_) => Value::String(text),
        });
        map.insert(field.replace('-', "_"), value);
    }
    serde_json::from_value(Value::Object(map))
        .context("see tests/src/probe/spec.rs for the options")
}

/// The arguments of a spec.
pub(crate) fn to_args(spec: &impl Serialize) -> Result<Vec<String>> {
    let Value::Object(map) = serde_json::to_value(spec)? else { bail!("a spec is a struct") };
    let mut args = Vec::new();
    for (field, value) in map {
        let value = match value {
            Value::Null => continue,
            Value::String(text) if text.is_empty() => continue,
            Value::String(text) => text,
            other => other.to_string(),
        };
        args.extend([format!("--{}", field.replace('_', "-")), value]);
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_command_line() {
        let spec =
            DialSpec { bind: Some(([127, 0, 0, 1], 7).into()), reset: true, ..DialSpec::default() };
        let spec = DialSpec { say: "a b".to_owned(), marker: "m7".to_owned(), ..spec };
        let again: DialSpec = from_args(to_args(&spec).unwrap()).unwrap();
        assert_eq!(format!("{spec:?}"), format!("{again:?}"));
    }
}
