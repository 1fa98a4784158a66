//! Container images: a container runtime loads what `cargo xtask image` makes, and its programs run
//! by themselves.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tests::{Net, Node, bin_dir, eventually, exec::Process, scenario};

/// How long packing or loading an image may take. It is three seconds where nothing else runs, and
/// was ten times that beside two builds.
const LONG: Duration = Duration::from_mins(3);

/// How large the agent's image may be, also with the larger program of a build for debugging.
const MAX_BYTES: u64 = 25_000_000;

/// The namespace of images in which a kubelet looks.
const KUBELETS: &str = "k8s.io";

#[test]
fn a_runtime_loads_the_agents_image_and_it_runs_by_itself() {
    scenario("image-agent", |net| {
        let node = net.node("node1")?;
        let image = Packed::by_xtask(net, &node, "one", &["--profile", "dev"])?;
        let again = Packed::by_xtask(net, &node, "two", &["--profile", "dev"])?;
        ensure!(image.digest == again.digest, "{} is not {}", image.digest, again.digest);
        ensure!(fs::read(&image.archive)? == fs::read(&again.archive)?, "two archives differ");

        let bytes = fs::metadata(&image.archive)?.len();
        ensure!(bytes <= MAX_BYTES, "{bytes} bytes are more than a node should have to pull");

        let runtime = Runtime::start(net, &node)?;
        let root = runtime.load(&image, "nodemesh.dev/mesh-agent:dev")?;
        let shown = root.run(&["/usr/bin/mesh-agent", "--version"])?;
        ensure!(shown.starts_with("mesh-agent "), "{shown}");
        let files = root.files()?;
        for file in ["licenses/LICENSE", "licenses/rust/crates.txt", "licenses/debian/packages.txt"]
        {
            ensure!(files.contains(Path::new(file)), "no {file} in {files:#?}");
        }
        let is_known = |file: &&PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with("licenses")
                || file.starts_with("usr/share/common-licenses")
                || **file == Path::new("usr/bin/mesh-agent")
                || name.contains(".so")
        };
        let others: Vec<_> = files.iter().filter(|file| !is_known(file)).collect();
        ensure!(others.is_empty(), "what for? {others:?}");
        Ok(())
    });
}

#[test]
fn the_clients_of_the_tests_image_run_by_themselves() {
    scenario("image-clients", |net| {
        let node = net.node("node1")?;
        let image = Packed::by_xtask(net, &node, "one", &["--test-image"])?;
        let runtime = Runtime::start(net, &node)?;
        let root = runtime.load(&image, "nodemesh.dev/test:dev")?;
        let curl = root.run(&["/usr/bin/curl", "--version"])?;
        ensure!(curl.starts_with("curl "), "{curl}");
        let applets = root.run(&[
            "/bin/sh",
            "-c",
            "nc --help; wget --help; httpd --help; sleep 0 && echo slept",
        ])?;
        ensure!(applets.ends_with("slept\n"), "{applets}");
        let probe = root.command(&["/usr/bin/mesh-probe"])?;
        ensure!(probe.stderr.contains("mesh-probe"), "{probe}");
        Ok(())
    });
}

/// An archive that `cargo xtask image` has written, of the programs that these tests are built
/// with.
struct Packed {
    archive: PathBuf,
    /// As xtask tells it.
    digest: String,
}

impl Packed {
    fn by_xtask(net: &Net, node: &Node, directory: &str, words: &[&str]) -> Result<Self> {
        let xtask = bin_dir().join("xtask").display().to_string();
        let to = net.tag().dir().join(directory).display().to_string();
        let command = [&*xtask, "image", "--no-build", "--to", &to];
        let told = node.run_for(LONG, command.iter().chain(words))?.success()?;
        let field = |name: &str| {
            let mut lines = told.lines().map(|line| line.split_whitespace());
            let value = lines
                .find_map(|mut words| if words.next() == Some(name) { words.next() } else { None });
            value.with_context(|| format!("no {name} in:\n{told}"))
        };
        let archive = field("archive")?.trim_end_matches(',');
        Ok(Self { archive: archive.into(), digest: field("digest")?.to_owned() })
    }
}

/// A containerd of this test's own: nothing of the host's is used or changed.
struct Runtime<'a> {
    node: &'a Node,
    directory: PathBuf,
    socket: String,
    _process: Process,
}

impl<'a> Runtime<'a> {
    fn start(net: &Net, node: &'a Node) -> Result<Self> {
        let directory = net.tag().dir().join("containerd");
        fs::create_dir_all(&directory)?;
        let at = |name: &str| directory.join(name).display().to_string();
        // The plugins that are off would look for file systems that are not needed, serve kubelets,
        // or make directories in /opt.
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\",\n\
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\",\n\
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.overlayfs\",\n\
             \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
        );
        fs::write(at("config.toml"), config)?;
        let process = node.spawn(["containerd", "--config", &at("config.toml")])?;
        let runtime = Self { node, socket: at("socket"), directory, _process: process };
        eventually(LONG, || runtime.ctr(&["version"])).context("containerd")?;
        Ok(runtime)
    }

    fn ctr(&self, words: &[&str]) -> Result<String> {
        let command = ["ctr", "--address", &self.socket, "--namespace", KUBELETS];
        self.node.run_for(LONG, command.iter().chain(words))?.success()
    }

    /// Loads an image, and returns its files as containerd has unpacked them.
    fn load(&self, image: &Packed, reference: &str) -> Result<Root<'a>> {
        let archive = image.archive.display().to_string();
        self.ctr(&["images", "import", "--snapshotter", "native", &archive])?;
        let images = self.ctr(&["images", "ls"])?;
        let listed = |line: &&str| line.split_whitespace().next() == Some(reference);
        let line =
            images.lines().find(listed).with_context(|| format!("no {reference}: {images}"))?;
        ensure!(line.contains(&image.digest), "not {}: {line}", image.digest);
        // The native snapshotter keeps each layer as a directory, and our images have one.
        let layers = self.directory.join("root/io.containerd.snapshotter.v1.native/snapshots");
        let layers: Vec<_> = fs::read_dir(&layers)?.collect::<Result<_, _>>()?;
        ensure!(layers.len() == 1, "{layers:?}");
        Ok(Root { node: self.node, directory: layers[0].path() })
    }
}

/// An image's files.
struct Root<'a> {
    node: &'a Node,
    directory: PathBuf,
}

impl Root<'_> {
    /// Runs a program that sees nothing but the image.
    fn command(&self, words: &[&str]) -> Result<tests::exec::Output> {
        let directory = self.directory.display().to_string();
        self.node.run(["chroot", &directory].iter().chain(words))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        self.command(words)?.success()
    }

    /// All files, by their path in the image.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        let mut open = vec![self.directory.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                } else {
                    files.insert(entry.path().strip_prefix(&self.directory)?.to_owned());
                }
            }
        }
        Ok(files)
    }
}
