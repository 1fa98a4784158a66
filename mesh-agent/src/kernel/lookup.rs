//! The `sk_lookup` programs of pods' network namespaces. The kernel does not tell such a program in
//! which namespace it runs. A program that is asked about all connections of one namespace must
//! answer for no other. So each namespace has a copy of its own, loaded with a map that holds the
//! namespace's cookie. `tests/programs.rs` prints what a copy takes.

use std::{
    ffi::CString,
    mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfError,
    maps::{Array, IterableMap as _, Map, MapData},
};
use aya_obj::{
    Object,
    generated::{BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, bpf_insn},
};

use super::{
    programs::{Kernel, KernelError, took_over, took_over_first, unpin},
    tables::map_error,
};
use crate::sys;

/// For a pod that also takes plaintext.
const PERMISSIVE: &str = "nm_lookup";
/// For a pod that takes nothing but mutual TLS.
const STRICT: &str = "nm_lookup_strict";

/// The map of which each copy has its own.
const HERE: &str = "HERE";

/// `BPF_LD | BPF_IMM | BPF_DW`: two instructions, of which the first says what kind of number it is
/// (linux/bpf.h).
const LOAD_64: u8 = 0x18;

/// The programs as they are in the object, and the maps that they use.
pub(super) struct Lookups {
    permissive: Code,
    strict: Code,
    license: CString,
}

struct Code {
    name: &'static str,
    instructions: Vec<bpf_insn>,
    /// Which instruction loads which map; `None` is the namespace's own.
    maps: Vec<(usize, Option<OwnedFd>)>,
}

impl Lookups {
    /// Reads the programs out of the object, with the maps that were made or found for it.
    pub(super) fn open(object: &[u8], ebpf: &Ebpf) -> Result<Self, KernelError> {
        let load = |error: EbpfError| KernelError::Load(Box::new(error));
        let mut object = Object::parse(object).map_err(|error| load(error.into()))?;
        let maps: Vec<_> = mem::take(&mut object.maps).into_iter().collect();
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        // Numbers in the place of descriptors, since most maps are not used.
        let numbered = maps.iter().zip(0..).map(|((name, map), fd)| (name.as_str(), fd, map));
        object.relocate_maps(numbered, &sections).map_err(|error| load(error.into()))?;
        object.relocate_calls(&sections).map_err(|error| load(error.into()))?;
        let code = |name: &'static str| -> Result<Code, KernelError> {
            let missing = || KernelError::Missing(name.to_owned());
            let program = object.programs.get(name).ok_or_else(missing)?;
            let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
            let instructions = function.instructions.clone();
            let used = instructions.iter().enumerate().filter(|(_, one)| loads_map(**one));
            let maps = used.map(|(at, one)| {
                let (name, _) = usize::try_from(one.imm)
                    .ok()
                    .and_then(|number| maps.get(number))
                    .ok_or_else(missing)?;
                let map = if name == HERE { None } else { Some(descriptor(ebpf, name)?) };
                Ok((at, map))
            });
            let maps = maps.collect::<Result<_, KernelError>>()?;
            Ok(Code { name, instructions, maps })
        };
        let (permissive, strict) = (code(PERMISSIVE)?, code(STRICT)?);
        Ok(Self { permissive, strict, license: object.license.clone() })
    }

    /// A copy for a namespace.
    fn load(&self, netns: u64, strict: bool) -> Result<OwnedFd, KernelError> {
        let code = if strict { &self.strict } else { &self.permissive };
        let failed = |source| map_error(HERE, source);
        let mut here = Array::<MapData, u64>::create(1, 0).map_err(failed)?;
        here.set(0, netns, 0).map_err(failed)?;
        let here_fd = here.map().fd().as_fd().as_raw_fd();
        let mut instructions = code.instructions.clone();
        for (at, map) in &code.maps {
            if let Some(one) = instructions.get_mut(*at) {
                one.imm = map.as_ref().map_or(here_fd, OwnedFd::as_raw_fd);
            }
        }
        let loaded = sys::bpf::load_sk_lookup(code.name, &instructions, &self.license);
        loaded.map_err(|source| KernelError::Lookup { program: code.name, netns, source })
    }
}

/// Whether this is the first half of the instruction that loads a map or the address of a map's
/// value.
fn loads_map(one: bpf_insn) -> bool {
    let source = u32::from(one.src_reg());
    one.code == LOAD_64 && (source == BPF_PSEUDO_MAP_FD || source == BPF_PSEUDO_MAP_VALUE)
}

fn descriptor(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, KernelError> {
    let Some(
        Map::Array(map)
        | Map::HashMap(map)
        | Map::LpmTrie(map)
        | Map::PerCpuArray(map)
        | Map::PerCpuHashMap(map)
        | Map::RingBuf(map)
        | Map::SockHash(map),
    ) = ebpf.map(name)
    else {
        return Err(KernelError::Missing(name.to_owned()));
    };
    let copied = map.fd().as_fd().try_clone_to_owned();
    copied.map_err(|source| KernelError::Link { path: PathBuf::from(name), source })
}

impl Kernel {
    /// Attaches `sk_lookup` to a pod's network namespace, or swaps the program that is attached: a
    /// strict pod's also refuses what arrives at addresses that are not in `LOCAL`.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn attach_pod(
        &self,
        netns: BorrowedFd<'_>,
        cookie: u64,
        strict: bool,
    ) -> Result<(), KernelError> {
        let _one_at_a_time = self.ebpf.lock();
        let program = self.lookups.load(cookie, strict)?;
        let pin = self.pins.pod(cookie);
        if took_over_first(&self.pins, &pin, |pin| took_over(pin, program.as_fd()))? {
            return Ok(());
        }
        let failed = |source| KernelError::Link { path: pin.clone(), source };
        let link = sys::bpf::attach_sk_lookup(program.as_fd(), netns).map_err(failed)?;
        sys::bpf::pin(link.as_fd(), &pin).map_err(failed)
    }

    /// Takes over what an earlier agent has attached to a namespace that we have no handle of. The
    /// pod takes plaintext from now on, and mutual TLS as `LOCAL` says. `false`: nothing is
    /// attached there, or the namespace is gone.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn keep_attached(&self, cookie: u64) -> Result<bool, KernelError> {
        let _one_at_a_time = self.ebpf.lock();
        let program = self.lookups.load(cookie, false)?;
        let pin = self.pins.pod(cookie);
        took_over_first(&self.pins, &pin, |pin| took_over(pin, program.as_fd()))
    }

    /// Whether something is attached to a namespace that is still there.
    pub fn is_attached(&self, cookie: u64) -> bool {
        let pin = self.pins.pod(cookie);
        let lives = |pin: &PathBuf| {
            let link = sys::bpf::open_pinned(pin);
            link.and_then(|link| sys::bpf::link_has_netns(link.as_fd())).unwrap_or(false)
        };
        let elsewhere = self.pins.elsewhere(&pin);
        elsewhere.iter().chain([&pin]).any(lives)
    }

    /// Detaches `sk_lookup` from a namespace. One that is not attached counts as detached.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn detach_pod(&self, cookie: u64) -> Result<(), KernelError> {
        unpin(&self.pins, &self.pins.pod(cookie))
    }

    /// The namespaces that have `sk_lookup` attached, perhaps by an earlier agent.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn attached_pods(&self) -> Result<Vec<u64>, KernelError> {
        self.pins.pods().map_err(|source| KernelError::Link { path: self.pins.pod(0), source })
    }
}
