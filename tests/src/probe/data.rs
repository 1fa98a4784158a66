//! Bytes that look random, made and compared so fast that a throughput test measures neither.

/// An endless sequence of bytes, given by its seed (splitmix64, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Noise {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Noise {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, word: [0; 8], used: 8 }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let kept = buffer.len().min(8 - self.used);
        let (head, buffer) = buffer.split_at_mut(kept);
        head.copy_from_slice(&self.word[self.used..self.used + kept]);
        self.used += kept;
        let mut words = buffer.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        let rest = words.into_remainder();
        if !rest.is_empty() {
            self.word = self.next_u64().to_le_bytes();
            self.used = rest.len();
            rest.copy_from_slice(&self.word[..rest.len()]);
        }
    }
}

/// A hash of all bytes, however they were cut into reads. Against accidents, not against enemies.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    hash: u64,
    word: [u8; 8],
    held: usize,
    /// How many bytes it has seen.
    pub bytes: u64,
}

impl Digest {
    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.held > 0 {
            let take = bytes.len().min(8 - self.held);
            self.word[self.held..self.held + take].copy_from_slice(&bytes[..take]);
            self.held += take;
            bytes = &bytes[take..];
            if self.held < 8 {
                return;
            }
            self.hash = mix(self.hash, self.word);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.hash = words.iter().fold(self.hash, |hash, word| mix(hash, *word));
        self.word = [0; 8];
        self.word[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    /// The hash in hexadecimal.
    pub fn hex(&self) -> String {
        let mut word = self.word;
        word[self.held..].fill(0);
        format!("{:016x}", mix(mix(self.hash, word), self.bytes.to_le_bytes()))
    }
}

fn mix(hash: u64, word: [u8; 8]) -> u64 {
    let hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_depends_on_how_the_bytes_are_cut() {
        let mut whole = vec![0; 1000];
        Noise::new(7).fill(&mut whole);
        let mut once = Digest::default();
        once.update(&whole);
        for size in [1, 3, 8, 13, 999] {
            let (mut noise, mut digest, mut cut) =
                (Noise::new(7), Digest::default(), vec![0; 1000]);
            for chunk in cut.chunks_mut(size) {
                noise.fill(chunk);
                digest.update(chunk);
            }
            assert_eq!(cut, whole, "in pieces of {size}");
            assert_eq!(digest.hex(), once.hex(), "in pieces of {size}");
        }
    }

    #[test]
    fn a_lost_or_changed_byte_shows() {
        let hex = |bytes: &[u8]| {
            let mut digest = Digest::default();
            digest.update(bytes);
            digest.hex()
        };
        let bytes = *b"0123456789";
        assert_ne!(hex(&bytes), hex(&bytes[1..]));
        assert_ne!(hex(&bytes), hex(&bytes[..9]));
        assert_ne!(hex(&bytes), hex(b"0123456798"));
        assert_ne!(hex(b"\0"), hex(b""));
    }
}
