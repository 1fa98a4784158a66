//! Addresses as both sides compare them: 16 bytes, IPv4 mapped into IPv6 (RFC 4291, section
//! 2.5.5.2).

/// An IP address in 16 bytes, as four words whose *memory* is in network byte order.
///
/// Words rather than bytes, because that is how the kernel's contexts hand addresses to a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u32; 4]);

/// The third word of every IPv4-mapped address: `::ffff:0:0/96`.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `::`, which stands for "no address of this family" in map values.
    pub const NONE: Self = Self([0; 4]);
    /// The length of a prefix that contains a single address.
    pub const BITS: u32 = 128;
    /// `::1`.
    pub const LOCALHOST_V6: Self = Self([0, 0, 0, 1_u32.to_be()]);

    /// An IPv4 address from the word a context holds (memory in network order).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The IPv4 address as the word a context holds; meaningless unless [`Addr::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// Whether this is `::`, in map values "none".
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }

    /// Whether a connection to this address stays inside the network namespace without leaving an
    /// interface. This holds for 127.0.0.0/8, `::1`, and the unspecified addresses, which Linux
    /// takes for the local host when they are dialled.
    #[inline(always)]
    pub const fn is_loopback_or_unspecified(&self) -> bool {
        if self.is_v4() {
            let word = u32::from_be(self.0[3]);
            word == 0 || word >> 24 == 127
        } else {
            self.0[0] == 0
                && self.0[1] == 0
                && self.0[2] == 0
                && (self.0[3] == 0 || self.0[3] == 1_u32.to_be())
        }
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddrPort {
    /// The address.
    pub addr: Addr,
    /// The port, in host byte order.
    pub port: u16,
    /// Always zero: map keys are compared byte by byte.
    pub zero: u16,
}

impl AddrPort {
    /// An endpoint from its parts.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port, zero: 0 }
    }
}

const _: () = assert!(size_of::<AddrPort>() == 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr {
        Addr::from_v4_word(u32::from_ne_bytes([a, b, c, d]))
    }

    #[test]
    fn an_ipv4_address_is_mapped_in_memory() {
        let bytes: [u8; 16] =
            v4(10, 244, 0, 7).0.map(u32::to_ne_bytes).concat().try_into().unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 0, 7]);
    }

    #[test]
    fn loopback_is_all_of_127_and_what_linux_takes_for_it() {
        assert!(v4(127, 0, 0, 1).is_loopback_or_unspecified());
        assert!(v4(127, 255, 0, 1).is_loopback_or_unspecified());
        assert!(v4(0, 0, 0, 0).is_loopback_or_unspecified());
        assert!(Addr::LOCALHOST_V6.is_loopback_or_unspecified());
        assert!(Addr::NONE.is_loopback_or_unspecified());
        assert!(!v4(10, 0, 0, 127).is_loopback_or_unspecified());
        assert!(!Addr([1, 0, 0, 1_u32.to_be()]).is_loopback_or_unspecified());
    }
}
