//! Running ffmpeg and ffprobe: only local files, only known containers, never longer than the invocation.
//!
//! A playlist or a reference movie could make them open other files or hosts: protocols and demuxers are limited to a
//! list, and the file's name is our own, never the upload's.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::error::IngestError;

/// Containers that are read (ffmpeg's names).
pub const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,nut,ogg,asf,h264,hevc,m4v,mxf,gif,wav,mp3,flac,aac,\
dv,ivf,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,gif_pipe,tiff_pipe,swf,rm,apng,obu,vob,caf,aiff,ac3,amr";

/// What a tool said.
pub struct Said {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// True when it ended with 0.
    pub ok: bool,
}

/// Input options that both tools get before the input file. Missing timestamps are made up from decoding order.
pub const INPUT: &[&str] = &["-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS, "-fflags", "+genpts"];

/// Runs a tool in a folder to its end; it dies with this task.
///
/// # Errors
/// When the tool cannot be started or was killed by a signal.
pub async fn run(program: &'static str, folder: &Path, arguments: &[String]) -> Result<Said, IngestError> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| IngestError::Tool(format!("{program} cannot be started: {error}; install ffmpeg")))?;
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code().is_none() {
        return Err(IngestError::Tool(format!("{program} was killed ({})", output.status)));
    }
    if err.contains("No space left on device") {
        return Err(IngestError::Tool(format!("{program}: no space left on the disk")));
    }
    Ok(Said { out: String::from_utf8_lossy(&output.stdout).into_owned(), err, ok: output.status.success() })
}

/// Arguments as owned strings.
pub fn arguments<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    parts.into_iter().map(str::to_owned).collect()
}
