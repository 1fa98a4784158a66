//! Writes the archive that the kernel unpacks as its first file system (`newc`:
//! Documentation/driver-api/early-userspace, buffer-format).
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Headers, names and contents begin at multiples of this.
const ALIGN: usize = 4;

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written.
pub(super) struct Cpio<W> {
    to: W,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Cpio<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, entries: 0, directories: BTreeSet::new() }
    }

    /// A directory, and those above it.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().filter(|path| *path != Path::new("")).collect();
        above.reverse();
        for directory in above {
            let name = directory.to_string_lossy().into_owned();
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file, and the directories above it. Every file is executable: the only user is a test.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        self.entry(&path.to_string_lossy(), PROGRAM, content)
    }

    /// Ends the archive.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.entry(TRAILER, 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Inode, mode, user, group, links, time, size, two device numbers, two more, the name's
        // size, no checksum.
        let header = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = b"070701".to_vec();
        for field in header {
            write!(head, "{field:08x}")?;
        }
        head.extend([name.as_bytes(), b"\0"].concat());
        self.padded(&head)?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.write_all(&[0; ALIGN][..bytes.len().next_multiple_of(ALIGN) - bytes.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_format_says() {
        let mut bytes = Vec::new();
        let mut cpio = Cpio::new(&mut bytes);
        cpio.file(Path::new("a/b/c"), b"hello").unwrap();
        cpio.file(Path::new("a/d"), b"").unwrap();
        cpio.end().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % ALIGN, 0);
        let zeros = "00000000".repeat(4);
        let file = format!(
            "070701{:08x}{:08x}0000000000000000{:08x}{:08x}{:08x}{zeros}{:08x}{:08x}a/b/c\0",
            3, PROGRAM, 1, 0, 5, 6, 0
        );
        assert!(text.contains(&format!("{file}hello\0\0\0070701")), "{text:?}");
        let names: Vec<_> = text
            .match_indices("070701")
            .filter_map(|(at, _)| text.get(at + 110..)?.split('\0').next())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", TRAILER]);
    }
}
