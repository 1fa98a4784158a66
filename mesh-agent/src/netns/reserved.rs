//! `net.ipv4.ip_local_reserved_ports` of an enrolled namespace: keeps the kernel from giving applications the ports that
//! say "an agent dials" (also where `ip_local_port_range` was widened; 7.3 % of sockets otherwise). An application that
//! asks for such a port by number still gets it. The setting covers IPv6 too.

use std::{fs, io};

use mesh_common::ports::RESERVED_FIRST;

const SETTING: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Adds our range to what the current namespace reserves, and returns what stood there before. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn reserve_ports() -> io::Result<String> {
    let before = fs::read_to_string(SETTING)?.trim().to_owned();
    let ours = format!("{RESERVED_FIRST}-65535");
    let wanted = if before.is_empty() { ours } else { format!("{before},{ours}") };
    fs::write(SETTING, wanted)?;
    Ok(before)
}

/// Puts back what [`reserve_ports`] returned. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn restore_ports(before: &str) -> io::Result<()> {
    // An empty write is ignored by the kernel; a lone newline empties the list.
    fs::write(SETTING, format!("{before}\n"))
}
