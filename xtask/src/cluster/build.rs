//! Builds the cluster's programs from the Go module in `tests/cluster`, unless any work tree has
//! built them from the same sources before.
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::go::{self, Go};
use crate::cache::{self, hex};
use crate::process;
use crate::say;
use crate::workspace::Workspace;

/// A program, and the Go package that it is built from.
struct Program {
    name: &'static str,
    package: &'static str,
}

/// The API server first: it compiles most of what the others share.
const PROGRAMS: [Program; 8] = [
    Program { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver" },
    Program { name: "kubelet", package: "k8s.io/kubernetes/cmd/kubelet" },
    Program {
        name: "kube-controller-manager",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    },
    Program { name: "kube-scheduler", package: "k8s.io/kubernetes/cmd/kube-scheduler" },
    Program { name: "kube-proxy", package: "k8s.io/kubernetes/cmd/kube-proxy" },
    Program { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl" },
    Program { name: "etcd", package: "go.etcd.io/etcd/server/v3" },
    Program { name: "coredns", package: "./coredns" },
];

/// Compiler flags by package; for each package the last row that fits counts. They leave out debug
/// information, and inlining in most of Kubernetes. That saves a third of the processor time.
const COMPILERS: [&str; 4] = [
    "all=-dwarf=false",
    "k8s.io/...=-dwarf=false -l",
    "k8s.io/apimachinery/...=-dwarf=false",
    "k8s.io/kube-openapi/...=-dwarf=false",
];

/// The packages with the variables for Kubernetes' version. Unset, they say v0.0.0, and the
/// components do not trust each other.
const VERSIONS: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// How often to ask whether a program is built, or not wanted any more.
const POLL: Duration = Duration::from_millis(100);

/// Builds the programs that are missing or were built from other sources. If there are none, it
/// prints nothing and takes a moment.
///
/// # Errors
/// Something could not be built, or `stop` was set.
pub(crate) fn build(workspace: &Workspace, stop: &AtomicBool) -> Result<()> {
    let go = go::find(workspace)?;
    let module = workspace.cluster_module();
    let read = |file: &str| {
        fs::read_to_string(module.join(file)).with_context(|| format!("tests/cluster/{file}"))
    };
    let go_mod = read("go.mod")?;
    let version = kubernetes(&go_mod).context("tests/cluster/go.mod has no k8s.io/kubernetes")?;
    let flags = flags(version);
    let source = [
        go.version.as_str(),
        &flags.join(" "),
        &PROGRAMS.map(|program| program.package).join(" "),
        &go_mod,
        &read("go.sum")?,
        &read("coredns/main.go")?,
    ]
    .join("\n");

    let of_source = format!("cluster-{:.8}", hex(&Sha256::digest(source)));
    let bin = cache::locked(&of_source)?;
    for program in &PROGRAMS {
        let file = bin.path.join(program.name);
        if process::is_executable(&file) {
            continue;
        }
        say::progress("cluster", &format!("building {} ...", program.name));
        let start = Instant::now();
        let draft = bin.path.join("draft");
        compile(&go, &module, &flags, program, &draft, stop)?;
        fs::rename(&draft, &file)?;
        let took = start.elapsed().as_secs_f64();
        say::progress("cluster", &format!("{} is built ({took:.0} s)", program.name));
    }
    // The tests look for them in their own work tree.
    let link = workspace.cluster().join("bin");
    if !fs::read_link(&link).is_ok_and(|to| to == bin.path) {
        fs::create_dir_all(workspace.cluster())?;
        // There may be none: then both fail. Earlier versions had a directory here.
        drop(fs::remove_file(&link).or_else(|_| fs::remove_dir_all(&link)));
        symlink(&bin.path, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}

fn compile(
    go: &Go,
    module: &Path,
    flags: &[String],
    program: &Program,
    to: &Path,
    stop: &AtomicBool,
) -> Result<()> {
    let mut command = Command::new(&go.program);
    command.arg("build").args(flags).arg("-o").arg(to).arg(program.package);
    // The user's own Go settings would change these programs; statically linked, they run in any
    // image.
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GOWORK", "off");
    // Compilers that collect garbage less often: a fifth less processor time for etcd, measured
    // twice.
    command.env("GOGC", "400");
    let mut child = process::at_low_priority(&command).spawn().context("cannot start Go")?;
    loop {
        match child.try_wait().context("cannot wait for Go")? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("{} could not be built: {status}", program.name),
            None if stop.load(Ordering::Relaxed) => {
                child.kill().and_then(|()| child.wait()).context("Go cannot be stopped")?;
                bail!("{} is not wanted any more", program.name);
            }
            None => thread::sleep(POLL),
        }
    }
}

fn flags(version: &str) -> Vec<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut linker = "-s -w".to_owned();
    for package in VERSIONS {
        for (name, value) in [("Version", version), ("Major", major), ("Minor", minor)] {
            let _ = write!(linker, " -X {package}.git{name}={value}");
        }
        let _ = write!(linker, " -X {package}.gitTreeState=clean");
    }
    let mut flags =
        ["-trimpath", "-buildvcs=false", "-ldflags", &linker].map(str::to_owned).to_vec();
    flags.extend(COMPILERS.map(|compiler| format!("-gcflags={compiler}")));
    flags
}

/// The version of Kubernetes that the module requires.
fn kubernetes(go_mod: &str) -> Option<&str> {
    go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ")?.split(' ').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_say_the_version_that_the_module_requires() {
        let go_mod = "require (\n\tk8s.io/kubelet v0.37.2 // indirect\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n";
        assert_eq!(kubernetes(go_mod), Some("v1.37.2"));
        let linker = flags("v1.37.2").remove(3);
        assert!(linker.starts_with("-s -w -X "), "{linker}");
        assert!(
            linker.contains(" -X k8s.io/component-base/version.gitVersion=v1.37.2 "),
            "{linker}"
        );
        assert!(linker.contains(" -X k8s.io/client-go/pkg/version.gitMinor=37 "), "{linker}");
    }
}
