//! What a refused `connect()` returns, so that applications see what the network would have told
//! them.
//!
//! Linux' numbers (include/uapi/asm-generic/errno.h), the same on x86-64 and arm64.

/// No memory for it.
pub const ENOMEM: u32 = 12;
/// The socket cannot use its own address.
pub const EADDRNOTAVAIL: u32 = 99;
/// There is no way into that network.
pub const ENETUNREACH: u32 = 101;
/// No answer came in time.
pub const ETIMEDOUT: u32 = 110;
/// No listener, or a host on the way says so.
pub const ECONNREFUSED: u32 = 111;
/// There is no way to that host.
pub const EHOSTUNREACH: u32 = 113;
