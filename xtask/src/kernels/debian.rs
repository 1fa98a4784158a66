//! Debian's kernels: fetched from the mirror that this machine uses, unpacked, never installed.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::say;

/// The package that depends on the suite's kernel. The flavour for virtual machines is a quarter of
/// the other's size; both are configured alike in what the mesh needs from a kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// The parts of a kernel among what the package depends on.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// What the tests' network is made of, each after what it needs; the rest is built in.
pub(super) const MODULES: [&str; 4] = ["llc", "stp", "bridge", "veth"];

/// The keys of all suites. The host's own setting may know one suite only.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that is here.
pub(super) struct Kernel {
    /// What of it is kept: `vmlinuz`, its modules, and the console's log of the last run.
    pub(super) directory: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    pub(super) fn module(&self, name: &str) -> PathBuf {
        self.directory.join(name).with_extension("ko")
    }

    fn is_whole(&self) -> bool {
        let modules = MODULES.iter().map(|name| self.module(name));
        modules.chain([self.image()]).all(|file| file.exists())
    }
}

/// The kernel of a suite, in this directory; fetched if it is not there yet.
pub(super) fn kernel(directory: &Path, suite: &str) -> Result<Kernel> {
    let kernel = Kernel { directory: directory.to_owned() };
    if !kernel.is_whole() {
        fetch(&kernel, suite).with_context(|| format!("no kernel from Debian's {suite}"))?;
    }
    Ok(kernel)
}

fn fetch(kernel: &Kernel, suite: &str) -> Result<()> {
    say::progress("test", &format!("fetching the kernel of Debian's {suite} (about 30 MB)"));
    let apt = Apt::new(&kernel.directory.join("apt"), suite)?;
    process::run_quietly(&mut apt.command("apt-get", &["update"]))?;
    let words = ["depends", "--recurse", "--important", PACKAGE];
    let needed = process::read(&mut apt.command("apt-cache", &words))
        .with_context(|| format!("there is no package {PACKAGE}"))?;
    let parts: Vec<_> =
        needed.lines().filter(|name| PARTS.iter().any(|part| name.starts_with(part))).collect();
    process::run_quietly(apt.command("apt-get", &["download"]).args(parts))?;
    let unpacked = apt.directory.join("unpacked");
    for package in files(&apt.directory)?.iter().filter(|file| ends_with(file, ".deb")) {
        process::run_quietly(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
    }
    let found = all_files(&unpacked)?;
    let image = found.iter().find(|file| name(file).starts_with("vmlinuz"));
    for module in MODULES {
        take_module(&found, module, &kernel.module(module))?;
    }
    // The image comes last: if it is there, everything is.
    fs::copy(image.context("no vmlinuz in the packages")?, kernel.image())?;
    fs::remove_dir_all(&apt.directory)?;
    Ok(())
}

/// Copies a module, unpacked: newer kernels' come compressed.
fn take_module(found: &[PathBuf], module: &str, to: &Path) -> Result<()> {
    let plain = format!("{module}.ko");
    let from =
        found.iter().find(|file| name(file).strip_suffix(".xz").unwrap_or(name(file)) == plain);
    let from = from.with_context(|| format!("no module {module} in the packages"))?;
    if ends_with(from, ".xz") {
        process::run_quietly(Command::new("busybox").arg("unxz").arg(from))?;
    }
    fs::copy(from.with_file_name(plain), to)?;
    Ok(())
}

/// An apt of our own: the host's lists and settings stay as they are.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// For one suite of the mirror that the host uses; an earlier one in this directory is removed.
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let keys = if Path::new(KEYRING).exists() {
            format!(" signed-by={KEYRING}")
        } else {
            String::new()
        };
        let source = format!("deb [target=Packages arch=amd64{keys}] {} {suite} main\n", mirror()?);
        fs::write(directory.join("sources"), source)?;
        // This apt believes that nothing is installed.
        fs::write(directory.join("status"), "")?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// `program` with these settings, in the directory.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let at = |part: &str| self.directory.join(part).display().to_string();
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        for (setting, value) in [
            ("Dir::Etc::sourcelist", at("sources")),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::State", at("")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("")),
            ("Acquire::Languages", "none".to_owned()),
            // Otherwise apt's own user would have to be able to write here.
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.args(["-o", &format!("{setting}={value}")]);
        }
        command.args(words);
        command
    }
}

/// Where the host has its Debian from.
fn mirror() -> Result<String> {
    let system = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field =
        |name: &str| system.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let (Some("debian"), Some(codename)) = (field("ID"), field("VERSION_CODENAME")) else {
        bail!("kernels are taken from Debian's packages, and this is no Debian");
    };
    let release = format!("Release: {codename}");
    let sites = process::read(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)",
        &release,
    ]));
    let sites = sites.context("apt-get does not say where its packages come from")?;
    let site = sites.lines().next();
    Ok(site.with_context(|| format!("apt has no source of Debian's {codename}"))?.to_owned())
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn ends_with(file: &Path, end: &str) -> bool {
    name(file).ends_with(end)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// All files below a directory.
fn all_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in files(directory)? {
        if path.is_dir() && !path.is_symlink() {
            found.extend(all_files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
