//! The `bpf(2)` commands that aya 0.14 does not offer: opening a pinned link, swapping a link's
//! program, taking an entry out of a hash in one call, running a program, and loading one whose
//! maps were put in after it was parsed.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Pod,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use aya_obj::generated::{
    BPF_ANY, BPF_NOEXIST, bpf_attach_type::BPF_SK_LOOKUP, bpf_attr, bpf_cmd, bpf_insn,
    bpf_link_info, bpf_map_info, bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP,
};
use log::Log;
use tokio::io::{Interest, unix::AsyncFd};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a fully initialised `bpf_attr` and outlives the call; what its pointers
    // refer to is the callers' part and outlives it too.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, attr, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zeroes is what the kernel wants in
    // unused fields.
    unsafe { mem::zeroed() }
}

/// Opens a pinned object.
///
/// # Errors
/// `ENOENT` if nothing is pinned there.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel just returned this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a link run another program, with no moment in which neither runs.
///
/// # Errors
/// `ENOLINK` if what the link was attached to is gone; `EINVAL` if the program is of another type.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd().cast_unsigned();
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Loads an `sk_lookup` program. Of its name the kernel keeps 15 bytes.
///
/// # Errors
/// What the kernel said; its verifier's log is lost.
pub(crate) fn load_sk_lookup(name: &str, code: &[bpf_insn], license: &CStr) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_3.prog_type = BPF_PROG_TYPE_SK_LOOKUP as u32;
    attr.__bindgen_anon_3.expected_attach_type = BPF_SK_LOOKUP as u32;
    attr.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = code.len() as u32;
    attr.__bindgen_anon_3.license = license.as_ptr() as u64;
    // SAFETY: a byte array of the union's part that is being filled; the last byte stays zero.
    let kept = unsafe { &mut attr.__bindgen_anon_3.prog_name };
    let length = kept.len() - 1;
    for (to, from) in kept.iter_mut().take(length).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel just returned this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches an `sk_lookup` program to a network namespace: until the link is closed, if it is not
/// pinned.
///
/// # Errors
/// What the kernel said.
pub(crate) fn attach_sk_lookup(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.link_create.__bindgen_anon_2.target_fd = netns.as_raw_fd().cast_unsigned();
    attr.link_create.attach_type = BPF_SK_LOOKUP as u32;
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel just returned this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Pins an object.
///
/// # Errors
/// `EEXIST` if something is pinned there.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: plain integers and unions of them.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd().cast_unsigned();
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Whether the network namespace that a link is attached to is still there.
///
/// # Errors
/// What the kernel said.
pub(crate) fn link_has_netns(link: BorrowedFd<'_>) -> io::Result<bool> {
    let info = link_info(link)?;
    // SAFETY: the caller's link is one on a namespace, so this is the part that the kernel wrote.
    Ok(unsafe { info.__bindgen_anon_1.netns.netns_ino } != 0)
}

/// Id of the cgroup that a link is attached to: the inode of its directory, 0 once the cgroup is
/// gone.
///
/// # Errors
/// What the kernel said.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info = link_info(link)?;
    // SAFETY: the caller's link is one on a cgroup, so this is the part that the kernel wrote.
    Ok(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
}

/// What a map is like, as far as programs and agent depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// What a map is like. For something that is no map, it is a shape that no map has.
///
/// # Errors
/// What the kernel said.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // SAFETY: plain integers.
    let mut info: bpf_map_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = map.as_raw_fd().cast_unsigned();
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(MapShape {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

/// Looks an entry up and deletes it, in one call. Hash maps, kernel 5.14.
///
/// # Errors
/// Whatever the kernel says; a missing entry is `Ok(None)`.
pub(crate) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    look_up(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// Looks an entry up.
///
/// # Errors
/// Whatever the kernel says; a missing entry is `Ok(None)`.
pub(crate) fn get<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    look_up(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key)
}

fn look_up<K: Pod, V: Pod>(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = mem::MaybeUninit::<V>::zeroed();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(command, &mut attr) {
        // SAFETY: the kernel has written all of the value, and any bit pattern is valid for `Pod`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes an entry.
///
/// # Errors
/// `E2BIG` when the map is full.
pub(crate) fn put<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    update(map, key, value, BPF_ANY)
}

/// Makes an entry.
///
/// # Errors
/// `E2BIG` when the map is full, `EEXIST` when there is one.
pub(crate) fn put_new<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    update(map, key, value, BPF_NOEXIST)
}

fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u32) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    attr.__bindgen_anon_2.flags = flags.into();
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Runs a `raw_tracepoint` program with these arguments. Kernel 5.10.
///
/// # Errors
/// What the kernel said.
pub(crate) fn run(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<()> {
    let mut attr = zeroed();
    attr.test.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.test.ctx_in = arguments.as_ptr() as u64;
    attr.test.ctx_size_in = size_of_val(arguments) as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// A ring buffer that the runtime wakes us for.
///
/// # Errors
/// The runtime could not register the descriptor.
pub(crate) fn watch_ring(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its map's descriptor, and gives the same one each time.
    unsafe { watch(ring) }
}

/// The same for the ring of the programs' lines.
///
/// # Errors
/// The kernel's.
pub(crate) fn watch_log<T: Log>(logger: EbpfLogger<T>) -> io::Result<AsyncFd<EbpfLogger<T>>> {
    // SAFETY: the logger owns such a ring.
    unsafe { watch(logger) }
}

/// # Safety
/// `ring` owns its descriptor and gives the same one each time.
unsafe fn watch<T: AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the caller's promise; the ring lives inside the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}
