//! An image as one archive that container runtimes load: the OCI image layout (image-spec v1.0,
//! image-layout.md) in a tar.
//!
//! Nothing in it comes from the clock, from a user or from the order of a directory, so the same
//! image is the same bytes.
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::tree::{Entry, Tree};
use crate::cache::hex;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The operating system that a gzip header names: unknown (RFC 1952, 2.3.1).
const NO_SYSTEM: u8 = 255;

/// An image before it is packed.
pub(super) struct Image {
    /// With its registry, e.g. `nodemesh.dev/mesh-agent`: container runtimes put `docker.io/`
    /// before others.
    pub(super) name: String,
    pub(super) tag: String,
    pub(super) tree: Tree,
    /// Always runs; a pod's `command` replaces it.
    pub(super) entrypoint: Vec<String>,
    /// Its arguments, or what runs if there is no entrypoint; a pod's `args` replace them.
    pub(super) arguments: Vec<String>,
    pub(super) labels: BTreeMap<&'static str, String>,
    /// RFC 3339, in UTC.
    pub(super) created: String,
}

/// A packed image.
pub(super) struct Archive {
    pub(super) bytes: Vec<u8>,
    /// Of the manifest: what `ctr images ls` and `NAME@DIGEST` call the image.
    pub(super) digest: String,
    /// Of the files as they are unpacked, in bytes.
    pub(super) unpacked: usize,
}

impl Image {
    /// What a pod's `image:` says.
    pub(super) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// What its archive is called: `mesh-agent-0.1.0.tar`.
    pub(super) fn file_name(&self) -> String {
        let name = self.name.rsplit('/').next().unwrap_or(&self.name);
        format!("{name}-{}.tar", self.tag)
    }

    /// Packs it.
    pub(super) fn pack(&self) -> Result<Archive> {
        let layer = tar(&self.tree).context("cannot pack the image's files")?;
        let mut gzip = GzBuilder::new()
            .mtime(0)
            .operating_system(NO_SYSTEM)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&layer)?;
        let compressed = gzip.finish()?;

        let mut blobs = Blobs::default();
        let config = blobs.add(CONFIG, json(&self.config(&digest(&layer))));
        let layers = [blobs.add(LAYER, compressed)];
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let mut manifest = blobs.add(MANIFEST, json(&manifest));
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        // containerd takes the first; skopeo and podman the second.
        manifest["annotations"] = json!({
            "io.containerd.image.name": self.reference(),
            "org.opencontainers.image.ref.name": self.reference(),
        });
        manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });

        let mut files = Tree::default();
        files.data(Path::new("oci-layout"), json(&json!({ "imageLayoutVersion": "1.0.0" })));
        files.data(Path::new("index.json"), json(&index));
        for (digest, content) in blobs.0 {
            files.data(Path::new(&format!("blobs/{}", digest.replace(':', "/"))), content);
        }
        let unpacked = self.tree.entries().map(|(_, entry)| content(entry).len()).sum();
        Ok(Archive { bytes: tar(&files)?, digest, unpacked })
    }

    fn config(&self, layer: &str) -> Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "created": self.created,
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
            "history": [{ "created": self.created, "created_by": "cargo xtask image" }],
        })
    }
}

/// What an image consists of, each under its digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Takes a blob, and returns its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor =
            json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
        self.0.insert(digest, content);
        descriptor
    }
}

/// The files as a tar: owned by root, at second 0, in their order.
fn tar(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for (path, entry) in tree.entries() {
        let mut header = Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content(entry).len() as u64);
        let (kind, mode) = match entry {
            Entry::Directory { mode } => (EntryType::Directory, *mode),
            Entry::File { mode, .. } => (EntryType::Regular, *mode),
            Entry::Link { .. } => (EntryType::Symlink, 0o777),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        match entry {
            Entry::Link { target } => archive.append_link(&mut header, path, target)?,
            Entry::Directory { .. } | Entry::File { .. } => {
                archive.append_data(&mut header, path, content(entry))?;
            }
        }
    }
    archive.into_inner()
}

fn content(entry: &Entry) -> &[u8] {
    match entry {
        Entry::File { content, .. } => content,
        Entry::Directory { .. } | Entry::Link { .. } => &[],
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn json(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The host's architecture in the words of the specification, which are Go's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn image(order: &[&str]) -> Image {
        let mut tree = Tree::default();
        for path in order {
            tree.program(Path::new(path), path.as_bytes().to_vec());
        }
        tree.link(Path::new("/bin/link"), Path::new("a"));
        Image {
            name: "nodemesh.dev/some".to_owned(),
            tag: "1".to_owned(),
            tree,
            entrypoint: vec!["/bin/a".to_owned()],
            arguments: Vec::new(),
            labels: BTreeMap::from([("title", "b\"".to_owned()), ("also", "c".to_owned())]),
            created: "1970-01-01T00:00:00Z".to_owned(),
        }
    }

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn the_same_files_are_the_same_bytes_whatever_their_order() {
        let once = image(&["/bin/a", "/usr/bin/b"]).pack().unwrap();
        let again = image(&["/usr/bin/b", "/bin/a"]).pack().unwrap();
        assert!(once.bytes == again.bytes);
        let other = image(&["/bin/a", "/usr/bin/c"]).pack().unwrap();
        assert_ne!(once.digest, other.digest);
    }

    /// If fields were kept in the order in which they are named (a feature of `serde_json`), a
    /// digest would depend on what else is built.
    #[test]
    fn fields_of_documents_are_sorted() {
        assert_eq!(json(&json!({ "b": 1, "a": [] })), br#"{"a":[],"b":1}"#);
    }

    #[test]
    fn every_blob_is_there_and_is_what_its_descriptor_says() {
        let archive = image(&["/bin/a"]).pack().unwrap();
        let files = unpack(&archive.bytes);
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let content = &files[&format!("blobs/{}", name.replace(':', "/"))];
            assert_eq!(descriptor["size"], content.len());
            assert_eq!(name, digest(content));
            content.clone()
        };
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = parse(&files["index.json"]);
        let descriptor = &index["manifests"][0];
        assert_eq!(descriptor["annotations"]["io.containerd.image.name"], "nodemesh.dev/some:1");
        assert_eq!(descriptor["digest"], archive.digest);
        let manifest = parse(&blob(descriptor));
        let config = parse(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/a"]));
        assert_eq!(config["config"]["Labels"]["title"], "b\"");
        let mut layer = Vec::new();
        GzDecoder::new(&*blob(&manifest["layers"][0])).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        let kinds: BTreeSet<_> = files.keys().filter(|name| name.starts_with("blobs/s")).collect();
        assert_eq!(kinds.len(), 4, "a directory and three blobs: {kinds:?}");
    }

    #[test]
    fn files_belong_to_root_and_have_no_time() {
        let layer = tar(&image(&["/bin/a"]).tree).unwrap();
        let mut archive = tar::Archive::new(&*layer);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        let told: Vec<_> = entries
            .map(|entry| {
                let header = entry.header();
                let owner = (header.uid().unwrap(), header.gid().unwrap());
                assert_eq!((owner, header.mtime().unwrap()), ((0, 0), 0));
                let path = entry.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.entry_type())
            })
            .collect();
        let expected = [
            ("bin", 0o755, EntryType::Directory),
            ("bin/a", 0o755, EntryType::Regular),
            ("bin/link", 0o777, EntryType::Symlink),
        ];
        assert_eq!(told, expected.map(|(path, mode, kind)| (path.to_owned(), mode, kind)));
    }

    /// The digest of `abc` is NIST's own example (FIPS 180-4).
    #[test]
    fn digests_are_sha256() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), abc);
    }
}
