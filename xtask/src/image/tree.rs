//! The files of an image, in the order in which they are packed.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Permissions. There is no user but root in an image, and no program writes to it.
const PROGRAM: u32 = 0o755;
const DATA: u32 = 0o644;
const DIRECTORY: u32 = 0o755;

/// Files by their path in the image, without a leading `/`. Paths are ordered by their parts, so a
/// directory comes before its contents, in whatever order files were added.
#[derive(Default)]
pub(super) struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

/// What lies at a path.
pub(super) enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: PathBuf },
}

impl Tree {
    /// A directory, and those above it.
    pub(super) fn directory(&mut self, path: &Path, mode: u32) {
        self.insert(path, Entry::Directory { mode });
    }

    /// A file that is run, or loaded by what is run.
    pub(super) fn program(&mut self, path: &Path, content: Vec<u8>) {
        self.insert(path, Entry::File { mode: PROGRAM, content });
    }

    /// A file that is read.
    pub(super) fn data(&mut self, path: &Path, content: impl Into<Vec<u8>>) {
        self.insert(path, Entry::File { mode: DATA, content: content.into() });
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &Path) {
        self.insert(path, Entry::Link { target: target.to_owned() });
    }

    /// A copy of the host's file, or of the file that it is a link to.
    pub(super) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.data(to, read(from)?);
        Ok(())
    }

    /// All of it, each directory before its contents.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path);
        for above in path.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            let directory = Entry::Directory { mode: DIRECTORY };
            self.entries.entry(above.to_owned()).or_insert(directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// A file of the host.
pub(super) fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_keeps_its_mode() {
        let mut tree = Tree::default();
        tree.data(Path::new("/tmp/a-b"), "");
        tree.directory(Path::new("/tmp"), 0o1777);
        tree.data(Path::new("/tmp/a/c"), "");
        tree.link(Path::new("/bin/sh"), Path::new("busybox"));
        let paths: Vec<_> = tree.entries().map(|(path, _)| path.display().to_string()).collect();
        assert_eq!(paths, ["bin", "bin/sh", "tmp", "tmp/a", "tmp/a/c", "tmp/a-b"]);
        let tmp = tree.entries().find(|(path, _)| *path == Path::new("tmp"));
        assert!(matches!(tmp, Some((_, Entry::Directory { mode: 0o1777 }))));
    }
}
