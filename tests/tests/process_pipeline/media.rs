//! Clips as the parts of the test need them, and what ffprobe says of a result.

use std::{path::Path, process::Command};

use anyhow::Context;
use serde_json::Value;

/// Makes a file with ffmpeg in `folder`.
pub fn ffmpeg(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ffmpeg").args(["-nostdin", "-v", "error", "-y"]).args(arguments).current_dir(folder).status()?;
    anyhow::ensure!(status.success(), "ffmpeg {arguments:?} ended with {status}");
    Ok(())
}

/// What is in a file: the facts that a result is judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub width: u64,
    pub height: u64,
    pub codec: String,
    /// Frames that decode.
    pub frames: u64,
    pub video_s: f64,
    pub frame_s: f64,
    pub audio_s: Option<f64>,
}

/// Decodes the whole file; anything the decoder complains of is an error.
pub fn facts(path: &Path) -> anyhow::Result<Facts> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]).arg(path);
    let said = command.output().context("ffprobe cannot be run")?;
    anyhow::ensure!(said.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout)?;
    let stream = |kind: &str| said["streams"].as_array().and_then(|all| all.iter().find(|one| one["codec_type"] == kind));
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
    let video = stream("video").with_context(|| format!("{} has no pictures", path.display()))?;
    let rate = video["avg_frame_rate"].as_str().and_then(|text| text.split_once('/')).context("a frame rate")?;
    let frames = video["nb_read_frames"].as_str().and_then(|text| text.parse().ok()).context("a number of frames")?;
    Ok(Facts {
        width: video["width"].as_u64().unwrap_or_default(),
        height: video["height"].as_u64().unwrap_or_default(),
        codec: video["codec_name"].as_str().unwrap_or_default().to_owned(),
        frames,
        // A picture by itself has none.
        video_s: number(&video["duration"]).unwrap_or_default(),
        frame_s: rate.1.parse::<f64>()? / rate.0.parse::<f64>()?,
        audio_s: stream("audio").and_then(|audio| number(&audio["duration"])),
    })
}

/// The index stands before the media, so that a player can begin before it has everything.
pub fn is_faststart(bytes: &[u8]) -> bool {
    let at = |word: &[u8]| bytes.windows(4).position(|found| found == word);
    at(b"moov").zip(at(b"mdat")).is_some_and(|(index, media)| index < media)
}

const SOURCE: &str = "testsrc2=size=320x240:rate=24:duration=3";
const H264: [&str; 4] = ["-c:v", "libx264", "-pix_fmt", "yuv420p"];

/// What must become of an input.
pub enum End {
    /// Done: as many frames as given, at this display size.
    Done(u64, u64, u64),
    /// Failed, with a sentence that contains this.
    Failed(&'static str),
}

/// An input that is not as a camera makes it.
pub struct Odd {
    pub key: &'static str,
    pub bytes: Vec<u8>,
    pub end: End,
}

/// Every input of the list, made in `folder`.
pub fn odd_inputs(folder: &Path) -> anyhow::Result<Vec<Odd>> {
    let make = |name: &str, arguments: &[&str]| -> anyhow::Result<Vec<u8>> {
        let all = [arguments, &[name]].concat();
        ffmpeg(folder, &all)?;
        Ok(std::fs::read(folder.join(name))?)
    };
    let picture = |name: &str, more: &[&str]| make(name, &[&["-f", "lavfi", "-i", SOURCE], &H264[..], more].concat());
    let sound = ["-f", "lavfi", "-i", "sine=duration=3", "-c:a", "aac"];
    let plain = make("plain.mp4", &[&["-f", "lavfi", "-i", SOURCE], &sound[..4], &H264, &["-g", "24", "-c:a", "aac"]].concat())?;
    let fast = make("fast.mp4", &["-i", "plain.mp4", "-c", "copy", "-movflags", "+faststart"])?;
    let every_third = ["-vf", "select=not(mod(n\\,3))+lt(mod(n\\,10)\\,5)", "-vsync", "vfr", "-g", "12"];
    let variable = picture("variable.mp4", &every_third)?;
    let variable_frames = facts(&folder.join("variable.mp4"))?.frames;
    let odd_size = ["-f", "lavfi", "-i", "testsrc=size=853x481:rate=25:duration=2", "-c:v", "libx264", "-pix_fmt", "yuv444p"];
    // A second of noise with one key frame, 40 MB: over what travels in records.
    let noise = ["-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=25:duration=1,noise=alls=100:allf=t"];
    let large = [&noise[..], &["-c:v", "libx264", "-preset", "ultrafast", "-qp", "8", "-g", "9999", "-sc_threshold", "0"]].concat();
    let done = |key, bytes, frames, width, height| Odd { key, bytes, end: End::Done(frames, width, height) };
    let failed = |key, bytes, sentence| Odd { key, bytes, end: End::Failed(sentence) };
    Ok(vec![
        failed("empty.mp4", Vec::new(), "The file is empty."),
        failed("text.mp4", b"this is not a video at all".repeat(100), "not a video that can be read"),
        failed("index-missing.mp4", plain[..plain.len() / 2].to_vec(), "index is missing"),
        failed("cut-off.mp4", fast[..fast.len() / 2].to_vec(), "cut off or damaged"),
        failed("sound.mp4", make("sound.mp4", &sound)?, "sound but no pictures"),
        done("variable.mp4", variable, variable_frames, 320, 240),
        done("rotated.mp4", make("rotated.mp4", &["-i", "plain.mp4", "-c", "copy", "-metadata:s:v", "rotate=90"])?, 72, 240, 320),
        done("odd-size.mp4", make("odd-size.mp4", &odd_size)?, 50, 638, 360),
        done("one-frame.mp4", picture("one-frame.mp4", &["-frames:v", "1"])?, 1, 320, 240),
        done("one-key-frame.mp4", picture("one-key-frame.mp4", &["-g", "9999", "-keyint_min", "9999", "-sc_threshold", "0"])?, 72, 320, 240),
        done("ten-bit.mp4", make("ten-bit.mp4", &["-f", "lavfi", "-i", SOURCE, "-c:v", "libx264", "-pix_fmt", "yuv420p10le"])?, 72, 320, 240),
        // Time bases coarser than MP4's own least.
        done("sound.mkv", make("sound.mkv", &["-i", "plain.mp4", "-c", "copy"])?, 72, 320, 240),
        done("vp9.webm", make("vp9.webm", &["-i", "plain.mp4", "-an", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"])?, 72, 320, 240),
        done("moving.gif", make("moving.gif", &["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=2"])?, 20, 160, 120),
        done("large-segment.mp4", make("large-segment.mp4", &large)?, 25, 640, 360),
        done("ein Video/Grüße + 100 % #1?.mp4", plain, 72, 320, 240),
    ])
}
