//! Ranges of IP addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range: all addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// Without host bits, never IPv4-mapped.
    first: IpAddr,
    length: u8,
}

impl Cidr {
    /// Every address of both families.
    pub const ALL: Self = Self { first: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

    /// Parses `10.244.1.0/24`. Host bits are cut off, as Kubernetes does.
    ///
    /// Errors: one sentence that quotes the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            let address = address.parse::<IpAddr>().ok()?;
            let length = length.parse::<u8>().ok()?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            (length <= bits).then(|| Self::around(address, length))
        });
        parsed.ok_or_else(|| format!("{text:?} is not a range of IP addresses"))
    }

    /// The range of this prefix length around an address. A prefix longer than the address counts
    /// as the whole address.
    pub(super) fn around(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Self { first: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), length }
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Self { first: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), length }
            }
        }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        *self == Self::ALL
            || (self.first.is_ipv4() == address.is_ipv4()
                && Self::around(address, self.length) == *self)
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// How many leading bits all its addresses share, counted in 128-bit form: IPv4 as IPv4-mapped.
    pub fn length_of_128(&self) -> u8 {
        if self.first.is_ipv4() { self.length + 96 } else { self.length }
    }

    /// Whether it is IPv4, and how many bits its addresses have in common.
    pub(super) fn shape(&self) -> (bool, u8) {
        (self.first.is_ipv4(), self.length)
    }
}

/// Ranges with a quick search for an address, however many ranges there are.
pub struct Cover<'a> {
    ranges: &'a BTreeSet<Cidr>,
    /// Families and lengths that occur.
    shapes: BTreeSet<(bool, u8)>,
}

impl<'a> Cover<'a> {
    /// Of these ranges.
    pub fn of(ranges: &'a BTreeSet<Cidr>) -> Self {
        Self { ranges, shapes: ranges.iter().map(Cidr::shape).collect() }
    }

    /// Whether an address lies in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let around = |length: u8| self.ranges.contains(&Cidr::around(address, length));
        self.ranges.contains(&Cidr::ALL)
            || self.shapes.iter().any(|(v4, length)| *v4 == address.is_ipv4() && around(*length))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_an_address_and_a_length_that_fits_it() {
        for (text, shown, length) in [
            ("10.244.1.0/24", "10.244.1.0/24", 120),
            ("10.244.1.7/24", "10.244.1.0/24", 120),
            ("0.0.0.0/0", "0.0.0.0/0", 96),
            ("10.0.0.1/32", "10.0.0.1/32", 128),
            ("fd00:244:1::9/64", "fd00:244:1::/64", 64),
            ("::/0", "::/0", 0),
        ] {
            let range = Cidr::parse(text).unwrap();
            assert_eq!((range.to_string().as_str(), range.length_of_128()), (shown, length));
        }
        assert_eq!(Cidr::parse("::/0").unwrap(), Cidr::ALL);
        let holds = |range: &str, address: &str| {
            Cidr::parse(range).unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("10.244.1.0/24", "10.244.1.255") && holds("fd00::/64", "fd00::9"));
        assert!(!holds("10.244.1.0/24", "10.244.2.0") && !holds("0.0.0.0/0", "fd00::9"));
        assert!(!holds("fd00::/64", "10.244.1.1") && holds("::/0", "10.244.1.1"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "/8", "10.0.0.0/-1", ""] {
            assert!(Cidr::parse(bad).is_err(), "{bad:?}");
        }
    }
}
