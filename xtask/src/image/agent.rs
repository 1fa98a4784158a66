//! mesh-agent's image: the program, the libraries that it needs, and the licences of all of it. No
//! shell, no package manager.
//!
//! The program is linked against glibc, as all builds make it, and brings its four libraries, 3 MB.
//! A static one would need another target (musl) or other flags (`crt-static`), and every
//! dependency would be compiled once more for it. Tests and benchmarks would then not run what the
//! image has.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::archive::Image;
use super::crates;
use super::programs::{self, Program};
use super::tree::Tree;
use crate::build::Profile;
use crate::process;
use crate::say;
use crate::workspace::Workspace;

const NAME: &str = "nodemesh.dev/mesh-agent";
const PROGRAM: &str = "/usr/bin/mesh-agent";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The packages that the program is made of. mesh-ebpf is embedded as an object.
const PACKAGES: [&str; 2] = ["mesh-agent", "mesh-ebpf"];

/// The image of the program that a build in `profile` has left. `commit` is what it was built of,
/// if that is known.
pub(super) fn image(
    workspace: &Workspace,
    profile: Profile,
    commit: Option<Commit>,
) -> Result<Image> {
    let mut tree = Tree::default();
    programs::add(&mut tree, &[Program::ours(&built(workspace, profile), PROGRAM)])?;
    tree.copy(&workspace.root.join("LICENSE"), Path::new("/licenses/LICENSE"))?;
    crates::add(&mut tree, workspace, &PACKAGES)?;

    let mut labels = BTreeMap::from([
        ("org.opencontainers.image.title", "mesh-agent".to_owned()),
        ("org.opencontainers.image.description", "Nodemesh's node agent".to_owned()),
        ("org.opencontainers.image.version", VERSION.to_owned()),
        // The project's licence. What else is in the image has its own, in /licenses.
        ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
    ]);
    let mut created = NO_TIME.to_owned();
    if let Some(commit) = commit {
        labels.insert("org.opencontainers.image.revision", commit.id);
        created = commit.time;
    }
    Ok(Image {
        name: NAME.to_owned(),
        tag: tag(profile).to_owned(),
        tree,
        entrypoint: vec![PROGRAM.to_owned()],
        arguments: Vec::new(),
        labels,
        created,
    })
}

/// Writes what a release's program is stripped of: `addr2line -e FILE` turns the addresses of a
/// panic into lines.
pub(super) fn keep_debug_information(workspace: &Workspace, to: &Path) -> Result<()> {
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--only-keep-debug").arg(built(workspace, Profile::Release)).arg(to);
    process::run_quietly(&mut objcopy)
}

fn built(workspace: &Workspace, profile: Profile) -> PathBuf {
    workspace.programs(profile.directory()).join("mesh-agent")
}

fn tag(profile: Profile) -> &'static str {
    match profile {
        Profile::Release => VERSION,
        Profile::Dev => "dev",
    }
}

/// The time of an image that is not of a commit: never.
pub(super) const NO_TIME: &str = "1970-01-01T00:00:00Z";

/// The commit that the work tree is, without a change.
///
/// A released image names its commit, so that its users can find its sources, though every commit
/// then has another digest. The images of work in progress name none. So only their contents count,
/// and a cluster has to load one again only if those changed.
pub(super) struct Commit {
    id: String,
    /// RFC 3339, in UTC.
    time: String,
}

impl Commit {
    /// `None`, with a line on the terminal, if the tree is no commit.
    pub(super) fn of(workspace: &Workspace) -> Option<Self> {
        let git = |words: &[&str]| {
            let mut git = Command::new("git");
            git.current_dir(&workspace.root).env("TZ", "UTC").args(words);
            Some(process::read(&mut git)?.trim().to_owned())
        };
        let changes = git(&["status", "--porcelain"]);
        if changes.as_deref() != Some("") {
            let why = if changes.is_none() { "there is no git tree" } else { "there are changes" };
            say::progress("image", &format!("{why}: the image names no commit, and has no time"));
            return None;
        }
        let date = "--date=format-local:%Y-%m-%dT%H:%M:%SZ";
        let line = git(&["log", "-1", "--format=%H %cd", date])?;
        let (id, time) = line.split_once(' ')?;
        Some(Self { id: id.to_owned(), time: time.to_owned() })
    }
}
