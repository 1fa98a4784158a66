//! What the eBPF programs and the agent both read: addresses, map keys and values, verdicts with
//! their reasons, and the decisions themselves as pure functions that the host can test.
//!
//! Everything here is `no_std`, fixed in size, free of padding and identical on both sides. The
//! layout of the map types is a contract with pinned maps: a change of the layout raises [`ABI`].
#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

pub mod addr;
pub mod decide;
pub mod errno;
pub mod maps;
mod net;
pub mod ports;
pub mod verdict;

/// Version of the pinned layout: the directory below the pin directory is named `v<ABI>`, since aya
/// reuses a pinned map without looking at its layout.
pub const ABI: u32 = 7;

#[cfg(feature = "user")]
mod user;
