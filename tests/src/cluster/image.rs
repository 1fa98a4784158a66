//! The image that every node has: busybox, and the sandbox of every pod.
//!
//! Written as `docker save` writes one: a tar of one layer, its configuration and `manifest.json`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

/// The image's name in pods, with `imagePullPolicy: Never`, since no registry serves it.
pub const NAME: &str = "nodemesh.test/busybox:1";

/// Debian's, linked statically.
const BUSYBOX: &str = "/bin/busybox";

/// The sandbox of a pod runs this, a busybox without arguments: `sleep` for 68 years.
const FOREVER: [&str; 2] = ["/bin/sleep", "2147483647"];

/// Writes the archive.
pub(super) fn write(to: &Path) -> Result<()> {
    let applets =
        Command::new(BUSYBOX).arg("--list").output().context("busybox (busybox-static)")?;
    ensure!(applets.status.success(), "busybox has no list of its programs");
    let mut layer = Vec::new();
    for directory in ["bin/", "etc/", "root/", "run/", "tmp/", "var/", "www/"] {
        entry(&mut layer, directory, &Entry::Directory)?;
    }
    entry(&mut layer, "var/run", &Entry::Link("/run"))?;
    entry(&mut layer, "etc/passwd", &Entry::File(b"root:x:0:0:root:/root:/bin/sh\n"))?;
    entry(&mut layer, "etc/group", &Entry::File(b"root:x:0:\n"))?;
    entry(&mut layer, "bin/busybox", &Entry::File(&fs::read(BUSYBOX)?))?;
    let applets = String::from_utf8(applets.stdout)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        entry(&mut layer, &format!("bin/{applet}"), &Entry::Link("busybox"))?;
    }
    end(&mut layer)?;

    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": FOREVER },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
    }))?;
    let config_name = format!("{}.json", hex(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"] }]);

    let mut archive = File::create(to).with_context(|| to.display().to_string())?;
    entry(&mut archive, &config_name, &Entry::File(&config))?;
    entry(&mut archive, "layer.tar", &Entry::File(&layer))?;
    entry(&mut archive, "manifest.json", &Entry::File(&serde_json::to_vec(&manifest)?))?;
    end(&mut archive)?;
    Ok(())
}

/// The SHA-256 of some bytes, as it is written in names.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> =
        digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// Files and headers fill whole blocks.
const BLOCK: usize = 512;

enum Entry<'a> {
    Directory,
    File(&'a [u8]),
    Link(&'a str),
}

/// One entry of a tar (POSIX.1-1988, "ustar"). Its name has 100 bytes at most.
fn entry(to: &mut impl Write, name: &str, what: &Entry<'_>) -> io::Result<()> {
    let (kind, mode, content, target) = match what {
        Entry::Directory => (b'5', "0000755", &[][..], ""),
        Entry::File(content) => (b'0', "0000755", *content, ""),
        Entry::Link(target) => (b'2', "0000777", &[][..], *target),
    };
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, mode);
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, target);
    put(257, "ustar\x0000");
    header[156] = kind;
    // The sum of the header's bytes, its own field taken as spaces.
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&header)?;
    to.write_all(content)?;
    to.write_all(&[0; BLOCK][..content.len().next_multiple_of(BLOCK) - content.len()])
}

/// Two empty blocks end a tar.
fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_we_write() {
        let file = std::env::temp_dir().join(format!("nodemesh-tar-{}", std::process::id()));
        let mut tar = File::create(&file).unwrap();
        entry(&mut tar, "a/", &Entry::Directory).unwrap();
        entry(&mut tar, "a/b", &Entry::File(&[b'x'; 513])).unwrap();
        entry(&mut tar, "a/c", &Entry::Link("b")).unwrap();
        end(&mut tar).unwrap();
        let listed = Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        fs::remove_file(&file).unwrap();
        let said = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert!(listed.status.success() && lines.len() == 3, "{said}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[1].contains(" 513 "), "{said}");
        assert!(lines[2].ends_with("a/c -> b"), "{said}");
    }
}
