//! `cargo xtask image`: container images without a container engine.
mod agent;
mod archive;
mod clients;
mod crates;
mod libraries;
mod packages;
mod programs;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::args::{Args, Command, Opt};
use crate::build::{self, Profile};
use crate::needs::Purpose;
use crate::say;
use crate::setup;
use crate::workspace::Workspace;

use agent::Commit;
use archive::{Archive, Image};

pub(crate) const COMMAND: Command = Command {
    name: "image",
    about: "Sets up, builds, and makes mesh-agent's container image, as an archive to load.",
    details: "\
The archive is an OCI image layout in a tar, which containerd, skopeo and podman read. No container engine is needed
to make it. The same programs make the same digest.

It is called nodemesh.dev/mesh-agent:VERSION, or :dev with --profile dev; --test-image makes nodemesh.dev/test:dev,
which tests put into pods: busybox, curl and mesh-probe. The image of a release names its commit, if it was just
built and the work tree has no changes. Debug information is left out; a release's is put beside the archive.

Needs Debian, whose packages tell the licences of the libraries that come along.",
    options: &[
        Opt { flag: "--profile", values: &["release", "dev"], about: "which build of mesh-agent (release)" },
        Opt { flag: "--test-image", values: &[], about: "make the tests' image instead" },
        Opt { flag: "--no-build", values: &[], about: "take the programs that are there" },
        Opt { flag: "--to", values: &["DIRECTORY"], about: "where to put the archive (target/image)" },
    ],
    operands: None,
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let for_tests = args.has("--test-image");
    let profile = match args.value("--profile") {
        Some("release") if for_tests => bail!("the tests' image has programs of profile dev only"),
        Some("dev") => Profile::Dev,
        _ if for_tests => Profile::Dev,
        _ => Profile::Release,
    };
    if !args.has("--no-build") {
        setup::ensure(&workspace, if for_tests { Purpose::Test } else { Purpose::Build })?;
        build::everything(&workspace, profile)?;
    }
    let directory = args.value("--to").map_or_else(|| workspace.images(), PathBuf::from);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let image = if for_tests {
        clients::image(&workspace)?
    } else {
        // A program that was there before may have been built of anything.
        let named = matches!(profile, Profile::Release) && !args.has("--no-build");
        let commit = if named { Commit::of(&workspace) } else { None };
        agent::image(&workspace, profile, commit)?
    };
    let archive = image.pack()?;
    let file = write(&image, &archive, &directory)?;
    if let Profile::Release = profile {
        agent::keep_debug_information(&workspace, &file.with_extension("debug"))?;
    }
    say::out(&told(&image, &archive, &file));
    Ok(ExitCode::SUCCESS)
}

/// Writes an archive under its image's name. A reader meanwhile has the old one or the new one,
/// whole.
fn write(image: &Image, archive: &Archive, directory: &Path) -> Result<PathBuf> {
    let file = directory.join(image.file_name());
    let unfinished = file.with_extension(format!("tar-{}", std::process::id()));
    fs::write(&unfinished, &archive.bytes)
        .and_then(|()| fs::rename(&unfinished, &file))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn told(image: &Image, archive: &Archive, file: &Path) -> String {
    format!(
        "{}\n  digest    {}\n  archive   {}, {}\n  unpacked  {}\n  to load   ctr -n k8s.io images import {}",
        image.reference(),
        archive.digest,
        file.display(),
        megabytes(archive.bytes.len()),
        megabytes(archive.unpacked),
        file.display(),
    )
}

fn megabytes(bytes: usize) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_decimal_megabytes() {
        assert_eq!(megabytes(12_345_678), "12.3 MB");
        assert_eq!(megabytes(99_999), "0.0 MB");
    }
}
