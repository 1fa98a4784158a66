//! `net.ipv4.ip_local_reserved_ports` of an enrolled namespace. It keeps the kernel from giving
//! applications the ports that say "an agent dials" (also where `ip_local_port_range` was widened;
//! 7.3 % of sockets otherwise). An application that asks for such a port by number still gets it.
//! The setting covers IPv6 too.

use std::{fs, io};

use mesh_common::ports::RESERVED_FIRST;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
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

/// Why the mesh's ports are not reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// The pod would have too few ports left to dial from.
    #[error(
        "the mesh needs the ports from {RESERVED_FIRST} on, and of the {before} that net.ipv4.ip_local_port_range ({range}) gives the pod, {after} would be left; widen that range downwards"
    )]
    TooFewLeft {
        /// The setting.
        range: String,
        /// How many ports the pod has now.
        before: usize,
        /// How many it would have.
        after: usize,
    },
    /// A setting could not be read or written.
    #[error("cannot reserve the mesh's ports in the pod's network namespace: {0}")]
    Sysctl(#[from] io::Error),
}

/// Adds our range to what the current namespace reserves; adding it again changes nothing. Call
/// inside the namespace.
///
/// # Errors
/// See [`ReserveError`]. The pod loses no ports if more than half of those that it dials from would
/// be gone.
pub fn reserve_ports() -> Result<(), ReserveError> {
    let before = reserved_ports()?;
    let range = fs::read_to_string(RANGE)?;
    let range = range.split_whitespace().collect::<Vec<_>>().join(" ");
    let (has, keeps) = ports_left(&range, &before);
    if keeps * 2 < has {
        return Err(ReserveError::TooFewLeft { range, before: has, after: keeps });
    }
    let ours = format!("{RESERVED_FIRST}-65535");
    Ok(write(&if before.is_empty() { ours } else { format!("{before},{ours}") })?)
}

/// How many ports of a range (`32768 60999`) are not reserved (`8080,9148-9150`), and how many of
/// them are below ours.
fn ports_left(range: &str, reserved: &str) -> (usize, usize) {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let parts = reserved.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(number(first)?..=number(last)?)
    });
    let reserved: Vec<_> = parts.filter(|part| *part.start() < RESERVED_FIRST).collect();
    let Some((first, last)) = range.split_once(' ') else { return (0, 0) };
    let (Some(first), Some(last)) = (number(first), number(last)) else { return (0, 0) };
    let free = |port: &u16| !reserved.iter().any(|part| part.contains(port));
    let has = (first..=last).filter(free).count();
    (has, (first..=last.min(RESERVED_FIRST - 1)).filter(free).count())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_ports_are_ours_is_left_none() {
        assert_eq!(ports_left("32768 60999", ""), (28_232, 28_220));
        assert_eq!(ports_left("61000 65535", ""), (4_536, 0));
        assert_eq!(ports_left("60000 61999", "60500-60599,60700"), (1_899, 887));
        // What an earlier agent has reserved counts as the pod's.
        assert_eq!(ports_left("60000 61999", "60988-65535"), (2_000, 988));
        assert_eq!(ports_left("?", ""), (0, 0));
    }
}
