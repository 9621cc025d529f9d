//! Cutting without re-encoding: where to cut, one pass of ffmpeg, and the proof that nothing was lost.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use vp_jobs::{
    SegmentId,
    plan::{Audio, AudioSegment, Segment},
};

use crate::{
    error::{IngestError, file},
    media::{self, INPUT, arguments},
    probe::{Packet, Source},
};

/// Largest value of a Kafka record, bytes.
pub const PART_BYTES: u64 = 1_000_000;
/// Groups of pictures are put together until a segment lasts this long, seconds.
const SEGMENT_S: f64 = 2.0;
/// A segment that has this many bytes is not made bigger by another group.
const SEGMENT_BYTES: u64 = 8 << 20;
/// No more segments than this: beyond, segments get longer.
const MOST_SEGMENTS: f64 = 5_000.0;

/// A segment on the local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which.
    pub segment: SegmentId,
    /// Its file.
    pub path: PathBuf,
    /// SHA-256, hex.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
    /// Number of records that carry it.
    pub parts: u32,
}

/// Everything that was cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The video's segments for the plan.
    pub segments: Vec<Segment>,
    /// The audio for the plan.
    pub audio: Option<Audio>,
    /// The files, video first.
    pub pieces: Vec<Piece>,
}

/// First packets of the segments after the first, by packet number in decoding order.
pub fn cut_points(packets: &[Packet], unit_s: f64, duration_s: f64) -> Vec<usize> {
    let target_s = SEGMENT_S.max(duration_s / MOST_SEGMENTS);
    let mut points = Vec::new();
    let (mut first_pts, mut bytes) = (packets.first().map_or(0, |packet| packet.pts), 0);
    for (number, packet) in packets.iter().enumerate() {
        // Exact below 2^53 units.
        let length_s = (packet.pts - first_pts) as f64 * unit_s;
        if number > 0 && packet.entry && (length_s + unit_s / 2.0 >= target_s || bytes >= SEGMENT_BYTES) {
            points.push(number);
            (first_pts, bytes) = (packet.pts, 0);
        }
        bytes += packet.bytes;
    }
    points
}

fn parts(bytes: u64, reference_bytes: u64) -> u32 {
    if bytes > reference_bytes { 1 } else { u32::try_from(bytes.div_ceil(PART_BYTES)).unwrap_or(u32::MAX) }
}

async fn piece(segment: SegmentId, path: PathBuf, reference_bytes: u64) -> Result<Piece, IngestError> {
    let mut reader = tokio::fs::File::open(&path).await.map_err(file("open a segment"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer).await.map_err(file("read a segment"))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(Piece { segment, path, sha256: hex::encode(hash.finalize()), bytes, parts: parts(bytes, reference_bytes) })
}

/// Cuts the file `name` in `folder` into segment files beside it.
///
/// # Errors
/// `BadInput` when the pieces do not add up to the whole: the file cannot be cut and is refused rather than damaged.
pub async fn cut(folder: &Path, name: &str, source: &Source, reference_bytes: u64) -> Result<Cut, IngestError> {
    let points = cut_points(&source.packets, source.unit_s, source.video.duration_s);
    let numbers: Vec<String> = points.iter().map(ToString::to_string).collect();
    let (map, list) = (format!("0:{}", source.stream), numbers.join(","));
    let mut command = arguments(["-nostdin", "-y", "-copyts"].into_iter().chain(INPUT.iter().copied()).chain(["-i", name]));
    let copy = ["-c", "copy", "-map_metadata", "-1", "-map_chapters", "-1", "-avoid_negative_ts", "disabled", "-fflags", "+bitexact", "-flags", "+bitexact"];
    command.extend(arguments(["-map", &map].into_iter().chain(copy)));
    if points.is_empty() {
        command.extend(arguments(["-f", "nut", "v00000.nut"]));
    } else {
        let options = [
            "-f",
            "segment",
            "-segment_format",
            "nut",
            "-segment_frames",
            &list,
            "-segment_format_options",
            "fflags=+bitexact:avoid_negative_ts=disabled",
            "v%05d.nut",
        ];
        command.extend(arguments(options));
    }
    if let Some(audio) = &source.audio {
        let (map, shift) = (format!("0:{}", audio.stream), audio.shift_s.to_string());
        command.extend(arguments(["-map", &map].into_iter().chain(copy).chain(["-output_ts_offset", &shift, "-f", "nut", "audio.nut"])));
    }
    let said = media::run("ffmpeg", folder, &command).await?;
    if !said.ok {
        tracing::info!(stderr = %said.err, "ffmpeg refused to cut");
        return Err(IngestError::BadInput("The video cannot be cut without re-encoding: its codec or its timestamps do not allow it.".to_owned()));
    }
    let mut pieces = Vec::new();
    let mut segments = Vec::new();
    let bounds: Vec<usize> = std::iter::once(0).chain(points).chain([source.packets.len()]).collect();
    for (index, range) in bounds.windows(2).enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let path = folder.join(format!("v{index:05}.nut"));
        let expected = &source.packets[range[0]..range[1]];
        verify(folder, &path, index, expected).await?;
        let piece = piece(SegmentId::Video(index), path, reference_bytes).await?;
        segments.push(Segment {
            index,
            sha256: piece.sha256.clone(),
            bytes: piece.bytes,
            parts: piece.parts,
            frames: expected.len() as u64,
            first_pts: expected.iter().map(|packet| packet.pts).min().unwrap_or_default(),
            last_pts: expected.iter().map(|packet| packet.pts).max().unwrap_or_default(),
            end_pts: source.end_pts,
        });
        pieces.push(piece);
    }
    for index in 1..segments.len() {
        segments[index - 1].end_pts = segments[index].first_pts;
    }
    let audio = match &source.audio {
        None => None,
        Some(stream) => {
            let piece = piece(SegmentId::Audio, folder.join("audio.nut"), reference_bytes).await?;
            let segment = AudioSegment { sha256: piece.sha256.clone(), bytes: piece.bytes, parts: piece.parts };
            pieces.push(piece);
            Some(Audio {
                codec: stream.codec.clone(),
                sample_rate: stream.sample_rate,
                channels: stream.channels,
                duration_s: stream.duration_s,
                start_s: stream.start_s,
                shift_s: stream.shift_s,
                segment,
            })
        }
    };
    Ok(Cut { segments, audio, pieces })
}

/// Reads a segment back: as many packets as expected, the first a key frame, and the sum of sizes the same.
async fn verify(folder: &Path, path: &Path, index: u32, expected: &[Packet]) -> Result<(), IngestError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let said = media::run("ffprobe", folder, &arguments(["-v", "error", "-show_entries", "packet=flags,size", "-of", "csv=p=0", name])).await?;
    let mut lines = said.out.lines().filter(|line| !line.trim().is_empty()).peekable();
    let begins_with_key = lines.peek().is_some_and(|line| line.contains('K')) || index == 0;
    let sizes: Vec<u64> = lines.filter_map(|line| line.split(',').next()?.parse().ok()).collect();
    if begins_with_key && sizes.iter().copied().eq(expected.iter().map(|packet| packet.bytes)) {
        return Ok(());
    }
    let found = sizes.len();
    tracing::info!(segment = index, found, expected = expected.len(), begins_with_key, "segment is not what was expected");
    Err(IngestError::BadInput(format!(
        "The video cannot be cut exactly: its part {index} holds {found} frames instead of {}. Exporting it again as MP4 usually helps.",
        expected.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(seconds: u32, entry_every: u32, bytes: u64) -> Vec<Packet> {
        (0..seconds * 10).map(|n| Packet { pts: i64::from(n), duration: 1, bytes, entry: n % entry_every == 0 }).collect()
    }

    #[test]
    fn short_groups_are_put_together_until_two_seconds() {
        assert_eq!(cut_points(&packets(6, 5, 1), 0.1, 6.0), [20, 40]);
    }

    #[test]
    fn a_long_group_is_a_segment_of_its_own() {
        assert_eq!(cut_points(&packets(9, 30, 1), 0.1, 9.0), [30, 60]);
    }

    #[test]
    fn big_groups_are_not_put_together() {
        assert_eq!(cut_points(&packets(2, 5, 2 << 20), 0.1, 2.0), [5, 10, 15]);
    }

    #[test]
    fn a_video_with_one_key_frame_is_one_segment() {
        assert!(cut_points(&packets(60, 10_000, 1), 0.1, 60.0).is_empty());
        assert!(cut_points(&packets(60, 10_000, 1)[..1], 0.1, 0.1).is_empty());
    }

    #[test]
    fn a_very_long_video_gets_longer_segments_instead_of_more() {
        let points = cut_points(&packets(30_000, 10, 1), 0.1, 30_000.0);
        assert!(points.len() <= 5_000, "{}", points.len());
    }

    #[test]
    fn a_segment_over_the_limit_travels_as_one_reference() {
        assert_eq!((parts(1_000_000, 5_000_000), parts(1_000_001, 5_000_000), parts(5_000_001, 5_000_000)), (1, 2, 1));
    }
}
