//! The clock that the eBPF programs read too.

use std::io;

/// `CLOCK_BOOTTIME` in nanoseconds, which is what `bpf_ktime_get_boot_ns` says.
///
/// # Errors
/// None that Linux would give for this clock.
pub(crate) fn boot_ns() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}
