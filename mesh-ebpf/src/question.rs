//! `socket_filter`, on the socket that takes the packets of dials that wait. It hands the first
//! packet of each to the agent, which sends the same headers again once it has reached the
//! destination, and drops every packet in silence. Kernel 5.8.

use aya_ebpf::{
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
    macros::socket_filter,
    programs::SkBuffContext,
};
use mesh_common::maps::QuestionEvent;

use crate::maps;

/// The packet is not for the socket.
const DROP: i64 = 0;

const SYN: u8 = 2;
const ACK: u8 = 16;
/// The lengths of headers: TCP's without options, IPv4's without options, IPv6's.
const TCP: u32 = 20;
const IPV4: u32 = 20;
const IPV6: u32 = 40;
/// The bits that a TCP header's length can have: it is a multiple of 4, and at most 60.
const TCP_LENGTHS: u32 = 60;

#[socket_filter]
pub(crate) fn nm_question(context: SkBuffContext) -> i64 {
    ask(&context);
    DROP
}

/// Asks the agent about a packet that begins a connection, if `sk_lookup` has said so.
#[inline(always)]
fn ask(context: &SkBuffContext) -> Option<()> {
    let asked = maps::take_asked()?;
    let mut event =
        QuestionEvent { netns: asked.netns, id: asked.id, ip: [0; 5], tcp: [0; 8], tcp_len: 0 };
    let skb = context.skb.skb.cast();
    // What the filter sees begins with the TCP header.
    let tcp = event.tcp.as_mut_ptr();
    // SAFETY: the buffer has as many bytes.
    if unsafe { bpf_skb_load_bytes(skb, 0, tcp.cast(), TCP) } != 0 {
        return None;
    }
    // SAFETY: the bytes were just written.
    let (offset, flags) =
        unsafe { (tcp.cast::<u8>().add(12).read(), tcp.cast::<u8>().add(13).read()) };
    if flags & (SYN | ACK) != SYN {
        return None;
    }
    let length = u64::from(offset >> 4) * 4;
    // Read anew, or LLVM would know the length's bounds and leave out what tells them to the
    // verifier.
    // SAFETY: a variable of this function.
    let length = unsafe { core::ptr::read_volatile(&raw const length) } as u32 & TCP_LENGTHS;
    if length < TCP {
        return None;
    }
    // SAFETY: the buffer has 64 bytes.
    if unsafe { bpf_skb_load_bytes(skb, 0, tcp.cast(), length) } != 0 {
        return None;
    }
    event.tcp_len = u64::from(length);
    let ip = event.ip.as_mut_ptr();
    let network = |length: u32| {
        // SAFETY: the buffer has 40 bytes.
        unsafe { bpf_skb_load_bytes_relative(skb, 0, ip.cast(), length, BPF_HDR_START_NET) }
    };
    // SAFETY: the bytes were just written, if the first call succeeded.
    if network(IPV4) != 0 || (unsafe { ip.cast::<u8>().read() } >> 4 != 4 && network(IPV6) != 0) {
        return None;
    }
    maps::ask(&event);
    Some(())
}
