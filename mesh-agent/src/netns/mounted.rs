//! Namespaces that are kept by a mount, as container runtimes keep those of pods.

use std::fs;

/// Whether the node keeps a network namespace (device and inode) by a mount: a sandbox need not
/// have a process.
pub fn is_mounted((_device, inode): (u64, u64)) -> bool {
    let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| is_mount_of(line, inode))
}

/// `1219 131 0:4 net:[4026533182] /run/netns/cni-5a.. rw shared:512 - nsfs nsfs rw`: the fourth
/// field is what is mounted (`proc_pid_mountinfo(5)`).
fn is_mount_of(line: &str, inode: u64) -> bool {
    let is_namespace = line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("nsfs "));
    is_namespace && line.split(' ').nth(3) == Some(format!("net:[{inode}]").as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_network_namespace_is_known_by_its_inode() {
        let line = "1219 131 0:4 net:[4026533182] /run/netns/cni-5a rw shared:512 - nsfs nsfs rw";
        assert!(is_mount_of(line, 4_026_533_182) && !is_mount_of(line, 402_653_318));
        for other in [
            "1219 131 0:4 mnt:[4026533182] /run/x rw - nsfs nsfs rw",
            "1219 131 0:4 net:[4026533182] /run/x rw - ext4 /dev/vda rw",
            "",
        ] {
            assert!(!is_mount_of(other, 4_026_533_182), "{other}");
        }
    }
}
