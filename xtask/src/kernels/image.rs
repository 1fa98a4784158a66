//! What is inside the guest: the programs under test, what they call, and the libraries of both, as
//! one archive.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cpio::Cpio;
use super::debian::{Kernel, MODULES};
use crate::needs::{PROGRAMS, Purpose};
use crate::process;
use crate::test_programs::TestProgram;
use crate::workspace::Workspace;

/// What the guest starts as its first process.
const INIT: &str = include_str!("init.sh");

/// The programs under test that tests start.
const UNDER_TEST: [&str; 2] = ["mesh-agent", "mesh-probe"];

/// Programs of the host that tests call, besides those that setup looks after.
const ALSO: [&str; 3] = ["setarch", "setpriv", "unshare"];

/// Data that programs of the host want to find, where the host has it.
const DATA: [&str; 1] = ["/etc/ssl/openssl.cnf"];

/// Where file systems are mounted.
const MOUNT_POINTS: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

/// A guest's files, without a kernel's modules.
pub(super) struct Image {
    /// Path in the guest → file of the host.
    files: BTreeMap<PathBuf, PathBuf>,
    /// The test programs in the order in which they run.
    pub(super) tests: Vec<String>,
}

impl Image {
    /// Finds the files.
    pub(super) fn of(workspace: &Workspace, tests: &[&TestProgram]) -> Result<Self> {
        let mut image = Self { files: BTreeMap::new(), tests: Vec::new() };
        for test in tests {
            let name = image.take("nodemesh", &test.executable);
            image.tests.push(name);
        }
        for name in UNDER_TEST {
            image.take("nodemesh", &workspace.programs("debug").join(name));
        }
        image.take("bin", &process::find("busybox").context("there is no busybox")?);
        let programs = PROGRAMS.iter().filter(|it| it.purpose == Purpose::Demo).map(|it| it.name);
        for file in programs.chain(ALSO).filter_map(process::find) {
            image.take("usr/bin", &file);
        }
        for file in DATA.map(PathBuf::from).into_iter().filter(|file| file.exists()) {
            image.files.insert(in_guest(&file), file);
        }
        image.take_libraries();
        Ok(image)
    }

    /// Takes a program along in this directory, and returns its name.
    fn take(&mut self, directory: &str, file: &Path) -> String {
        let name = file.file_name().unwrap_or_default();
        self.files.insert(Path::new(directory).join(name), file.to_owned());
        name.to_string_lossy().into_owned()
    }

    /// The libraries of all programs, where their loader looks for them.
    fn take_libraries(&mut self) {
        // A static program has none, and `ldd` says so with an error.
        let lists: Vec<String> = self
            .files
            .values()
            .filter_map(|file| process::read(Command::new("ldd").arg(file)))
            .collect();
        for word in lists.iter().flat_map(|list| list.split_whitespace()) {
            if word.starts_with('/') {
                self.files.insert(in_guest(Path::new(word)), PathBuf::from(word));
            }
        }
    }

    /// Writes the archive that `kernel` is to boot with, in which each test program gets these
    /// filters.
    pub(super) fn write(&self, kernel: &Kernel, filters: &str, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut cpio = Cpio::new(BufWriter::new(file));
        for directory in MOUNT_POINTS {
            cpio.directory(Path::new(directory))?;
        }
        for (path, from) in &self.files {
            let content =
                fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            cpio.file(path, &content)?;
        }
        let lines = |lines: Vec<String>| lines.join("\n") + "\n";
        for name in MODULES {
            let module = kernel.module(name);
            cpio.file(&Path::new("modules").join(name), &fs::read(&module)?)?;
        }
        let tests = self.tests.iter().map(|test| format!("{test} {filters}")).collect();
        for (path, content) in [
            ("init", INIT.to_owned()),
            ("etc/modules", lines(MODULES.map(str::to_owned).to_vec())),
            ("etc/tests", lines(tests)),
            // tcpdump looks up the user root.
            ("etc/passwd", "root:x:0:0::/:/bin/sh\n".to_owned()),
            ("etc/group", "root:x:0:\n".to_owned()),
        ] {
            cpio.file(Path::new(path), content.as_bytes())?;
        }
        Ok(cpio.end()?)
    }
}

/// A path of the host as one of the guest.
fn in_guest(file: &Path) -> PathBuf {
    file.strip_prefix("/").unwrap_or(file).to_owned()
}
