//! The cluster's programs, out of the Go module in `tests/cluster`. What was built from the same
//! sources is not built again.
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::go::{self, Go};
use crate::process;
use crate::say;
use crate::workspace::Workspace;

/// A program, and the package of Go that it is. Go names what it builds after the package's last
/// directory.
struct Program {
    name: &'static str,
    package: &'static str,
}

impl Program {
    fn built_as(&self) -> &'static str {
        let directories = self.package.rsplit('/');
        // The version of a module is none of them.
        let mut directories = directories.filter(|it| !it.starts_with('v'));
        directories.next().unwrap_or(self.name)
    }
}

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

/// What compilers leave out, by package; the last row that fits counts. It is what debuggers read,
/// and inlining in most of Kubernetes: together a third of their processor time.
const COMPILERS: [&str; 4] = [
    "all=-dwarf=false",
    "k8s.io/...=-dwarf=false -l",
    "k8s.io/apimachinery/...=-dwarf=false",
    "k8s.io/kube-openapi/...=-dwarf=false",
];

/// The packages with the variables for Kubernetes' version. Left alone they say v0.0.0, and the
/// parts do not trust each other.
const VERSIONS: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// How often to ask whether a program is built, or not wanted any more.
const POLL: Duration = Duration::from_millis(100);

/// Builds what is missing or was built from something else. If that is nothing, it is silent and
/// takes a moment.
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
        &go_mod,
        &read("go.sum")?,
        &read("coredns/main.go")?,
    ]
    .join("\n");

    let (bin, from) = (workspace.cluster().join("bin"), workspace.cluster().join("built-from"));
    fs::create_dir_all(&bin)?;
    let is_built = PROGRAMS.iter().all(|program| process::is_executable(&bin.join(program.name)));
    if is_built && fs::read_to_string(&from).is_ok_and(|built_from| built_from == source) {
        return Ok(());
    }
    say::progress("cluster", "building Kubernetes, etcd and CoreDNS ...");
    let start = Instant::now();
    let unnamed = workspace.cluster().join("built");
    compile(&go, &module, &flags, &unnamed, stop)?;
    for program in &PROGRAMS {
        let built = unnamed.join(program.built_as());
        fs::rename(&built, bin.join(program.name))
            .with_context(|| format!("Go has built no {}", built.display()))?;
    }
    let took = start.elapsed().as_secs_f64();
    say::progress("cluster", &format!("Kubernetes, etcd and CoreDNS are built ({took:.0} s)"));
    fs::write(&from, &source)?;
    Ok(())
}

/// Builds all programs into a directory: in one go, the linkers of some work beside the compilers
/// of others.
fn compile(go: &Go, module: &Path, flags: &[String], to: &Path, stop: &AtomicBool) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut command = Command::new(&go.program);
    command.arg("build").args(flags).arg("-o").arg(to);
    command.args(PROGRAMS.iter().map(|program| program.package));
    // The user's own Go settings would change these programs; statically linked, they run in any
    // image.
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GOWORK", "off");
    // Compilers that collect garbage less often: a fifth less processor time for etcd, measured
    // twice.
    command.env("GOGC", "400");
    let mut child = process::behind(&command).spawn().context("cannot start Go")?;
    loop {
        match child.try_wait().context("Go got lost")? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("the cluster's programs could not be built: {status}"),
            None if stop.load(Ordering::Relaxed) => {
                child.kill().and_then(|()| child.wait()).context("Go cannot be stopped")?;
                bail!("the cluster's programs are not wanted any more");
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
