//! Taking away all that an agent left on its node, and the note by which that is found.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{DaemonError, Settings, WorldSource, os};
use crate::{
    admin,
    enrol::{self, restore_all},
    kernel::{self, Removed},
    lock::{NodeLock, PinLock},
    netns::Factory,
    preflight::Host,
    source::{announcement_file, forget_kept, withdraw_in_file},
};

/// What [`cleanup`] did.
#[derive(Debug, Serialize)]
pub struct CleanedUp {
    /// Links detached.
    pub links: usize,
    /// Maps freed.
    pub maps: usize,
    /// Namespaces whose settings were put back.
    pub namespaces: usize,
    /// Whether an announcement was taken back.
    pub announcement: bool,
}

/// Takes away all that an agent left on the node, once its peers have had time to hear of it. The
/// agent must have been stopped.
///
/// # Errors
/// An agent runs, or something could not be removed.
pub async fn cleanup(
    runtime_dir: &Path,
    pin_dir: Option<&Path>,
    default_pin_dir: &Path,
) -> Result<CleanedUp, DaemonError> {
    let lock = NodeLock::take(runtime_dir)?;
    let note = Note::read(runtime_dir);
    let noted = note.as_ref().map(|note| note.pin_dir.as_path());
    let pins = pin_dir.or(noted).unwrap_or(default_pin_dir);
    let file = note.as_ref().and_then(|note| note.announcement.as_ref());
    let announcement = match file {
        Some(file) => withdraw_in_file(file).await,
        None => false,
    };
    let locked = if pins.exists() { Some(PinLock::take(pins)?) } else { None };
    if let Some(file) = file.filter(|_| announcement) {
        // Peers go on dialling with TLS until they hear of it, and only the programs keep that from
        // the applications. If the file vanished at once, peers would stay with what was announced
        // before.
        sleep(enrol::LEAVE_GRACE).await;
        drop(fs::remove_file(file)); // one that is not there is removed
    }
    let removed = take_away(runtime_dir, pins).await?;
    drop((locked, lock));
    Ok(CleanedUp { announcement, ..removed })
}

/// The same without a word to the peers, for a caller that holds the locks.
pub(super) async fn take_away(runtime_dir: &Path, pins: &Path) -> Result<CleanedUp, DaemonError> {
    let note = Note::read(runtime_dir);
    let Removed { links, maps } = if pins.exists() {
        kernel::cleanup(pins).map_err(os("cannot remove the pins"))?
    } else {
        Removed::default()
    };
    let factory = Factory::start().map_err(os("cannot start threads"))?;
    let restored = restore_all(&factory, &Note::saved_dir(runtime_dir), &[]).await;
    let namespaces = restored.map_err(os("cannot put back settings of namespaces"))?;
    if let Some(cgroup) = note.as_ref().and_then(|note| note.cgroup.as_ref()) {
        drop(fs::remove_dir(cgroup)); // one that is not there is removed
    }
    forget_kept(runtime_dir);
    for file in
        [admin::socket_path(runtime_dir), runtime_dir.join("agent.json"), runtime_dir.join("lock")]
    {
        drop(fs::remove_file(file)); // one that is not there is removed
    }
    for dir in [&Note::saved_dir(runtime_dir), runtime_dir] {
        drop(fs::remove_dir(dir)); // files of other programs in it keep it
    }
    Ok(CleanedUp { links, maps, namespaces, announcement: false })
}

/// What `cleanup` has to know of the agent that ran.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    node: String,
    /// The file in which the node announced itself, in file mode.
    announcement: Option<PathBuf>,
    pin_dir: PathBuf,
    /// The cgroup that was made for the agent.
    cgroup: Option<PathBuf>,
}

impl Note {
    pub(super) fn of(settings: &Settings, host: &Host) -> Self {
        let earlier = Self::read(&settings.runtime_dir).and_then(|note| note.cgroup);
        Self {
            node: settings.node.to_string(),
            announcement: match &settings.world {
                WorldSource::Files { announce_dir, .. } => {
                    Some(announcement_file(announce_dir, &settings.node))
                }
                WorldSource::Kubernetes { .. } => None,
            },
            pin_dir: settings.pin_dir.clone(),
            cgroup: host.own_cgroup.made().map(Path::to_owned).or(earlier),
        }
    }

    pub(super) fn write(&self, runtime_dir: &Path) -> io::Result<()> {
        fs::write(runtime_dir.join("agent.json"), serde_json::to_vec(self)?)
    }

    fn read(runtime_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(runtime_dir.join("agent.json")).ok()?).ok()
    }

    pub(super) fn saved_dir(runtime_dir: &Path) -> PathBuf {
        runtime_dir.join("namespaces")
    }
}
