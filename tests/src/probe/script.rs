//! A connection's story, told by a seed: how much each side sends, in which order, and how it ends.
//! Both sides know it from the seed, and what either sees must be the same with and without the
//! mesh.

use super::Noise;

/// The largest number of bytes one side sends.
const LARGEST: u64 = 1 << 20;

/// Sizes at which something is different: nothing, one byte, around a TLS record, around a buffer.
const EDGES: [u64; 8] = [0, 1, 16_382, 16_383, 16_384, 16_385, 65_535, 65_536];

/// The story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Bytes from the client.
    pub to_server: u64,
    /// Bytes from the server.
    pub to_client: u64,
    /// Which side may send when.
    pub order: Order,
    /// How it ends.
    pub ending: Ending,
}

/// Which side may send when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Both at once.
    Together,
    /// The server begins when it has read all from the client (and, with FINs, the client's end).
    ClientFirst,
    /// The other way round: a banner.
    ServerFirst,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Each side ends its direction when it has sent all; the other direction goes on.
    Fins,
    /// The server says that it has read all, then the client resets.
    ClientResets,
    /// The client says that it has read all, then the server resets.
    ServerResets,
}

impl Script {
    /// The story of this seed.
    pub fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let mut size = || match noise.next_u64() % 4 {
            0 => EDGES[(noise.next_u64() % 8) as usize],
            // As often between 100 and 200 as between 100,000 and 200,000.
            _ => noise.next_u64() % (LARGEST >> (noise.next_u64() % 20)),
        };
        let (to_server, to_client) = (size(), size());
        let order = match noise.next_u64() % 3 {
            0 => Order::Together,
            1 => Order::ClientFirst,
            _ => Order::ServerFirst,
        };
        let ending = match noise.next_u64() % 4 {
            0 => Ending::ClientResets,
            1 => Ending::ServerResets,
            _ => Ending::Fins,
        };
        Self { to_server, to_client, order, ending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_seeds_tell_every_kind_of_story() {
        let scripts: Vec<Script> = (0..200).map(Script::new).collect();
        for order in [Order::Together, Order::ClientFirst, Order::ServerFirst] {
            for ending in [Ending::Fins, Ending::ClientResets, Ending::ServerResets] {
                assert!(
                    scripts.iter().any(|s| s.order == order && s.ending == ending),
                    "{order:?} {ending:?}"
                );
            }
        }
        assert!(
            scripts.iter().any(|s| s.to_server == 0) && scripts.iter().any(|s| s.to_client == 0)
        );
        assert!(scripts.iter().any(|s| s.to_server > 500_000), "none is large");
    }
}
