//! Debian's packages.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

use crate::process;
use crate::say;

/// How long to wait for another apt, in seconds.
const LOCK_WAIT_S: u32 = 300;

/// Debian runs this program before it starts a service. Exit code 101 forbids the start
/// (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# Made by nodemesh's `cargo xtask setup` for the length of one apt-get; delete it if you find it.\nexit 101\n";

/// Whether packages can be installed here; `Err` says why not.
pub(crate) fn usable() -> Result<(), &'static str> {
    if process::find("apt-get").is_none() {
        Err("this is no Debian (there is no apt-get)")
    } else if process::is_root() {
        Ok(())
    } else {
        Err("only root can install packages")
    }
}

/// Fetches the lists of packages, once.
pub(crate) fn update() -> Result<()> {
    static FETCHED: OnceLock<()> = OnceLock::new();
    if FETCHED.get().is_some() {
        return Ok(());
    }
    say::progress("setup", "fetching Debian's lists of packages");
    process::run_quietly(&mut apt_get("update"))
        .context("the lists of packages could not be fetched")?;
    FETCHED.get_or_init(|| ());
    Ok(())
}

/// Whether the lists have all of `packages`.
pub(crate) fn knows(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        let candidates = process::read(Command::new("apt-cache").args(["madison", package]));
        candidates.is_some_and(|versions| !versions.trim().is_empty())
    })
}

/// Installs `packages`, removing nothing and starting no service.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let _no_services = NoServices::declare(Path::new(POLICY))?;
    let mut command = apt_get("install");
    command.args(["--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    process::run_quietly(&mut command)
        .with_context(|| format!("not installed: {}", packages.join(" ")))
}

fn apt_get(what: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-o", &format!("DPkg::Lock::Timeout={LOCK_WAIT_S}"), what]);
    command
}

/// Until it is dropped, packages that are installed do not start their services. The demo starts
/// its own redis-server, and the host needs none. A host that has its own policy keeps it.
struct NoServices<'a> {
    ours: Option<&'a Path>,
}

impl<'a> NoServices<'a> {
    fn declare(policy: &'a Path) -> Result<Self> {
        // A policy that a killed setup left is ours as well, so that this setup removes it.
        let free = fs::read_to_string(policy).map_or(true, |text| text == POLICY_TEXT)
            && !policy.is_symlink();
        if !free {
            return Ok(Self { ours: None });
        }
        let guard = Self { ours: Some(policy) };
        fs::write(policy, POLICY_TEXT)
            .with_context(|| format!("cannot write {}", policy.display()))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }
}

impl Drop for NoServices<'_> {
    fn drop(&mut self) {
        if let Some(policy) = self.ours {
            // A policy that is left behind forbids the host's own services. The file says so
            // itself, and the next setup removes it.
            drop(fs::remove_file(policy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of a file that only one test uses, and removes.
    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()))
    }

    #[test]
    fn services_are_forbidden_for_a_while_only() {
        let policy = scratch("policy");
        drop(NoServices::declare(&policy).unwrap());
        assert!(!policy.exists());
        fs::write(&policy, POLICY_TEXT).unwrap();
        let guard = NoServices::declare(&policy).unwrap();
        assert_eq!(policy.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        drop(guard);
        assert!(!policy.exists(), "one that a killed setup left is removed");
    }

    #[test]
    fn the_hosts_own_policy_stays() {
        let policy = scratch("own-policy");
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        drop(NoServices::declare(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_file(&policy).unwrap();
    }
}
