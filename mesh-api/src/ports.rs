//! A set of TCP ports: those that a pod keeps out of the mesh (`nodemesh.dev/exclude-ports`), or on
//! which it takes plaintext (`nodemesh.dev/permissive-ports`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Most ranges after merging: each costs work in the kernel's table.
pub const MAX_RANGES: usize = 64;
/// Most ports in all: the kernel's table has one entry per pod address and such port.
pub const MAX_PORTS: u32 = 1024;

/// Ports as sorted ranges that neither touch nor overlap, so that equal sets compare equal. Written
/// as `6379,8000-8010`. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet(Option<Arc<[(u16, u16)]>>);

/// Why a text is not a set of ports. Fault: the annotation's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Neither a number nor `first-last`.
    #[error("{0:?} is neither a port (1 to 65535) nor a range such as 8000-8010")]
    NotAPort(String),
    /// `8010-8000`.
    #[error("the range {0:?} ends before it begins")]
    Backwards(String),
    /// Beyond [`MAX_RANGES`].
    #[error("{0} ranges of ports are more than the {MAX_RANGES} that are possible")]
    TooManyRanges(usize),
    /// Beyond [`MAX_PORTS`].
    #[error("{0} ports are more than the {MAX_PORTS} that are possible")]
    TooManyPorts(u32),
}

impl PortSet {
    /// Whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        let ranges = self.ranges();
        let after = ranges.partition_point(|(first, _)| *first <= port);
        after.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|(_, last)| port <= *last)
    }

    /// Every port, ascending; at most [`MAX_PORTS`].
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges().iter().flat_map(|(first, last)| *first..=*last)
    }

    /// The ranges, first and last port included; at most [`MAX_RANGES`].
    pub fn ranges(&self) -> &[(u16, u16)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// The ports of this set for which `stays` is true. The empty set, if they need more ranges
    /// than are possible.
    #[must_use]
    pub fn only(&self, stays: impl Fn(u16) -> bool) -> Self {
        Self::of(self.iter().filter(|port| stays(*port)))
    }

    /// These ports. The empty set, if they need more ranges than are possible.
    pub fn of(ports: impl Iterator<Item = u16>) -> Self {
        Self::from_ranges(ports.map(|port| (port, port)).collect()).unwrap_or_default()
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges().is_empty()
    }

    fn from_ranges(mut ranges: Vec<(u16, u16)>) -> Result<Self, PortSetError> {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                // Neighbours (…-80, 81-…) become one range, or equal sets would differ.
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        if merged.len() > MAX_RANGES {
            return Err(PortSetError::TooManyRanges(merged.len()));
        }
        let ports = merged.iter().map(|(first, last)| u32::from(last - first) + 1).sum();
        if ports > MAX_PORTS {
            return Err(PortSetError::TooManyPorts(ports));
        }
        Ok(Self((!merged.is_empty()).then(|| merged.into())))
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    /// Blanks around parts and empty parts are allowed (`"80, 443,"`). The empty text is the empty
    /// set, with which a pod can undo what its namespace excludes.
    fn from_str(text: &str) -> Result<Self, PortSetError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self::from_ranges(parts.map(parse_range).collect::<Result<_, _>>()?)
    }
}

fn parse_range(part: &str) -> Result<(u16, u16), PortSetError> {
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit()); // u16::from_str takes "+80"
        text.parse::<u16>().ok().filter(|port| digits && *port != 0)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    match (number(first.trim()), number(last.trim())) {
        (Some(first), Some(last)) if first > last => Err(PortSetError::Backwards(part.to_owned())),
        (Some(first), Some(last)) => Ok((first, last)),
        _ => Err(PortSetError::NotAPort(part.to_owned())),
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.ranges().iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for PortSet {
    type Error = PortSetError;
    fn try_from(text: String) -> Result<Self, PortSetError> {
        text.parse()
    }
}

impl From<PortSet> for String {
    fn from(ports: PortSet) -> Self {
        ports.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<PortSet>().unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_set_of_ports_says_why() {
        let neither = "is neither a port (1 to 65535) nor a range such as 8000-8010";
        for bad in ["x", "0", "65536", "+80", "80-", "-80", "80-90-100", "80;90"] {
            assert_eq!(refused(bad), format!("{bad:?} {neither}"));
        }
        assert_eq!(refused("80, 90-85"), "the range \"90-85\" ends before it begins");
        assert_eq!(refused("1-1025"), "1025 ports are more than the 1024 that are possible");
        let many: Vec<_> = (0..65).map(|i| (i * 2 + 1).to_string()).collect();
        let message = "65 ranges of ports are more than the 64 that are possible";
        assert_eq!(refused(&many.join(",")), message);
    }

    #[test]
    fn blanks_repeats_and_neighbours_do_not_matter() {
        let set: PortSet = " 8001-8010 ,6379,8000, 6379,".parse().unwrap();
        assert_eq!(set.to_string(), "6379,8000-8010");
        assert!("".parse::<PortSet>().unwrap().is_empty());
        assert_eq!("".parse::<PortSet>().unwrap(), PortSet::default());
        assert_eq!("65535".parse::<PortSet>().unwrap().iter().collect::<Vec<_>>(), [65535]);
    }

    proptest! {
        #[test]
        fn a_port_set_is_the_set_of_its_ports(
            ranges in prop::collection::vec((1u16..=65500, 0u16..=12), 0..40),
            probe in 1u16..=65535,
        ) {
            let text: Vec<_> =
                ranges.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect();
            let expected: BTreeSet<u16> =
                ranges.iter().flat_map(|(first, more)| *first..=first + more).collect();
            let set: PortSet = text.join(",").parse().unwrap();

            prop_assert!(set.iter().eq(expected.iter().copied()));
            prop_assert_eq!(set.contains(probe), expected.contains(&probe));
            prop_assert!(expected.iter().all(|port| set.contains(*port)));
            prop_assert_eq!(&set.to_string().parse::<PortSet>().unwrap(), &set);
            let apart = set.ranges().windows(2).all(|w| w[0].1 + 1 < w[1].0);
            prop_assert!(apart, "ranges touch: {}", set);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9, -]{0,40}|.{0,20}") {
            if let Ok(set) = text.parse::<PortSet>() {
                prop_assert!(set.iter().count() <= 1024);
            }
        }
    }
}
