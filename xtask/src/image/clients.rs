//! The image that tests put into pods of a cluster: a shell and small tools, curl, and the tests'
//! own program. Never released.
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::agent::NO_TIME;
use super::archive::Image;
use super::crates;
use super::programs::{self, Program};
use super::tree::Tree;
use crate::build::Profile;
use crate::process;
use crate::workspace::Workspace;

/// Does nothing until it is told to stop, and then stops at once. As a container's first process,
/// plain `sleep` would not hear SIGTERM, and every pod would take its 30 s to end.
const PAUSE: &str = "trap 'exit 0' TERM INT; sleep infinity & wait";

/// Any user may write there.
const TEMPORARY: u32 = 0o1777;

/// The image, with the programs of the development profile.
pub(super) fn image(workspace: &Workspace) -> Result<Image> {
    let find = |name: &str| process::find(name).with_context(|| format!("there is no {name}"));
    let (busybox, curl) = (find("busybox")?, find("curl")?);
    let probe = workspace.programs(Profile::Dev.directory()).join("mesh-probe");
    let mut tree = Tree::default();
    programs::add(
        &mut tree,
        &[
            Program::of_a_package(&busybox, "/bin/busybox"),
            Program::of_a_package(&curl, "/usr/bin/curl"),
            Program::ours(&probe, "/usr/bin/mesh-probe"),
        ],
    )?;
    let applets = process::read(Command::new(&busybox).arg("--list"));
    let applets = applets.context("busybox does not tell its applets")?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        tree.link(&Path::new("/bin").join(applet), Path::new("busybox"));
    }
    tree.data(Path::new("/etc/passwd"), "root:x:0:0::/:/bin/sh\n");
    tree.data(Path::new("/etc/group"), "root:x:0:\n");
    tree.directory(Path::new("/tmp"), TEMPORARY);
    crates::add(&mut tree, workspace, &["tests"])?;
    Ok(Image {
        name: "nodemesh.dev/test".to_owned(),
        tag: "dev".to_owned(),
        tree,
        entrypoint: Vec::new(),
        arguments: ["/bin/sh", "-c", PAUSE].map(str::to_owned).to_vec(),
        labels: BTreeMap::from([("org.opencontainers.image.title", "test".to_owned())]),
        created: NO_TIME.to_owned(),
    })
}
