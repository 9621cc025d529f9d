//! What the upload is: streams, packets, and the frames at which it may be cut; refusals in a person's words.

use std::{collections::BTreeSet, path::Path};

use serde::Deserialize;
use vp_jobs::plan::Video;

use crate::{
    error::IngestError,
    media::{self, INPUT, arguments},
};

/// One video packet in decoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Presentation time, stream units.
    pub pts: i64,
    /// How long it is shown, stream units; 0: unknown.
    pub duration: i64,
    /// Size, bytes.
    pub bytes: u64,
    /// True when a decoder can begin here and needs nothing before it.
    pub entry: bool,
}

/// The audio stream.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioStream {
    /// Stream index in the file.
    pub stream: u32,
    /// Codec.
    pub codec: String,
    /// Samples a second.
    pub sample_rate: u32,
    /// Channels.
    pub channels: u32,
    /// When the first sample is heard, seconds.
    pub start_s: f64,
    /// Length of what is heard, seconds.
    pub duration_s: f64,
    /// Whole seconds to add so that no timestamp is negative.
    pub shift_s: u32,
}

/// All that is known of the upload.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Index of the video stream in the file.
    pub stream: u32,
    /// As it goes into the plan.
    pub video: Video,
    /// Seconds a unit of pts lasts.
    pub unit_s: f64,
    /// The video's packets in decoding order.
    pub packets: Vec<Packet>,
    /// Where the latest frame ends, stream units.
    pub end_pts: i64,
    /// The audio, if any.
    pub audio: Option<AudioStream>,
}

#[derive(Deserialize)]
struct Probed {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    format_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Stream {
    index: u32,
    codec_type: String,
    codec_name: Option<String>,
    width: u32,
    height: u32,
    pix_fmt: Option<String>,
    time_base: String,
    avg_frame_rate: String,
    r_frame_rate: String,
    start_time: Option<String>,
    duration: Option<String>,
    nb_frames: Option<String>,
    sample_rate: Option<String>,
    channels: u32,
    disposition: Disposition,
    side_data_list: Vec<SideData>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Disposition {
    attached_pic: u8,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SideData {
    rotation: Option<f64>,
}

fn bad<T>(sentence: impl Into<String>) -> Result<T, IngestError> {
    Err(IngestError::BadInput(sentence.into()))
}

fn ratio(text: &str) -> Option<(i64, i64)> {
    let (num, den) = text.split_once('/')?;
    let (num, den) = (num.parse().ok()?, den.parse().ok()?);
    (num > 0 && den > 0).then_some((num, den))
}

/// Looks at a file. `name` is the input's name inside `folder`.
///
/// # Errors
/// `BadInput` with a sentence when it is no usable video; `Tool` when ffprobe cannot work.
pub async fn probe(folder: &Path, name: &str) -> Result<Source, IngestError> {
    let shown = media::run("ffprobe", folder, &arguments(INPUT.iter().copied().chain(["-show_streams", "-show_format", "-of", "json", name]))).await?;
    let probed: Probed = serde_json::from_str(&shown.out).unwrap_or(Probed { streams: Vec::new(), format: None });
    let format = probed.format.and_then(|format| format.format_name).unwrap_or_default();
    if !shown.ok || probed.streams.is_empty() {
        if shown.err.contains("moov atom not found") {
            return bad("The file is an MP4 whose index is missing: it was cut off before its end, or its recording was not finished.");
        }
        return bad("The file is not a video that can be read: its content is of no known video format, or is damaged at its beginning.");
    }
    if format.ends_with("_pipe") || format == "image2" || format == "tty" {
        return bad("The file is a picture or a text, not a video.");
    }
    let video = probed.streams.iter().find(|stream| stream.codec_type == "video" && stream.disposition.attached_pic == 0);
    let audio = probed.streams.iter().find(|stream| stream.codec_type == "audio" && stream.codec_name.is_some());
    let Some(video) = video else {
        return bad(match audio {
            Some(_) => "The file has sound but no pictures: there is no video to process.",
            None => "The file has neither pictures nor sound: there is no video to process.",
        });
    };
    let Some(codec) = video.codec_name.clone().filter(|codec| codec != "none") else {
        return bad("The video's codec is not known.");
    };
    if video.width == 0 || video.height == 0 || video.pix_fmt.is_none() {
        return bad("The video's size cannot be found out: it is damaged or empty.");
    }
    if video.width > 8192 || video.height > 8192 {
        return bad(format!("The video is {} × {} pixels; at most 8192 × 8192 are possible.", video.width, video.height));
    }
    let Some((num, den)) = ratio(&video.time_base) else { return bad("The video has no time base: it is damaged.") };
    // Time bases are small.
    let unit_s = num as f64 / den as f64;
    let packets = packets(folder, name, video, &codec).await?;
    let start_pts = packets.iter().map(|packet| packet.pts).min().unwrap_or_default();
    let (variable, end_pts) = timing(&packets, unit_s, &video.avg_frame_rate);
    // Exact below 2^53 units.
    let duration_s = (end_pts - start_pts) as f64 * unit_s;
    if duration_s > 24.0 * 3600.0 {
        return bad("The video is longer than 24 hours by its timestamps; cut it first.");
    }
    let rotation = video.side_data_list.iter().find_map(|data| data.rotation).unwrap_or_default();
    // ffprobe gives the counter-clockwise angle, -180 to 180.
    // 0, 1, 2 or 3 quarter turns.
    let rotation = ((-rotation / 90.0).round().rem_euclid(4.0) as u32) * 90;
    let audio = match audio {
        Some(stream) => audio_stream(folder, name, stream).await?,
        None => None,
    };
    Ok(Source {
        stream: video.index,
        video: Video {
            codec,
            width: video.width,
            height: video.height,
            rotation,
            pixel_format: video.pix_fmt.clone().unwrap_or_default(),
            frames: packets.len() as u64,
            time_base: video.time_base.clone(),
            start_pts,
            duration_s,
            average_frame_rate: [&video.avg_frame_rate, &video.r_frame_rate]
                .into_iter()
                .find(|rate| ratio(rate).is_some())
                .cloned()
                .unwrap_or_else(|| "0/1".to_owned()),
            variable,
        },
        unit_s,
        packets,
        end_pts,
        audio,
    })
}

/// Whether the distances between frames differ (by more than rounding), and where the latest frame ends.
fn timing(packets: &[Packet], unit_s: f64, average_rate: &str) -> (bool, i64) {
    let mut shown: Vec<(i64, i64)> = packets.iter().map(|packet| (packet.pts, packet.duration)).collect();
    shown.sort_unstable();
    let distances = || shown.windows(2).map(|pair| pair[1].0 - pair[0].0);
    let variable = match (distances().min(), distances().max()) {
        (Some(low), Some(high)) => high - low > 1,
        _ => false,
    };
    let Some(&(pts, duration)) = shown.last() else { return (variable, 0) };
    // One frame's length in units.
    let by_rate = || ratio(average_rate).map(|(num, den)| (den as f64 / num as f64 / unit_s).round() as i64);
    let last = Some(duration).filter(|&d| d > 0).or_else(by_rate).filter(|&d| d > 0).or_else(|| distances().next_back()).unwrap_or(1);
    (variable, pts + last.max(1))
}

async fn packets(folder: &Path, name: &str, stream: &Stream, codec: &str) -> Result<Vec<Packet>, IngestError> {
    let selected = stream.index.to_string();
    let listed = media::run(
        "ffprobe",
        folder,
        &arguments(INPUT.iter().copied().chain(["-select_streams", &selected, "-show_entries", "packet=pts,duration,size,flags", "-of", "compact=p=0", name])),
    )
    .await?;
    let mut packets = Vec::new();
    let mut broken = 0_u64;
    for line in listed.out.lines().filter(|line| line.contains("pts=")) {
        let field = |wanted: &str| line.split('|').find_map(|pair| pair.trim().strip_prefix(wanted)?.strip_prefix('='));
        let Some(pts) = field("pts").and_then(|text| text.parse().ok()) else {
            return bad("The video has frames without a timestamp; put it into an MP4 or MKV file first.");
        };
        let flags = field("flags").unwrap_or_default();
        broken += u64::from(flags.contains('C'));
        packets.push(Packet {
            pts,
            duration: field("duration").and_then(|text| text.parse().ok()).unwrap_or_default(),
            bytes: field("size").and_then(|text| text.parse().ok()).unwrap_or_default(),
            entry: flags.starts_with('K'),
        });
    }
    if packets.is_empty() {
        return bad("The video holds no frames.");
    }
    let announced = stream.nb_frames.as_deref().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let truncated = ["partial file", "truncat", "File ended prematurely"].iter().any(|words| listed.err.contains(words));
    if truncated || broken > 0 {
        return bad(format!(
            "The file is cut off or damaged: of {announced} announced frames, {} can be read whole.",
            packets.len() as u64 - broken.min(packets.len() as u64)
        ));
    }
    if packets.iter().any(|packet| packet.pts < 0) {
        return bad("The video has frames before time 0 (negative timestamps); export it again without an offset.");
    }
    if matches!(codec, "h264" | "hevc") {
        let idr = idr_pts(folder, name, stream.index, codec).await?;
        for packet in &mut packets {
            packet.entry &= idr.contains(&packet.pts);
        }
    }
    close(&mut packets);
    if let Some(first) = packets.first_mut() {
        // A video whose first frame is not marked can only be tried from its beginning: it stays one segment.
        first.entry = true;
    }
    Ok(packets)
}

/// Takes the mark from entries over which presentation order crosses: a later packet is shown before the entry, or an
/// earlier one after it (open group of pictures).
fn close(packets: &mut [Packet]) {
    let mut latest_before = i64::MIN;
    let crossing_before: Vec<bool> = packets
        .iter()
        .map(|packet| {
            let crossing = latest_before > packet.pts;
            latest_before = latest_before.max(packet.pts);
            crossing
        })
        .collect();
    let mut earliest_after = i64::MAX;
    for (packet, before) in packets.iter_mut().zip(crossing_before).rev() {
        packet.entry &= !before && earliest_after > packet.pts;
        earliest_after = earliest_after.min(packet.pts);
    }
}

/// Presentation times of the packets that hold an IDR picture. A container's key mark also stands on recovery points
/// and open groups; only an IDR promises that nothing before it is needed.
async fn idr_pts(folder: &Path, name: &str, stream: u32, codec: &str) -> Result<BTreeSet<i64>, IngestError> {
    let map = format!("0:{stream}");
    let filter = format!("filter_units=pass_types={}", if codec == "h264" { "5" } else { "19-20" });
    let head = ["-nostdin", "-copyts"].into_iter().chain(INPUT.iter().copied());
    let tail = ["-i", name, "-map", &map, "-c", "copy", "-bsf:v", &filter, "-avoid_negative_ts", "disabled", "-f", "framecrc", "-"];
    let said = media::run("ffmpeg", folder, &arguments(head.chain(tail))).await?;
    let lines = said.out.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.split(',').nth(2)?.trim().parse().ok()).collect())
}

async fn audio_stream(folder: &Path, name: &str, stream: &Stream) -> Result<Option<AudioStream>, IngestError> {
    let selected = stream.index.to_string();
    let listed = media::run(
        "ffprobe",
        folder,
        &arguments(INPUT.iter().copied().chain(["-select_streams", &selected, "-show_entries", "packet=pts_time,duration_time", "-of", "compact=p=0", name])),
    )
    .await?;
    let mut span: Option<(f64, f64)> = None;
    for line in listed.out.lines() {
        let field = |wanted: &str| line.split('|').find_map(|pair| pair.trim().strip_prefix(wanted)?.strip_prefix('=')?.parse::<f64>().ok());
        let Some(pts) = field("pts_time") else { continue };
        let end = pts + field("duration_time").unwrap_or_default();
        span = Some(span.map_or((pts, end), |(low, high)| (low.min(pts), high.max(end))));
    }
    let Some((low, high)) = span else { return Ok(None) };
    let seconds = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f64>().ok());
    // The stream's own start and length leave out priming and padding where the container knows them.
    let start_s = seconds(&stream.start_time).unwrap_or(low).max(low);
    let duration_s = seconds(&stream.duration).filter(|&length| length > 0.0 && start_s + length <= high + 0.1).unwrap_or(high - start_s);
    // A few seconds at most.
    let shift_s = if low < 0.0 { (-low).ceil() as u32 } else { 0 };
    Ok(Some(AudioStream {
        stream: stream.index,
        codec: stream.codec_name.clone().unwrap_or_default(),
        sample_rate: stream.sample_rate.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default(),
        channels: stream.channels,
        start_s,
        duration_s,
        shift_s,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(list: &[(i64, bool)]) -> Vec<Packet> {
        list.iter().map(|&(pts, entry)| Packet { pts, duration: 1, bytes: 1, entry }).collect()
    }

    fn entries(list: &[(i64, bool)]) -> Vec<i64> {
        let mut packets = packets(list);
        close(&mut packets);
        packets.iter().filter(|packet| packet.entry).map(|packet| packet.pts).collect()
    }

    #[test]
    fn a_closed_group_with_b_frames_may_be_cut() {
        assert_eq!(entries(&[(0, true), (3, false), (1, false), (2, false), (4, true), (6, false), (5, false)]), [0, 4]);
    }

    #[test]
    fn an_open_group_may_not_be_cut() {
        // The key frame 4 is followed by 3, shown before it.
        assert_eq!(entries(&[(0, true), (2, false), (1, false), (4, true), (3, false), (5, true)]), [0, 5]);
    }

    #[test]
    fn equal_distances_up_to_rounding_are_not_variable() {
        assert_eq!(timing(&packets(&[(0, true), (33, false), (67, false), (100, false)]), 0.001, "30/1"), (false, 101));
        assert!(timing(&packets(&[(0, true), (33, false), (90, false)]), 0.001, "30/1").0);
    }

    #[test]
    fn the_last_frame_ends_by_its_duration_else_by_the_rate_else_by_the_distance_before() {
        let mut list = packets(&[(0, true), (40, false)]);
        list[1].duration = 25;
        assert_eq!(timing(&list, 0.001, "25/1").1, 65);
        list[1].duration = 0;
        assert_eq!(timing(&list, 0.001, "20/1").1, 90);
        assert_eq!(timing(&list, 0.001, "0/0").1, 80);
    }
}
