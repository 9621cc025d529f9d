//! The plan: what the video is, and the ordered hashes of its segments. Written once; only it decides what to join.

use serde::{Deserialize, Serialize};

use crate::{ids::JobId, recipe::Recipe};

/// Version of the plan's form.
pub const VERSION: u32 = 1;

/// A job's plan (`plan.json`). Fields that hold time have it in units of `video.time_base`, or in seconds (`_s`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Form of this record, [`VERSION`].
    pub version: u32,
    /// The job.
    pub job: JobId,
    /// Bucket of the source.
    pub bucket: String,
    /// Key of the source: data, never a path.
    pub key: String,
    /// Entity tag of the source, no quotes.
    pub etag: String,
    /// The resolved recipe.
    pub recipe: Recipe,
    /// The video stream.
    pub video: Video,
    /// The audio stream, if any.
    pub audio: Option<Audio>,
    /// The video's segments in order; their frames sum to `video.frames`.
    pub segments: Vec<Segment>,
}

/// The source's video stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Video {
    /// ffmpeg's name of the codec, e.g. `h264`.
    pub codec: String,
    /// Coded width, pixels, before rotation.
    pub width: u32,
    /// Coded height, pixels, before rotation.
    pub height: u32,
    /// Clockwise turn a player makes for display, degrees: 0, 90, 180 or 270.
    pub rotation: u32,
    /// ffmpeg's name, e.g. `yuv420p10le`.
    pub pixel_format: String,
    /// Number of frames (packets) of the whole video.
    pub frames: u64,
    /// Unit of all pts, as `num/den` seconds.
    pub time_base: String,
    /// Presentation time of the earliest frame.
    pub start_pts: i64,
    /// From the earliest frame to the end of the latest, seconds.
    pub duration_s: f64,
    /// Frames a second on average, as `num/den`.
    pub average_frame_rate: String,
    /// True when the distances between frames differ.
    pub variable: bool,
}

/// The source's audio stream, which travels as one segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audio {
    /// ffmpeg's name of the codec, e.g. `aac`.
    pub codec: String,
    /// Samples a second.
    pub sample_rate: u32,
    /// Number of channels.
    pub channels: u32,
    /// Length of what is heard, seconds.
    pub duration_s: f64,
    /// When the first sample is heard, seconds on the source's clock (the video's first frame is at `start_pts`).
    pub start_s: f64,
    /// Timestamps inside the segment are the source's plus this many whole seconds (NUT has no negative ones; an
    /// encoder's priming lies before 0).
    pub shift_s: u32,
    /// The segment.
    pub segment: AudioSegment,
}

/// The audio's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioSegment {
    /// SHA-256 of the whole segment, hex.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
    /// How many records carry it (1 when it travels as a reference).
    pub parts: u32,
}

/// One segment of the video; begins with a key frame and decodes on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Place in the video, from 0.
    pub index: u32,
    /// SHA-256 of the whole segment, hex.
    pub sha256: String,
    /// Size, bytes.
    pub bytes: u64,
    /// How many records carry it (1 when it travels as a reference).
    pub parts: u32,
    /// Number of frames.
    pub frames: u64,
    /// Presentation time of its earliest frame.
    pub first_pts: i64,
    /// Presentation time of its latest frame.
    pub last_pts: i64,
    /// Where it ends: the next segment's `first_pts`; for the last one the end of its latest frame.
    pub end_pts: i64,
}

impl Plan {
    /// The bytes that are stored and hashed: equal plans give equal bytes.
    ///
    /// # Errors
    /// Never for a plan made of finite numbers.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// A plan read back.
    ///
    /// # Errors
    /// When it is not JSON of this form and version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let plan: Self = serde_json::from_slice(bytes)?;
        if plan.version == VERSION {
            Ok(plan)
        } else {
            Err(serde::de::Error::custom(format_args!("plan version {}, this program reads {VERSION}", plan.version)))
        }
    }
}
