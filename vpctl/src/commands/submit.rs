//! `submit`: videos go up, each under a fresh key, and with `--wait` their results come back verified.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::MultiProgress;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use vp_jobs::JobId;
use vp_jobs::records::Output;

use super::results::{self, Job};
use super::watch_job::until_over;
use crate::arguments::{Format, SubmitArguments};
use crate::failure::{EXIT_FAILED, EXIT_INTERRUPTED, Failure};
use crate::place::Pipeline;
use crate::terminal::{Screen, Tone, bytes_bar, segments_bar};
use crate::view;
use crate::view::units::{size, span};

/// Uploads under way at once; the rest waits its turn.
const UPLOADS: usize = 3;
/// Metadata under which the name of a recipe travels with the object.
const RECIPE_METADATA: &str = "vp-recipe";
/// Metadata with the file's own name, percent-encoded: keys keep only what every client writes the same way.
const NAME_METADATA: &str = "vp-name";

/// What became of one file.
#[derive(Debug, Clone, Serialize)]
struct Submission {
    file: String,
    job: JobId,
    key: String,
    bytes: u64,
    upload_ms: u64,
    /// With --wait: done, failed, cancelled; else submitted.
    state: String,
    reason: Option<String>,
    total_ms: u64,
    outputs: Vec<Output>,
    downloaded: Vec<String>,
}

/// Shared by the files of one call.
struct Batch<'a> {
    pipeline: &'a Pipeline,
    screen: &'a Screen,
    words: &'a SubmitArguments,
    format: Format,
    bars: MultiProgress,
    turn: Semaphore,
    /// File → job, once it is uploaded.
    jobs: Mutex<BTreeMap<String, JobId>>,
}

/// Submits all files; 0 when every one ended well.
pub async fn submit(pipeline: &Pipeline, screen: &Screen, format: Format, words: SubmitArguments) -> Result<u8, Failure> {
    recipe_name(&words.recipe)?;
    let folders = folders(&words);
    for file in &words.files {
        let found = tokio::fs::metadata(file).await.map_err(Failure::file(file))?;
        if !found.is_file() {
            return Err(Failure::file(file)(std::io::Error::other("not a file")));
        }
    }
    // Found out now, not when the work is done.
    if let Some(dir) = words.output.as_ref().filter(|dir| dir.exists() && !dir.is_dir()) {
        return Err(Failure::file(dir)(std::io::Error::other("results go into a folder, and this is none")));
    }
    let batch = Batch { pipeline, screen, words: &words, format, bars: screen.bars(), turn: Semaphore::new(UPLOADS), jobs: Mutex::new(BTreeMap::new()) };
    let names = names(&words.files);
    let work = futures::future::join_all(words.files.iter().zip(&names).zip(&folders).map(|((file, name), folder)| batch.one(file, name, folder.as_deref())));
    let limit = words.timeout.map_or(Duration::MAX, Duration::from_secs);
    let ended = tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => return Ok(batch.interrupted("interrupted", EXIT_INTERRUPTED)),
        () = after(limit) => return Ok(batch.interrupted(&format!("not over after {} s", limit.as_secs()), EXIT_FAILED)),
    };
    let mut code = 0;
    let mut submissions = Vec::new();
    for one in ended {
        match one {
            Ok(submission) => {
                if words.wait && submission.state != "done" {
                    code = EXIT_FAILED;
                }
                submissions.push(submission);
            }
            Err(failure) => {
                code = EXIT_FAILED;
                screen.complain(&failure);
            }
        }
    }
    // People were told line by line as each ended.
    view::show(screen, format, &submissions, |_| String::new())?;
    Ok(code)
}

async fn after(limit: Duration) {
    match Instant::now().checked_add(limit) {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Batch<'_> {
    /// `name` is what people are told it is.
    async fn one(&self, file: &Path, name: &str, folder: Option<&Path>) -> Result<Submission, Failure> {
        let started = Instant::now();
        let mut submission = self.upload(file, name).await?;
        if !self.words.wait {
            self.tell(&format!("{}  {name}  {}  job {}", self.screen.paint(Tone::Good, "submitted"), size(submission.bytes), submission.job));
            return Ok(submission);
        }
        let bar = segments_bar(&self.bars, name);
        let job = until_over(self.pipeline, &submission.job, name, &bar, self.screen).await?;
        submission.total_ms = millis(started);
        if job.state == "done"
            && let Some(folder) = folder
        {
            let written = results::download(self.pipeline, &submission.job, folder).await?;
            submission.downloaded = written.iter().map(|p| p.display().to_string()).collect();
        }
        self.tell_end(name, &job, &submission);
        Ok(Submission { state: job.state, reason: job.reason, outputs: job.outputs, ..submission })
    }

    async fn upload(&self, file: &Path, told: &str) -> Result<Submission, Failure> {
        let name = &base_name(file);
        // The semaphore is never closed; if it were, uploading without a turn would still be right.
        let _turn = self.turn.acquire().await.ok();
        let started = Instant::now();
        let bytes = tokio::fs::metadata(file).await.map_err(Failure::file(file))?.len();
        let bar = bytes_bar(&self.bars, told, bytes);
        bar.set_message("uploading");
        let key = format!("{}/{}", uuid::Uuid::new_v4(), key_name(name));
        let metadata = BTreeMap::from([(RECIPE_METADATA.to_owned(), self.words.recipe.clone()), (NAME_METADATA.to_owned(), percent_encoded(name))]);
        let mut progress = |sent: u64| bar.set_position(sent);
        let Pipeline { store, uploads, .. } = self.pipeline;
        let etag = store.upload_file(uploads, &key, file, content_type(name), &metadata, &mut progress).await?;
        bar.finish_and_clear();
        let job = JobId::of(uploads, &key, &etag, &self.words.recipe);
        if let Ok(mut jobs) = self.jobs.lock() {
            jobs.insert(file.display().to_string(), job.clone());
        }
        if self.words.wait && !self.screen.is_live() {
            self.screen.note(&format!("{told}: uploaded {} in {}, job {job}", size(bytes), span(millis(started))));
        }
        let upload_ms = millis(started);
        let state = "submitted".to_owned();
        let file = file.display().to_string();
        Ok(Submission { file, job, key, bytes, upload_ms, state, reason: None, total_ms: upload_ms, outputs: vec![], downloaded: vec![] })
    }

    fn tell_end(&self, name: &str, job: &Job, submission: &Submission) {
        let tone = if job.state == "done" { Tone::Good } else { Tone::Bad };
        let reason = job.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let mut text = format!("{}  {name}  in {}  job {}{reason}", self.screen.paint(tone, &job.state), span(submission.total_ms), job.job);
        for output in &job.outputs {
            text.push_str(&format!("\n  {}  {}", output.name, size(output.bytes)));
        }
        for path in &submission.downloaded {
            text.push_str(&format!("\n  verified  {path}"));
        }
        if job.state == "done" && submission.downloaded.is_empty() {
            text.push_str(&format!("\n  fetch them with `vpctl jobs fetch {} --output DIR`", job.job));
        }
        self.tell(&text);
    }

    fn tell(&self, text: &str) {
        if matches!(self.format, Format::Table | Format::Wide) {
            self.bars.suspend(|| self.screen.line(text));
        }
    }

    fn interrupted(&self, why: &str, code: u8) -> u8 {
        // What could not be cleared off the screen is only a bar.
        let _ = self.bars.clear();
        let jobs = self.jobs.lock().map(|j| j.clone()).unwrap_or_default();
        for file in &self.words.files {
            let file = file.display().to_string();
            match jobs.get(&file) {
                Some(job) => self.screen.note(&format!("{file}: {why}; the job goes on: `vpctl jobs show {job}`")),
                None => self.screen.note(&format!("{file}: {why} before it was uploaded: submit it again")),
            }
        }
        code
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A recipe is named like its file: no path, no surprises in metadata.
fn recipe_name(name: &str) -> Result<(), Failure> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(Failure::Usage(format!("recipe {name:?}: lowercase letters, digits, - and _ are allowed, 64 at most")));
    }
    Ok(())
}

fn base_name(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What people are told each file is: its name, or, where several have that name, the path that was given.
fn names(files: &[PathBuf]) -> Vec<String> {
    let alone = |name: &str| files.iter().filter(|file| base_name(file) == name).count() == 1;
    files.iter().map(|file| Some(base_name(file)).filter(|name| alone(name)).unwrap_or_else(|| file.display().to_string())).collect()
}

/// Where each file's results go: DIR itself for one file, a folder each inside DIR for several.
fn folders(words: &SubmitArguments) -> Vec<Option<PathBuf>> {
    let Some(dir) = &words.output else {
        return vec![None; words.files.len()];
    };
    if words.files.len() == 1 {
        return vec![Some(dir.clone())];
    }
    let mut taken = BTreeSet::new();
    let folder = |file: &PathBuf| {
        let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|| "video".to_owned());
        let mut name = stem.clone();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            n += 1;
            name = format!("{stem}-{n}");
        }
        Some(dir.join(name))
    };
    words.files.iter().map(folder).collect()
}

/// The file's name as part of a key: what is the same encoded and decoded stays, the rest becomes `_`.
fn key_name(name: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }
    };
    // Keys end at 1024 bytes; file systems that mirror them at 255 a name.
    let kept: String = name.chars().map(safe).collect::<Vec<_>>().into_iter().rev().take(150).collect();
    let kept: String = kept.chars().rev().collect();
    if kept.trim_matches('.').is_empty() { "video".to_owned() } else { kept }
}

fn percent_encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).as_deref() {
        Some("mp4" | "m4v") => "video/mp4",
        Some("mov") => "video/quicktime",
        Some("mkv") => "video/x-matroska",
        Some("webm") => "video/webm",
        Some("avi") => "video/x-msvideo",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_file_name_becomes_a_key_that_no_client_writes_differently() {
        let names = [("clip.mp4", "clip.mp4"), ("my clip (1).mp4", "my_clip__1_.mp4"), ("Ünïcode.mp4", "_n_code.mp4"), ("..", "video"), ("a%20b", "a_20b")];
        for (name, key) in names {
            assert_eq!(key_name(name), key, "{name}");
        }
        let long = format!("{}.mp4", "x".repeat(300));
        assert!(key_name(&long).len() == 150 && key_name(&long).ends_with("x.mp4"));
    }

    #[test]
    fn the_name_itself_travels_percent_encoded() {
        assert_eq!(percent_encoded("ä b%.mp4"), "%C3%A4%20b%25.mp4");
    }

    #[test]
    fn results_of_several_files_do_not_meet_in_one_folder() {
        let words = |files: &[&str]| SubmitArguments {
            files: files.iter().map(PathBuf::from).collect(),
            recipe: "default".to_owned(),
            wait: true,
            output: Some(PathBuf::from("out")),
            timeout: None,
        };
        assert_eq!(folders(&words(&["a.mp4"])), [Some(PathBuf::from("out"))]);
        assert_eq!(folders(&words(&["a.mp4", "b/a.mov"])), [Some(PathBuf::from("out/a")), Some(PathBuf::from("out/a-2"))]);
    }

    #[test]
    fn files_of_one_name_are_told_apart_by_their_paths() {
        let files = ["a.mp4", "one/b.mp4", "two/b.mp4"].map(PathBuf::from);
        assert_eq!(names(&files), ["a.mp4", "one/b.mp4", "two/b.mp4"]);
        assert_eq!(names(&files[..2]), ["a.mp4", "b.mp4"]);
    }

    #[test]
    fn a_recipe_cannot_be_a_path() {
        assert!(recipe_name("default").is_ok());
        for wrong in ["", "../x", "a b", "Default"] {
            assert_eq!(recipe_name(wrong).expect_err(wrong).exit_code(), 64, "{wrong}");
        }
    }
}
