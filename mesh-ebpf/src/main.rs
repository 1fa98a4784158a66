//! Nodemesh's eBPF programs, one file per hook.
//!
//! They decide for each TCP connection whether the mesh carries it, and lead it to the agent if so.
//! The decisions are pure functions in `mesh_common::decide`. Here are only the hooks, the maps and
//! the byte orders. Kernel floor: 5.15 (`bpf_get_netns_cookie` in sockops). No CO-RE: only UAPI
//! contexts and helpers.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "every helper call and context access of an eBPF program is unsafe"
)]
#![expect(
    clippy::needless_pass_by_value,
    clippy::needless_borrows_for_generic_args,
    reason = "hooks get their context by value, and a key by reference is not copied once more on the 512-byte stack"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))] // one instruction, in maps.rs

mod bind;
mod connect;
mod ctx;
mod getpeername;
mod give_back;
mod guard;
mod kubelet;
mod legs;
mod log;
mod maps;
mod question;
mod sk_lookup;
mod sockets;
mod sockops;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The programs cannot panic: if this loop were reachable, the verifier would refuse it.
    loop {}
}

/// The kernel offers `bpf_sk_storage_get` and other helpers to GPL programs only. It has no word
/// for "Apache-2.0 or GPL-2.0".
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
