//! System calls that no crate offers. With mesh-ebpf the only place with `unsafe`.
#![expect(unsafe_code, reason = "raw system calls; each block says why it is sound")]

pub(crate) mod bpf;
pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod fds;
pub(crate) mod sock;
pub(crate) mod uname;
