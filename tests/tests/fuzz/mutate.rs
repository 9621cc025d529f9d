//! From valid inputs to invalid ones, the same from the same seed: bits, bytes, lengths, pieces of other inputs, repetition, cuts.

/// Longest input, bytes.
const LONGEST: usize = 8192;
/// Numbers at which lengths and signs go wrong.
const EDGES: [u8; 8] = [0, 1, 0x7F, 0x80, 0x81, 0xFE, 0xFF, b'\n'];
/// Text that parsers care about.
const WORDS: [&[u8]; 16] =
    [b"{", b"}", b"[", b"]", b"\"", b"'", b": ", b"- ", b"null", b"-1", b"18446744073709551616", b"1e999", b"%", b"&a *a", b"{{", b"\xF0\x9F\x92\xA3"];

/// One input's source of chance (SplitMix64).
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; 0 when that is 0.
    fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    /// Noise one time in sixteen, else some input of the corpus after a few changes.
    pub fn input(mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if self.below(16) == 0 || corpus.is_empty() {
            let length = self.below(300);
            return (0..length).map(|_| self.next() as u8).collect();
        }
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..1 + self.below(6) {
            self.change(&mut input, corpus);
            input.truncate(LONGEST);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.next() as u8,
            2 if !input.is_empty() => input[at] = EDGES[self.below(EDGES.len())],
            3 => input.truncate(at),
            4 => {
                let end = (at + self.below(16)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let word = WORDS[self.below(WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            6 => {
                let end = (at + 1 + self.below(32)).min(input.len());
                let piece = input[at..end].to_vec();
                for _ in 0..1 + self.below(40) {
                    input.splice(at..at, piece.iter().copied());
                }
            }
            7 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len());
                let piece = other[from..(from + self.below(64)).min(other.len())].to_vec();
                let end = (at + self.below(piece.len() + 1)).min(input.len());
                input.splice(at..end, piece);
            }
            _ if input.len() >= 4 => {
                let at = self.below(input.len() - 3);
                input[at..at + 4].copy_from_slice(&(self.next() as u32 >> self.below(32)).to_be_bytes());
            }
            _ => {}
        }
    }
}
