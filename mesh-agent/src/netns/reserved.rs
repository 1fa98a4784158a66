//! `net.ipv4.ip_local_reserved_ports` of an enrolled namespace: keeps the kernel from giving applications the ports that
//! say "an agent dials" (also where `ip_local_port_range` was widened; 7.3 % of sockets otherwise). An application that
//! asks for such a port by number still gets it. The setting covers IPv6 too.

use std::{fs, io};

use mesh_common::ports::RESERVED_FIRST;

const SETTING: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// What the current namespace reserves. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn reserved_ports() -> io::Result<String> {
    Ok(fs::read_to_string(SETTING)?.trim().to_owned())
}

/// Adds our range to what the current namespace reserves; adding it again changes nothing. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn reserve_ports() -> io::Result<()> {
    let before = reserved_ports()?;
    let ours = format!("{RESERVED_FIRST}-65535");
    fs::write(SETTING, if before.is_empty() { ours } else { format!("{before},{ours}") })
}

/// Puts back what [`reserved_ports`] returned. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn restore_ports(before: &str) -> io::Result<()> {
    // An empty write is ignored by the kernel; a lone newline empties the list.
    fs::write(SETTING, format!("{before}\n"))
}
