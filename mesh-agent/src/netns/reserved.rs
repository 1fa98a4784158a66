//! `net.ipv4.ip_local_reserved_ports` of an enrolled namespace. It keeps the kernel from giving
//! applications the ports that say "an agent dials" (also where `ip_local_port_range` was widened;
//! 7.3 % of sockets otherwise). An application that asks for such a port by number still gets it.
//! The setting covers IPv6 too.

use std::{fs, io};

use mesh_common::ports::RESERVED_FIRST;

const SETTING: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The same where a container's /proc/sys is read-only: through the root of the node's process 1.
/// The thread that opens the file decides which namespace is meant, not the path.
const SETTING_OF_NODE: &str = "/proc/1/root/proc/sys/net/ipv4/ip_local_reserved_ports";

/// What the current namespace reserves. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn reserved_ports() -> io::Result<String> {
    Ok(fs::read_to_string(SETTING)?.trim().to_owned())
}

/// Adds our range to what the current namespace reserves; adding it again changes nothing. Call
/// inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn reserve_ports() -> io::Result<()> {
    let before = reserved_ports()?;
    let ours = format!("{RESERVED_FIRST}-65535");
    write(&if before.is_empty() { ours } else { format!("{before},{ours}") })
}

/// Puts back what [`reserved_ports`] returned. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn restore_ports(before: &str) -> io::Result<()> {
    // The kernel ignores an empty write; a lone newline empties the list.
    write(&format!("{before}\n"))
}

fn write(ports: &str) -> io::Result<()> {
    match fs::write(SETTING, ports) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            fs::write(SETTING_OF_NODE, ports)
        }
        written => written,
    }
}
