//! Loads the programs and attaches those on the pods' cgroup. `lookup.rs` attaches the one on
//! each enrolled namespace, `guard.rs` those on the cgroups of held pods, and `kubelet.rs` those on
//! the kubelet's.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError,
        ProgramType, SockOps, links::FdLink,
    },
    sys::{BpfHelper, is_helper_supported},
};
use parking_lot::Mutex;
use thiserror::Error;

use super::{
    events::Refusals,
    guard::HELD_EGRESS,
    layout,
    log::ProgramLog,
    lookup::Lookups,
    pins::PinDir,
    questions::Questions,
    tables::{Before, Tables},
};
use crate::sys;

/// The object that `cargo xtask build-ebpf` made; empty where it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));

/// Programs on the pods' cgroup.
const CGROUP_PROGRAMS: [&str; 7] = [
    "nm_sockops",
    "nm_peername4",
    "nm_peername6",
    "nm_bind4",
    "nm_bind6",
    "nm_connect4",
    "nm_connect6",
];

/// The program on the socket that takes the packets of dials that wait.
const QUESTION: &str = "nm_question";

/// Why the kernel side could not be set up or changed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The agent was built without its programs.
    #[error("this agent was built without its eBPF programs; build it with `cargo xtask build`")]
    NoObject,
    /// The pin directory could not be made.
    #[error(
        "cannot make the pin directory {path}: {source}; is a bpffs mounted there? (mount -t bpf bpf /sys/fs/bpf)"
    )]
    PinDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error(
        "cannot load the eBPF programs: {0}; the kernel must be 5.15 or newer and the agent needs CAP_BPF and CAP_NET_ADMIN"
    )]
    Load(#[from] Box<aya::EbpfError>),
    /// A program was refused or could not be attached.
    #[error("program {program}: {source}")]
    Program {
        /// Its name.
        program: String,
        /// What the kernel said; a verifier's log in full.
        source: Box<ProgramError>,
    },
    /// A program or map that this agent expects is not in the object.
    #[error(
        "the eBPF object has no {0} of the expected kind; agent and object are of different versions"
    )]
    Missing(String),
    /// A copy for one namespace was refused.
    #[error("program {program} for the network namespace {netns}: {source}")]
    Lookup {
        /// Its name.
        program: &'static str,
        /// The namespace's cookie.
        netns: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be used.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya or the kernel said.
        source: Box<aya::maps::MapError>,
    },
    /// A link could not be opened, pinned, updated or removed.
    #[error("link {path}: {source}")]
    Link {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup could not be opened.
    #[error(
        "cannot open the cgroup {path}: {source}; name the cgroup v2 directory above the pods with --cgroup"
    )]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl KernelError {
    /// The map that had no room, if that is what is wrong.
    pub fn full_table(&self) -> Option<&'static str> {
        let Self::Map { map, source } = self else { return None };
        let aya::maps::MapError::SyscallError(failed) = &**source else { return None };
        // Hash tables, and tries.
        let is_full = matches!(failed.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC));
        is_full.then_some(*map)
    }
}

/// A loaded program, for `status` and the tests.
#[derive(Clone, Debug)]
pub struct ProgramFacts {
    /// Its name.
    pub name: String,
    /// Instructions the verifier walked (kernel 5.16).
    pub verified_instructions: Option<u32>,
}

/// What the programs tell the agent.
pub struct Told {
    /// The connections that they refuse.
    pub refusals: Refusals,
    /// The dials that wait.
    pub questions: Questions,
    /// Their own log lines.
    pub log: ProgramLog,
}

/// The kernel side of this agent.
pub struct Kernel {
    pub(super) pins: PinDir,
    tables: Tables,
    pub(super) lookups: Lookups,
    pub(super) ebpf: Mutex<Ebpf>,
}

impl Kernel {
    /// Loads the programs, reusing what an earlier agent pinned. What that agent left half-made is
    /// forgotten, unless it lives. Nothing runs yet: [`Kernel::attach_cgroup`] follows once the
    /// tables are filled.
    ///
    /// # Errors
    /// See [`KernelError`]; what was pinned before stays as it was.
    pub fn load(pin_dir: &Path, before: Before) -> Result<(Self, Told), KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        let pins = PinDir::create(pin_dir)
            .map_err(|source| KernelError::PinDir { path: pin_dir.to_owned(), source })?;
        if before == Before::Gone {
            pins.remove_unfinished().map_err(|source| unusable(&pins, source))?;
        }
        layout::set_aside_misfits(OBJECT, &pins)?;
        layout::report_others(&pins);
        let mut loader = EbpfLoader::new();
        for name in Tables::NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
        let set_retval = u8::from(refusals_have_reasons());
        loader.override_global("SET_RETVAL", &set_retval, true);
        let mut ebpf = loader.load(OBJECT).map_err(Box::new)?;
        for (name, program) in ebpf.programs_mut() {
            let outcome = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::CgroupSkb(program) => program.load(),
                Program::SkLookup(program) => program.load(),
                Program::RawTracePoint(program) => program.load(),
                Program::SocketFilter(program) => program.load(),
                _ => return Err(KernelError::Missing(name.to_owned())),
            };
            outcome.map_err(|source| program_error(name, source))?;
        }
        let lookups = Lookups::open(OBJECT, &ebpf)?;
        let tables = Tables::open(&mut ebpf, before)?;
        let told = Told {
            refusals: Refusals::new(ring("EVENTS", &mut ebpf)?),
            questions: Questions::new(ring("QUESTIONS", &mut ebpf)?),
            log: ProgramLog::open(&mut ebpf)?,
        };
        Ok((Self { pins, tables, lookups, ebpf: Mutex::new(ebpf) }, told))
    }

    /// The maps.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// What is loaded.
    pub fn programs(&self) -> Vec<ProgramFacts> {
        let ebpf = self.ebpf.lock();
        ebpf.programs()
            .map(|(name, program)| ProgramFacts {
                name: name.to_owned(),
                verified_instructions: program
                    .info()
                    .ok()
                    .and_then(|info| info.verified_instruction_count()),
            })
            .collect()
    }

    /// Attaches the hooks on the cgroup above the pods, or swaps their programs where an earlier
    /// agent attached them.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<(), KernelError> {
        let (directory, id) = open_cgroup(cgroup)?;
        let mut ebpf = self.ebpf.lock();
        for name in CGROUP_PROGRAMS {
            let program =
                ebpf.program_mut(name).ok_or_else(|| KernelError::Missing(name.to_owned()))?;
            hang_on(program, name, (&directory, id), &self.pins, &self.pins.link(name))?;
        }
        Ok(())
    }

    /// Has the program of dials that wait look at all packets for a socket.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn take_questions(&self, socket: &impl AsFd) -> Result<(), KernelError> {
        let ebpf = self.ebpf.lock();
        let program =
            ebpf.program(QUESTION).ok_or_else(|| KernelError::Missing(QUESTION.to_owned()))?;
        let fd = program.fd().map_err(|source| program_error(QUESTION, source))?;
        let attached = sys::sock::attach_filter(socket, fd.as_fd());
        attached.map_err(|source| program_error(QUESTION, source.into()))
    }

    /// Removes what agents of other versions have pinned on the pods' cgroup: what this one has
    /// attached does their work.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn drop_other_layouts(&self) -> Result<(), KernelError> {
        self.pins.remove_others().map_err(|source| unusable(&self.pins, source))
    }

    /// Takes away what an agent that is gone was about to pin.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn forget_unfinished(&self) -> Result<(), KernelError> {
        self.pins.remove_unfinished().map_err(|source| unusable(&self.pins, source))
    }
}

fn ring(name: &'static str, ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, KernelError> {
    let map = ebpf.take_map(name).ok_or_else(|| KernelError::Missing(name.to_owned()))?;
    RingBuf::try_from(map)
        .map_err(|source| KernelError::Map { map: name, source: Box::new(source) })
}

/// Opens a cgroup. Returns also the id by which programs know it: its directory's inode.
pub(super) fn open_cgroup(cgroup: &Path) -> Result<(File, u64), KernelError> {
    let failed = |source| KernelError::Cgroup { path: cgroup.to_owned(), source };
    let directory = File::open(cgroup).map_err(failed)?;
    let id = directory.metadata().map_err(failed)?.ino();
    Ok((directory, id))
}

/// Attaches a program to a cgroup and pins the link. Where an earlier agent has done that, swaps
/// the program behind its link.
pub(super) fn hang_on(
    program: &mut Program,
    name: &str,
    (directory, id): (&File, u64),
    pins: &PinDir,
    pin: &Path,
) -> Result<(), KernelError> {
    let fd = program.fd().map_err(|source| program_error(name, source))?;
    let fits = |pin: &Path| Ok(attached_to(pin) == Some(id) && took_over(pin, fd.as_fd())?);
    if took_over_first(pins, pin, fits)? {
        return Ok(());
    }
    let failed = |source| program_error(name, source);
    // The kernel wants `Single` for links; a cgroup may have many of them all the same (aya#1078).
    let mode = CgroupAttachMode::Single;
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            let id = CgroupSockAddr::attach(program, directory, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|error| link_error(pin, error))?
        }
        Program::SockOps(program) => {
            let id = SockOps::attach(program, directory, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|error| link_error(pin, error))?
        }
        Program::CgroupSkb(program) => {
            let way = match name {
                HELD_EGRESS => CgroupSkbAttachType::Egress,
                _ => CgroupSkbAttachType::Ingress,
            };
            let id = CgroupSkb::attach(program, directory, way, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|error| link_error(pin, error))?
        }
        _ => return Err(KernelError::Missing(name.to_owned())),
    };
    // A pin on another cgroup is from an earlier setting. It is replaced in one step, once the new
    // link is there.
    let unfinished = PinDir::unfinished(pin);
    remove(&unfinished)?;
    link.pin(&unfinished).map_err(|error| link_error(pin, error))?;
    let renamed = std::fs::rename(&unfinished, pin);
    renamed.map_err(|source| KernelError::Link { path: pin.to_owned(), source })
}

/// Removes the pin of a link, and with it the link, in other layouts too. A missing pin counts as
/// removed.
pub(super) fn unpin(pins: &PinDir, pin: &Path) -> Result<(), KernelError> {
    let elsewhere = pins.elsewhere(pin);
    elsewhere.iter().map(PathBuf::as_path).chain([pin]).try_for_each(remove)?;
    if !elsewhere.is_empty() {
        pins.remove_empty();
    }
    Ok(())
}

fn remove(pin: &Path) -> Result<(), KernelError> {
    match std::fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Link { path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Takes over our pin or, failing that, the one that another layout has of the same. The same link
/// then becomes ours, under our name.
pub(super) fn took_over_first(
    pins: &PinDir,
    ours: &Path,
    takes: impl Fn(&Path) -> Result<bool, KernelError>,
) -> Result<bool, KernelError> {
    if takes(ours)? {
        return Ok(true);
    }
    for pin in pins.elsewhere(ours) {
        if takes(&pin)? {
            let renamed = std::fs::rename(&pin, ours);
            renamed.map_err(|source| KernelError::Link { path: pin, source })?;
            pins.remove_empty();
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a refused `connect()` can return what the network would say, and not EPERM for
/// everything. It can from 6.1 on, where the kernel lets such programs call `bpf_set_retval`.
fn refusals_have_reasons() -> bool {
    let supported =
        is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    match &supported {
        Ok(true) => {}
        Ok(false) => {
            tracing::info!("a refused connect() is EPERM on this kernel; 6.1 can say more");
        }
        Err(error) => {
            tracing::warn!(%error, "cannot ask the kernel for bpf_set_retval; a refused connect() is EPERM");
        }
    }
    matches!(supported, Ok(true))
}

/// Id of the cgroup that a pinned link is attached to, if it is one.
pub(super) fn attached_to(pin: &Path) -> Option<u64> {
    let link = sys::bpf::open_pinned(pin).ok()?;
    sys::bpf::link_cgroup(link.as_fd()).ok()
}

/// Swaps the program behind a pinned link, if the link still hangs on something.
pub(super) fn took_over(pin: &Path, program: BorrowedFd<'_>) -> Result<bool, KernelError> {
    let failed = |source| KernelError::Link { path: pin.to_owned(), source };
    let link = match sys::bpf::open_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    match sys::bpf::update_link(link.as_fd(), program) {
        Ok(()) => Ok(true),
        // The pin is of no use: what it was attached to is gone (a cgroup or namespace that ended),
        // or it is not a link of such a program.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::EINVAL)) => {
            tracing::debug!(pin = %pin.display(), %error, "a pin of no use is removed");
            std::fs::remove_file(pin).map_err(failed)?;
            Ok(false)
        }
        Err(source) => Err(failed(source)),
    }
}

fn unusable(pins: &PinDir, source: io::Error) -> KernelError {
    KernelError::Link { path: pins.link(""), source }
}

pub(super) fn program_error(program: &str, source: ProgramError) -> KernelError {
    KernelError::Program { program: program.to_owned(), source: Box::new(source) }
}

fn link_error(pin: &Path, error: impl std::error::Error + Send + Sync + 'static) -> KernelError {
    KernelError::Link { path: pin.to_owned(), source: io::Error::other(error) }
}
