//! The bytes of a log segment: frames (one a synced write) that hold records. Pure encoding and judgement of damage; no files.
//!
//! ```text
//! frame:  magic 4 | payload length 4 | sequence 8 | header crc 4 | payload crc 4 | payload … | end 0xA5
//! record: kind 1 | length 4 | bytes …
//! ```
//!
//! A frame is written only after the one before it was synced, into space that reads as zeros. So a write that was cut short is
//! the last frame, and it shows: a killed process leaves a beginning and then zeros, so that at least the end byte is missing;
//! a lost machine leaves some disk sector zero. Anything else that does not add up is damage to what was acknowledged.

use super::Identity;

/// Bytes before a frame's payload.
pub const HEADER: usize = 24;
const MAGIC: u32 = 0x5650_4C31;
const END: u8 = 0xA5;
const SECTOR: usize = 512;

/// One record of a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Segment number (u64), member id (u64), cluster (UTF-8): first record of a segment.
    Identity = 1,
    /// Log base when the segment began: index, term (u64 each).
    Base = 2,
    /// An encoded `HardState`.
    HardState = 3,
    /// An encoded `Entry`; replaces entries at or after its index.
    Entry = 4,
    /// Everything up to index, term is in the snapshot and dropped.
    Compact = 5,
    /// All entries dropped: the log continues after index, term.
    Reset = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Identity, Kind::Base, Kind::HardState, Kind::Entry, Kind::Compact, Kind::Reset].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Builds one frame.
pub struct FrameBuilder(Vec<u8>);

impl Default for FrameBuilder {
    fn default() -> Self {
        FrameBuilder(vec![0; HEADER])
    }
}

impl FrameBuilder {
    /// Adds a record; `bytes` is far below 4 GiB (messages are bounded to megabytes).
    pub fn record(&mut self, kind: Kind, bytes: &[u8]) -> &mut Self {
        self.0.push(kind as u8);
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a record of two numbers.
    pub fn pair(&mut self, kind: Kind, index: u64, term: u64) -> &mut Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        bytes[8..].copy_from_slice(&term.to_le_bytes());
        self.record(kind, &bytes)
    }

    /// Length of the finished frame, bytes.
    pub fn finish_length(&self) -> usize {
        self.0.len() + 1
    }

    /// The finished frame with its place in the order of writes.
    pub fn finish(mut self, sequence: u64) -> Vec<u8> {
        let payload_crc = crc32fast::hash(&self.0[HEADER..]);
        let length = (self.0.len() - HEADER) as u32;
        self.0[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.0[4..8].copy_from_slice(&length.to_le_bytes());
        self.0[8..16].copy_from_slice(&sequence.to_le_bytes());
        let header_crc = crc32fast::hash(&self.0[..16]);
        self.0[16..20].copy_from_slice(&header_crc.to_le_bytes());
        self.0[20..24].copy_from_slice(&payload_crc.to_le_bytes());
        self.0.push(END);
        self.0
    }
}

/// What lies at an offset of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole frame; the next one begins at `next`.
    Frame { sequence: u64, payload: &'a [u8], next: usize },
    /// Only zeros from here on.
    End,
    /// A write that was cut short (never acknowledged) and nothing after it.
    Torn,
    /// Synced bytes are not what was written.
    Damaged(String),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// The little-endian number at `at`, 0 when out of range.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// What a [`Kind::Identity`] record of at least 16 bytes says.
pub fn identity(record: &[u8]) -> Identity {
    Identity { cluster: String::from_utf8_lossy(&record[16..]).into_owned(), member: u64_at(record, 8) }
}

/// A whole frame at `at`, if its checksums hold.
fn whole(segment: &[u8], at: usize) -> Option<(u64, &[u8], usize)> {
    let header = segment.get(at..at + HEADER)?;
    if u32_at(header, 0) != MAGIC || u32_at(header, 16) != crc32fast::hash(&header[..16]) {
        return None;
    }
    let end = at + HEADER + u32_at(header, 4) as usize;
    let payload = segment.get(at + HEADER..end)?;
    let intact = u32_at(header, 20) == crc32fast::hash(payload) && segment.get(end) == Some(&END);
    intact.then(|| (u64_at(header, 8), payload, end + 1))
}

/// Reads the frame at `at`, which must have number `sequence`; `segment` is the whole file.
pub fn read(segment: &[u8], at: usize, sequence: u64) -> Found<'_> {
    if let Some((found, payload, next)) = whole(segment, at) {
        if found != sequence {
            return Found::Damaged(format!("frame {found} where {sequence} belongs"));
        }
        return Found::Frame { sequence, payload, next };
    }
    let rest = segment.get(at..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return Found::End;
    }
    // A later frame exists only if this one was synced whole.
    if let Some(later) = (at + 1..segment.len().saturating_sub(HEADER))
        .find(|offset| u32_at(segment, *offset) == MAGIC && whole(segment, *offset).is_some_and(|f| f.0 > sequence && f.0 < sequence + 1_000_000))
    {
        return Found::Damaged(format!("checksum mismatch, and a later frame follows at byte {later}"));
    }
    let header = rest.get(..HEADER).unwrap_or(rest);
    let known = header.len() == HEADER && u32_at(header, 16) == crc32fast::hash(&header[..16]);
    // Where the frame must end, or, its header being cut itself, what a whole frame would at least have beyond.
    let (length, begun) = if known {
        let length = HEADER + u32_at(header, 4) as usize + 1;
        (length, rest.get(length - 1) == Some(&0))
    } else {
        (header.len(), rest[header.len()..].iter().all(|byte| *byte == 0))
    };
    if begun || zero_sector(segment, at, (at + length).min(segment.len())) {
        Found::Torn
    } else {
        Found::Damaged("checksum mismatch in a frame that was written whole".to_owned())
    }
}

/// Whether some disk sector's share of `from..to` is all zeros, as a write cut short leaves it.
fn zero_sector(segment: &[u8], from: usize, to: usize) -> bool {
    let mut start = from;
    while start < to {
        let end = to.min((start / SECTOR + 1) * SECTOR);
        if segment[start..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        start = end;
    }
    false
}

/// The records of a payload whose checksum held; `Err` names what a newer or broken writer left.
pub fn records(mut payload: &[u8]) -> Result<Vec<(Kind, &[u8])>, String> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let kind = Kind::from_byte(payload[0]).ok_or_else(|| format!("unknown record {}", payload[0]))?;
        let end = 5 + u32_at(payload, 1) as usize;
        let bytes = payload.get(5..end).ok_or_else(|| "record longer than its frame".to_owned())?;
        records.push((kind, bytes));
        payload = &payload[end..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(frames: &[(u64, usize)]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for (sequence, size) in frames {
            let mut frame = FrameBuilder::default();
            frame.record(Kind::Entry, &vec![7; *size]);
            starts.push(bytes.len());
            bytes.extend(frame.finish(*sequence));
        }
        bytes.resize(bytes.len() + 4096, 0);
        (bytes, starts)
    }

    #[test]
    fn frames_read_back_and_end_in_zeros() {
        let (bytes, starts) = segment(&[(4, 100), (5, 3000)]);
        let Found::Frame { next, payload, .. } = read(&bytes, 0, 4) else { panic!("no frame") };
        assert_eq!(next, starts[1]);
        assert_eq!(records(payload).unwrap(), vec![(Kind::Entry, &[7u8; 100][..])]);
        let Found::Frame { next, .. } = read(&bytes, next, 5) else { panic!("no frame") };
        assert_eq!(read(&bytes, next, 6), Found::End);
    }

    #[test]
    fn every_flipped_bit_is_noticed_wherever_it_is() {
        let (bytes, starts) = segment(&[(1, 40), (2, 40)]);
        for at in 0..bytes.len() - 4096 {
            for bit in [0, 3, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let (start, sequence) = if at < starts[1] { (0, 1) } else { (starts[1], 2) };
                let found = read(&flipped, start, sequence);
                assert!(matches!(found, Found::Damaged(_)), "byte {at} bit {bit}: {found:?}");
            }
        }
    }

    #[test]
    fn a_last_frame_cut_at_any_byte_is_torn() {
        let (bytes, starts) = segment(&[(1, 40), (2, 300)]);
        for cut in starts[1] + 1..bytes.len() - 4096 {
            let mut cut_off = bytes.clone();
            cut_off[cut..].fill(0);
            assert_eq!(read(&cut_off, starts[1], 2), Found::Torn, "prefix up to {cut}");
            assert!(matches!(read(&cut_off, 0, 1), Found::Frame { .. }), "the frame before it stays");
        }
    }

    #[test]
    fn a_frame_that_others_follow_is_never_taken_for_a_cut_one() {
        let (bytes, starts) = segment(&[(1, 40), (2, 300), (3, 40)]);
        for cut in starts[1] + 1..starts[2] {
            let mut holed = bytes.clone();
            holed[cut..starts[2]].fill(0);
            assert!(matches!(read(&holed, starts[1], 2), Found::Damaged(_)), "hole from {cut}");
        }
    }

    #[test]
    fn a_last_frame_cut_at_any_sector_is_torn() {
        let (bytes, starts) = segment(&[(1, 700), (2, 3000)]);
        let end = bytes.len() - 4096;
        for cut in (starts[1] + 1..end).filter(|at| at % SECTOR == 0) {
            let mut cut_off = bytes.clone();
            cut_off[cut..].fill(0);
            assert_eq!(read(&cut_off, starts[1], 2), Found::Torn, "prefix up to {cut}");
            // Sectors may reach the disk in any order: a hole in front is a torn write too.
            let mut hole = bytes.clone();
            hole[starts[1]..cut].fill(0);
            assert_eq!(read(&hole, starts[1], 2), Found::Torn, "hole up to {cut}");
        }
    }
}
