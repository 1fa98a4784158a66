//! Destroys listening sockets through the kernel's own interface (`sock_diag(7)`, `SOCK_DESTROY`).
//! It needs `CAP_NET_ADMIN` over its network namespace, and reaches what a connection with those
//! addresses would reach there.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::{Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tests::attack::AttackSpec;

use crate::Shared;

/// The headers `netlink.h`, `sock_diag.h` and `inet_diag.h` of linux.
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DESTROY: u16 = 21;
const REQUEST_AND_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const TCP: u8 = 6;
const LENGTH: u32 = 16 + 56;

/// From which port a connection would come.
const REMOTE_PORT: u16 = 61_234;

/// Repeats until the attack is over.
pub(crate) fn listeners(spec: &AttackSpec, shared: &Shared) {
    let begun = Instant::now();
    let remote = SocketAddr::new(spec.bind.unwrap_or(spec.to.ip()), REMOTE_PORT);
    while shared.pace(begun, spec.per_second) {
        let destroyed = destroy(spec.to, remote);
        Shared::add(if destroyed.is_ok() { &shared.connected } else { &shared.ended });
    }
}

/// What a connection from `remote` would find at `local`.
fn destroy(local: SocketAddr, remote: SocketAddr) -> Result<()> {
    let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, protocol)?;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence, sender
    let family = if local.is_ipv4() { 2 } else { 10 };
    message.extend([family, TCP, 0, 0]);
    message.extend([0xff; 4]); // any state
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        match ip {
            IpAddr::V4(v4) => message.extend(v4.octets().into_iter().chain([0; 12])),
            IpAddr::V6(v6) => message.extend(v6.octets()),
        }
    }
    message.extend([0; 4]); // any interface
    message.extend([0xff; 8]); // any cookie
    socket.send(&message)?;
    let mut answer = [0; 256];
    let length = socket.read(&mut answer)?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code).into()),
        _ => bail!("an answer of {length} bytes that is none"),
    }
}
