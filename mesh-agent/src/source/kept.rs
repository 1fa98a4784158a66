//! What the source said last, on disk. An agent that starts while the API server is away goes on
//! with it. In file mode, an agent uses it for files that it cannot read.
//!
//! One JSON object a line: a header; the objects as Kubernetes has them but trimmed, each with its
//! file if it came from one; the `MeshNode`s; for an address that several nodes announce, which of
//! them was first; and the number of these lines, so that half a file is not used. The file's
//! modification time is when all of it was last known to be true. It is used only in the boot in
//! which it was written, since namespaces, cgroups and pinned maps do not outlive that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use mesh_world::{
    Announcements, FileLines, Incumbents, Memory, MeshNode, NodeName, NodeRank, Objects, Origin,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kinds::{Object, kind_named};

/// Rises when a file of today could be misread.
const FORMAT: u32 = 1;
/// The largest file that is written or read: some four times the world of 100,000 pods. It lies in
/// `/run`, which is memory.
const MAX_BYTES: u64 = 128 << 20;
/// The field, beside Kubernetes' own, that names the file in which an object stood.
const FILE: &str = "nodemeshFile";
/// The number of the line after the header.
const FIRST_OBJECT: usize = 2;

/// What an earlier agent wrote down.
#[derive(Debug)]
pub struct SavedWorld {
    /// When it was last known to be true.
    pub as_of: Timestamp,
    /// The objects.
    pub objects: Arc<Objects>,
    /// What all nodes announced, and for an address of several nodes, which of them was first.
    pub memory: Memory,
}

/// The file, and the header that it must have to be used.
#[derive(Clone, Debug)]
pub struct KeptFile {
    path: PathBuf,
    header: Header,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    /// [`FORMAT`].
    nodemesh_world: u32,
    node: NodeName,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Footer {
    /// How many lines stand between header and footer.
    all_of_them: usize,
}

/// An address that several nodes announced.
#[derive(Serialize, Deserialize)]
struct Contested {
    kind: ContestedKind,
    address: IpAddr,
    nodes: Vec<NodeRank>,
}

#[derive(Serialize, Deserialize)]
enum ContestedKind {
    ContestedAddress,
}

/// Why a file is not used, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Fault: the host.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Of another format, node or boot.
    #[error("it is of {0}")]
    Other(&'static str),
    /// Fault: the file's author, or the disk.
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It was not written to its end.
    #[error("its end is missing")]
    Cut,
    /// See [`MAX_BYTES`].
    #[error("it would have more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// The file in a runtime directory.
fn kept_file(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("world.jsonl")
}

/// Removes what agents have written down there, and what a killed agent has left half written.
pub fn forget_kept(runtime_dir: &Path) {
    drop(fs::remove_file(kept_file(runtime_dir))); // an absent file counts as removed
    remove_unfinished(runtime_dir, |_pid| true);
}

fn remove_unfinished(runtime_dir: &Path, of: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(runtime_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|it| it.strip_prefix("world.")?.strip_suffix(".tmp"));
        if pid.is_some_and(&of) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

impl KeptFile {
    /// The file of a node's agents in this boot.
    pub fn new(runtime_dir: &Path, node: &NodeName, boot_id: &str) -> Self {
        let header =
            Header { nodemesh_world: FORMAT, node: node.clone(), boot_id: boot_id.to_owned() };
        Self { path: kept_file(runtime_dir), header }
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's content; `None` if there is no file.
    ///
    /// # Errors
    /// It cannot be used: see [`KeptError`].
    pub fn read(&self) -> Result<Option<SavedWorld>, KeptError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let about = file.metadata()?;
        if about.len() > MAX_BYTES {
            return Err(KeptError::TooLarge);
        }
        let as_of = Timestamp::try_from(about.modified()?).map_err(io::Error::other)?;
        let mut lines = BufReader::new(file).lines();
        let Some(first) = lines.next() else { return Err(KeptError::Cut) };
        self.is_ours(&first?)?;
        let (mut objects, mut announcements) = (Objects::default(), Announcements::new());
        let mut incumbents = Incumbents::default();
        for (count, line) in lines.enumerate() {
            let wrong = |what: String| KeptError::Line { line: count + FIRST_OBJECT, what };
            let value: Value = serde_json::from_str(&line?).map_err(|it| wrong(it.to_string()))?;
            if value.get("kind").is_none() {
                let footer: Footer = object(value).map_err(wrong)?;
                let memory = Memory { announcements: announcements.into(), incumbents };
                let kept = SavedWorld { as_of, objects: objects.into(), memory };
                return if footer.all_of_them == count {
                    Ok(Some(kept))
                } else {
                    Err(KeptError::Cut)
                };
            }
            if value.get("kind").is_some_and(|kind| kind == "ContestedAddress") {
                let Contested { address, nodes, .. } = object(value).map_err(wrong)?;
                incumbents.insert(address, nodes);
            } else {
                insert(value, &mut objects, &mut announcements).map_err(wrong)?;
            }
        }
        Err(KeptError::Cut)
    }

    fn is_ours(&self, line: &str) -> Result<(), KeptError> {
        let wrong = |error: serde_json::Error| KeptError::Line { line: 1, what: error.to_string() };
        let header: Value = serde_json::from_str(line).map_err(wrong)?;
        if header.get("nodemeshWorld") != Some(&FORMAT.into()) {
            return Err(KeptError::Other("another version"));
        }
        let Header { nodemesh_world: _, node, boot_id } =
            serde_json::from_value(header).map_err(wrong)?;
        if node != self.header.node {
            Err(KeptError::Other("another node"))
        } else if boot_id != self.header.boot_id {
            Err(KeptError::Other("an earlier boot"))
        } else {
            Ok(())
        }
    }

    /// Replaces the file whole. Takes time in proportion to everything.
    ///
    /// # Errors
    /// See [`KeptError`]. The file is then removed: the kernel has been told newer things since,
    /// and an agent that went by the old file could open what has been closed.
    pub fn write(
        &self,
        objects: &Objects,
        memory: &Memory,
        as_of: Timestamp,
    ) -> Result<(), KeptError> {
        let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written = self.write_to(&temporary, objects, memory);
        let written = written.and_then(|()| Ok(set_modified(&temporary, as_of)?));
        let written = written.and_then(|()| Ok(fs::rename(&temporary, &self.path)?));
        if written.is_err() {
            drop(fs::remove_file(&temporary)); // an absent file counts as removed
            drop(fs::remove_file(&self.path));
        }
        written
    }

    fn write_to(&self, path: &Path, objects: &Objects, memory: &Memory) -> Result<(), KeptError> {
        // A file with our pid is of an ended agent that had the same pid.
        let is_over = |pid: &str| !Path::new("/proc").join(pid).exists();
        let ours = std::process::id().to_string();
        remove_unfinished(path.parent().unwrap_or(path), |pid| pid == ours || is_over(pid));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut lines = Lines { to: BufWriter::new(file), bytes: 0, count: 0 };
        lines.put(&self.header)?;
        lines.count = 0;
        Object::all(objects).try_for_each(|it| lines.put_object(&it))?;
        memory.announcements.values().try_for_each(|it| lines.put(&**it))?;
        for (address, nodes) in memory.incumbents.iter() {
            let (kind, nodes) = (ContestedKind::ContestedAddress, nodes.to_vec());
            lines.put(&Contested { kind, address: *address, nodes })?;
        }
        let all_of_them = lines.count;
        lines.put(&Footer { all_of_them })?;
        Ok(lines.to.flush()?)
    }

    /// Marks the file's content as still true.
    ///
    /// # Errors
    /// The host's.
    pub fn touch(&self, as_of: Timestamp) -> io::Result<()> {
        set_modified(&self.path, as_of)
    }
}

fn set_modified(path: &Path, as_of: Timestamp) -> io::Result<()> {
    File::options().write(true).open(path)?.set_modified(as_of.into())
}

/// What has been written so far.
struct Lines<W> {
    to: W,
    bytes: u64,
    count: usize,
}

impl<W: Write> Lines<W> {
    /// An object, and the file in which it stood.
    fn put_object(&mut self, object: &Object) -> Result<(), KeptError> {
        let Some(file) = object.origin().file() else { return self.put(object) };
        let mut value = serde_json::to_value(object).map_err(io::Error::from)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert(FILE.to_owned(), Value::from(&**file));
        }
        self.put(&value)
    }

    fn put(&mut self, object: &impl Serialize) -> Result<(), KeptError> {
        let mut line = serde_json::to_vec(object).map_err(io::Error::from)?;
        line.push(b'\n');
        self.bytes = self.bytes.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        self.count += 1;
        if self.bytes > MAX_BYTES {
            return Err(KeptError::TooLarge);
        }
        Ok(self.to.write_all(&line)?)
    }
}

pub(super) fn insert(
    mut value: Value,
    objects: &mut Objects,
    announcements: &mut Announcements,
) -> Result<(), String> {
    let file = value.as_object_mut().and_then(|fields| fields.remove(FILE));
    let file: Option<Arc<str>> = file.as_ref().and_then(Value::as_str).map(Arc::from);
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind == "MeshNode" {
        let announcement: MeshNode = object(value)?;
        announcements.insert(announcement.node.clone(), Arc::new(announcement));
        return Ok(());
    }
    let known = kind_named(&kind).ok_or_else(|| format!("unknown kind {kind:?}"))?;
    let locate = |origin: Origin| match &file {
        Some(file) => origin.in_file(Arc::clone(file), Arc::new(FileLines::unknown())),
        None => origin,
    };
    let object = (known.read)(value, &locate).map_err(|error| error.to_string())?;
    object.insert_into(objects);
    Ok(())
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}
