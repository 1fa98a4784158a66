//! Which kernel this is.

use std::{
    ffi::{CStr, c_char},
    io,
    mem::MaybeUninit,
};

/// The two first numbers of a release; `None` for a kernel that numbers itself otherwise.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The kernel's release as `uname -r` prints it, for instance `6.1.0-50-cloud-amd64`.
///
/// # Errors
/// What the kernel said; it has no reason to.
pub(crate) fn release() -> io::Result<String> {
    let mut names = MaybeUninit::<libc::utsname>::uninit();
    // SAFETY: the pointer is valid for writes of a `utsname`.
    if unsafe { libc::uname(names.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: uname(2) has succeeded and filled all of it.
    let names = unsafe { names.assume_init() };
    let release: *const c_char = names.release.as_ptr();
    // SAFETY: the kernel ends the field, which lives as long as `names`, with a zero.
    Ok(unsafe { CStr::from_ptr(release) }.to_string_lossy().into_owned())
}
