//! Which crate may use which: ARCHITECTURE.md, "The crates".
use std::collections::BTreeSet;

use crate::process;
use crate::workspace::Workspace;

/// A crate of ours, those of ours that it uses, and what it must not pull in, directly or through
/// others.
const ARROWS: [(&str, &[&str], &[&str]); 7] = [
    ("mesh-common", &[], &["aya", "tokio", "rustls", "kube", "k8s-openapi", "serde"]),
    ("mesh-api", &["mesh-common"], &["aya", "tokio", "rustls", "kube", "k8s-openapi"]),
    (
        "mesh-world",
        &["mesh-api", "mesh-common"],
        &["aya", "tokio", "rustls", "kube", "k8s-openapi"],
    ),
    ("mesh-wire", &["mesh-api", "mesh-common"], &["aya", "kube", "k8s-openapi"]),
    ("tests", &["mesh-api", "mesh-common", "mesh-wire"], &["aya", "kube", "k8s-openapi"]),
    ("xtask", &[], &["aya", "tokio", "rustls", "kube", "k8s-openapi"]),
    ("fuzz-input", &[], &["aya", "tokio", "rustls", "kube", "k8s-openapi"]),
];

/// The names of all crates that a crate's library pulls in, itself aside.
fn pulled_in(workspace: &Workspace, package: &str) -> BTreeSet<String> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["tree", "--offline", "--prefix", "none", "--format", "{p}"]);
    cargo.args(["--edges", "normal,build", "--package", package]);
    let tree = process::read_showing_errors(&mut cargo).unwrap();
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    tree.lines().map(name).filter(|name| name != package).collect()
}

/// Dependencies have no debug information and are optimised; a crate of ours that the profile does
/// not name would be like them.
#[test]
fn the_profile_names_every_crate_of_ours() {
    let manifest = std::fs::read_to_string(Workspace::here().root.join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    for member in members.split('"').skip(1).step_by(2).filter(|it| *it != "mesh-ebpf") {
        let row = format!("\n{} = {{ opt-level", member.replace('/', "-"));
        assert!(manifest.contains(&row), "{member} has no row in [profile.dev.package]");
    }
}

#[test]
fn crates_use_only_what_they_may() {
    let workspace = Workspace::here();
    for (package, ours, banned) in ARROWS {
        let pulled_in = pulled_in(&workspace, package);
        let of_ours: BTreeSet<_> = pulled_in.iter().filter(|it| it.starts_with("mesh-")).collect();
        assert_eq!(
            of_ours,
            ours.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>().iter().collect()
        );
        let found: Vec<_> = banned.iter().filter(|it| pulled_in.contains(**it)).collect();
        assert!(found.is_empty(), "{package} pulls in {found:?}");
    }
    // The test can see what it looks for.
    let agent = pulled_in(&workspace, "mesh-agent");
    assert!(
        ["aya", "tokio", "rustls", "kube", "mesh-world", "mesh-wire"]
            .iter()
            .all(|it| agent.contains(*it)),
        "{agent:?}"
    );
}
