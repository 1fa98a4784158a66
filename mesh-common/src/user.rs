//! The agent's side: map types as aya reads and writes them.

use crate::{
    addr::{Addr, AddrPort},
    maps::{
        Answered, DestinationKey, DialKey, EnrolledPod, FlowKey, ListenerKey, LocalEntry, Named,
        Pending, QuestionEvent, RefusalEvent, Share, SteeredPorts, VerdictCounts,
    },
};

macro_rules! pods {
    ($($name:ty),+) => {$(
        #[expect(unsafe_code, reason = "aya wants the promise that the type is plain bytes")]
        // SAFETY: `repr(C)`, integers only, every bit pattern valid, no padding (sizes asserted in
        // maps.rs).
        unsafe impl aya::Pod for $name {}
    )+};
}
pods!(
    Addr,
    AddrPort,
    FlowKey,
    Named,
    Pending,
    SteeredPorts,
    EnrolledPod,
    LocalEntry,
    DialKey,
    Answered,
    DestinationKey,
    ListenerKey,
    Share,
    VerdictCounts
);

impl RefusalEvent {
    /// The event in a ring buffer record, or `None` if the record is of another size.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let long = |at: usize| -> Option<u64> {
            Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let endpoint = |at: usize| -> Option<AddrPort> {
            let addr = Addr([word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?]);
            let port = u16::from_ne_bytes(bytes.get(at + 16..at + 18)?.try_into().ok()?);
            Some(AddrPort::new(addr, port))
        };
        Some(Self {
            boot_ns: long(0)?,
            netns: long(8)?,
            client: endpoint(16)?,
            server: endpoint(36)?,
            verdict: word(56)?,
            zero: 0,
        })
    }
}

impl QuestionEvent {
    /// The event in a ring buffer record, or `None` if the record is of another size.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let long = |at: usize| -> Option<u64> {
            Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        Some(Self {
            netns: long(0)?,
            id: long(8)?,
            ip: [long(16)?, long(24)?, long(32)?, long(40)?, long(48)?],
            tcp: [
                long(56)?,
                long(64)?,
                long(72)?,
                long(80)?,
                long(88)?,
                long(96)?,
                long(104)?,
                long(112)?,
            ],
            tcp_len: long(120)?,
        })
    }
}
