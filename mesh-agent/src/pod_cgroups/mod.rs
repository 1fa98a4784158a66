//! The cgroups of the node's pods, as the kubelet makes them. They are seen within milliseconds,
//! before a container's first process runs, so that a pod can be held before it can talk.
//!
//! inotify gives speed, a look every two seconds gives certainty. Where pods' cgroups are not named
//! by their UIDs (another runtime, no kubelet), none is found and no pod is held; `status` shows
//! which are.

mod name;
mod processes;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) use processes::start_ticks;
pub use processes::{processes_below, processes_of};

use mesh_world::PodUid;

/// How often the tree is read without any event.
const RESCAN: Duration = Duration::from_secs(2);

/// Levels below the pods' cgroup at which a pod's may be: its class of service and the pod itself,
/// and one more for a node in a node.
const LEVELS: usize = 3;

/// A pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// Its directory.
    pub path: PathBuf,
    /// The number by which programs know it.
    pub id: u64,
    /// How many containers' cgroups are in it. It changes when the pod's first process is about to
    /// start.
    pub containers: usize,
    /// Whether it is known never to have had more than one container, the sandbox: it has been
    /// watched since it was made.
    pub only_sandbox: bool,
}

/// The pods' cgroups by UID.
pub type PodCgroups = BTreeMap<PodUid, PodCgroup>;

/// Follows the tree below the pods' cgroup.
pub struct Watch {
    root: PathBuf,
    signal: Arc<Notify>,
    known: watch::Sender<Arc<PodCgroups>>,
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Reads the tree a first time.
    ///
    /// # Errors
    /// The pods' cgroup cannot be read. That it cannot be watched is only logged: it is read every
    /// two seconds then.
    pub fn open(root: &Path) -> io::Result<(Self, watch::Receiver<Arc<PodCgroups>>)> {
        let signal = Arc::new(Notify::new());
        let watcher = watch(root, &signal)
            .inspect_err(|error| tracing::warn!(%error, cgroup = %root.display(), "new pods' cgroups are seen only every two seconds"))
            .ok();
        let (known, seen) = watch::channel(Arc::new(scan(root)?));
        Ok((Self { root: root.to_owned(), signal, known, watcher }, seen))
    }

    /// Publishes what changes, until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let _watcher = self.watcher;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _woken = timeout(RESCAN, self.signal.notified()) => {}
            }
            match scan(&self.root) {
                Ok(mut found) => {
                    remember(&mut found, &self.known.borrow());
                    self.known.send_if_modified(|known| {
                        let changed = **known != found;
                        if changed {
                            *known = Arc::new(found);
                        }
                        changed
                    });
                }
                Err(error) => {
                    tracing::error!(%error, cgroup = %self.root.display(), "the pods' cgroups cannot be read");
                }
            }
        }
    }
}

fn watch(root: &Path, signal: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let signal = Arc::clone(signal);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let nothing = |event: &notify::Event| {
            matches!(event.kind, EventKind::Access(_) | EventKind::Modify(_))
        };
        if !event.as_ref().is_ok_and(nothing) {
            signal.notify_one();
        }
    })?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Keeps what was seen before: a pod has only its sandbox if it has had one container at most
/// whenever the tree was read, and was not there at the first reading.
fn remember(found: &mut PodCgroups, before: &PodCgroups) {
    for (uid, cgroup) in found {
        let before = before.get(uid).filter(|before| before.id == cgroup.id);
        cgroup.only_sandbox =
            cgroup.containers <= 1 && before.is_none_or(|before| before.only_sandbox);
    }
}

/// The pods' cgroups in a tree; those that vanish meanwhile are left out.
fn scan(root: &Path) -> io::Result<PodCgroups> {
    let mut found = PodCgroups::new();
    scan_level(root, LEVELS, &mut found)?;
    Ok(found)
}

fn scan_level(dir: &Path, levels: usize, found: &mut PodCgroups) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match entry.file_name().to_str().and_then(name::pod_uid) {
            Some(uid) => match entry.metadata() {
                Err(error) if is_gone(&error) => {}
                metadata => {
                    let (id, containers) = (metadata?.ino(), containers(&path));
                    found.insert(uid, PodCgroup { path, id, containers, only_sandbox: false });
                }
            },
            None if levels > 1 => match scan_level(&path, levels - 1, found) {
                // Gone again. No other error may pass for that: held pods would be released.
                Err(error) if is_gone(&error) => {}
                scanned => scanned?,
            },
            None => {}
        }
    }
    Ok(())
}

/// The number of a pod's containers; 0 if the pod goes meanwhile.
fn containers(pod: &Path) -> usize {
    let entries = fs::read_dir(pod).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}

/// Whether the error says that a directory went while it was read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pods_cgroup_is_seen_when_it_appears_and_when_it_goes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("burstable")).unwrap();
        let (watch, mut seen) = Watch::open(root.path()).unwrap();
        assert!(seen.borrow().is_empty());
        let stop = CancellationToken::new();
        let running = crate::tasks::Tasks::new();
        running.spawn("watch", watch.run(stop.clone()));
        let pod = root.path().join("burstable/poda-1");
        fs::create_dir_all(pod.join("container")).unwrap();
        let uid = PodUid::parse("a-1").unwrap();
        let one = |known: &Arc<PodCgroups>| known.get(&uid).is_some_and(|pod| pod.containers == 1);
        let found = seen.wait_for(one).await.unwrap()[&uid].clone();
        let id = fs::metadata(&pod).unwrap().ino();
        let only_sandbox = true;
        assert_eq!(found, PodCgroup { id, path: pod.clone(), containers: 1, only_sandbox });
        fs::create_dir(pod.join("another")).unwrap();
        seen.wait_for(|known| known.get(&uid).is_some_and(|pod| pod.containers == 2))
            .await
            .unwrap();
        fs::remove_dir_all(&pod).unwrap();
        seen.wait_for(|known| known.is_empty()).await.unwrap();
        stop.cancel();
        running.wait().await;
    }

    #[tokio::test]
    async fn a_sandbox_that_is_alone_again_or_was_not_seen_from_the_beginning_is_told_from_a_new_one()
     {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("podold"), root.path().join("podnew"));
        fs::create_dir_all(old.join("sandbox")).unwrap();
        let (watch, mut seen) = Watch::open(root.path()).unwrap();
        let stop = CancellationToken::new();
        let running = crate::tasks::Tasks::new();
        running.spawn("watch", watch.run(stop.clone()));
        let mut only_sandbox = async |name: &str, containers: usize| {
            let uid = PodUid::parse(name).unwrap();
            let has = |known: &Arc<PodCgroups>| {
                known.get(&uid).is_some_and(|pod| pod.containers == containers)
            };
            seen.wait_for(has).await.unwrap()[&uid].only_sandbox
        };
        fs::create_dir_all(new.join("sandbox")).unwrap();
        assert!(only_sandbox("new", 1).await);
        assert!(!only_sandbox("old", 1).await, "what it had before is not known");
        fs::create_dir(new.join("init")).unwrap();
        assert!(!only_sandbox("new", 2).await);
        fs::remove_dir(new.join("init")).unwrap();
        assert!(!only_sandbox("new", 1).await, "a program of the pod has run");
        fs::remove_dir_all(&new).unwrap();
        seen.wait_for(|known| known.len() == 1).await.unwrap();
        fs::create_dir_all(new.join("sandbox")).unwrap();
        let uid = PodUid::parse("new").unwrap();
        let again = |known: &Arc<PodCgroups>| known.get(&uid).is_some_and(|pod| pod.only_sandbox);
        seen.wait_for(again).await.unwrap();
        stop.cancel();
        running.wait().await;
    }

    /// Trees that a kubelet makes: with the systemd driver and version 2 alone, with the cgroupfs
    /// driver in a tree beside version 1 (the same names in both), in a node that is itself a
    /// container, and for static pods.
    #[test]
    fn pods_are_found_in_every_layout() {
        const UID: &str = "0a1b2c3d-0000-4000-8000-00000000000f";
        const STATIC: &str = "73bd32bbb27ec8f1e4f7ea3a3e3b2e28";
        let escaped = UID.replace('-', "_");
        let layouts = [
            (
                format!("kubepods-besteffort.slice/kubepods-besteffort-pod{escaped}.slice"),
                "cri-containerd-c1.scope",
                UID,
            ),
            (format!("kubepods-pod{escaped}.slice"), "crio-c1.scope", UID),
            (format!("burstable/pod{UID}"), "c1", UID),
            (format!("pod{UID}"), "c1", UID),
            (
                format!(
                    "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{escaped}.slice"
                ),
                "cri-containerd-c1.scope",
                UID,
            ),
            (format!("besteffort/pod{STATIC}"), "c1", STATIC),
            (
                format!("kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice"),
                "cri-containerd-c1.scope",
                STATIC,
            ),
        ];
        for (pod, container, uid) in layouts {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(&pod).join(container)).unwrap();
            fs::create_dir_all(root.path().join("besteffort/not-a-pod")).unwrap();
            fs::write(root.path().join(&pod).join(container).join("cgroup.procs"), "7\n0\n")
                .unwrap();
            let found = scan(root.path()).unwrap();
            let uid = PodUid::parse(uid).unwrap();
            assert_eq!(found.keys().collect::<Vec<_>>(), [&uid], "{pod}");
            assert_eq!((found[&uid].containers, processes_of(&uid, &found)), (1, vec![7]), "{pod}");
        }
    }

    #[test]
    fn a_tree_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let temporary = tempfile::tempdir().unwrap();
        let mut root = temporary.path().to_owned();
        while root.as_os_str().len() < 3850 {
            root.push("d".repeat(180));
        }
        fs::create_dir_all(root.join("podheld")).unwrap();
        let uid = PodUid::parse("held").unwrap();
        assert!(scan(&root).unwrap().contains_key(&uid));
        // It is there, and not even root can read it: its path is longer than the kernel takes.
        let class = "c".repeat(250);
        let made = std::process::Command::new("mkdir").current_dir(&root).arg(&class).status();
        assert!(made.unwrap().success());
        let error = scan(&root).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG), "{error}");
    }
}
