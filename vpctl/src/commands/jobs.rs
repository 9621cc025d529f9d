//! `jobs`: list, show, fetch, cancel, retry. The records on S3 are the truth; no coordinator is asked.

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::json;
use vp_jobs::{JobId, keys};

use super::results::{self, Job};
use super::watch_job::until_over;
use crate::arguments::{Format, JobsCommand};
use crate::failure::{EXIT_FAILED, EXIT_INTERRUPTED, Failure};
use crate::place::Pipeline;
use crate::terminal::{Screen, Tone, segments_bar};
use crate::view;
use crate::view::table::{Cell, Table};
use crate::view::units::{moment, now_unix_ms, size, span};

/// Records read at once.
const AT_ONCE: usize = 8;

/// Runs one of the `jobs` commands.
pub async fn jobs(pipeline: &Pipeline, screen: &Screen, format: Format, command: JobsCommand) -> Result<u8, Failure> {
    match command {
        JobsCommand::List { limit } => list(pipeline, screen, format, limit).await,
        JobsCommand::Show { job } => {
            let job = results::read(pipeline, &results::named(pipeline, &job).await?).await?;
            view::show(screen, format, &job, |job| show_text(job, screen))?;
            Ok(if job.state == "failed" { EXIT_FAILED } else { 0 })
        }
        JobsCommand::Fetch { job, output } => {
            let job = results::named(pipeline, &job).await?;
            let state = results::read(pipeline, &job).await?;
            if state.state != "done" {
                return Err(not_done(&state));
            }
            let written = results::download(pipeline, &job, &output).await?;
            let paths: Vec<String> = written.iter().map(|p| p.display().to_string()).collect();
            view::show(screen, format, &paths, |paths| paths.iter().map(|p| format!("verified  {p}\n")).collect())?;
            Ok(0)
        }
        JobsCommand::Cancel { job } => cancel(pipeline, screen, format, &job).await,
        JobsCommand::Retry { job, wait } => retry(pipeline, screen, format, &job, wait).await,
    }
}

fn not_done(job: &Job) -> Failure {
    let why = job.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let next =
        if job.is_over() { format!("`vpctl jobs retry {}` submits it again", job.job) } else { format!("`vpctl jobs show {}` shows how far it is", job.job) };
    Failure::NotNow { what: format!("job {} is {}{why}", job.job, job.state), next }
}

async fn list(pipeline: &Pipeline, screen: &Screen, format: Format, limit: usize) -> Result<u8, Failure> {
    let ids = results::newest(pipeline, limit).await?;
    let reads = futures::stream::iter(ids).map(|id| async move { results::read(pipeline, &id).await });
    let jobs: Vec<Job> = reads.buffered(AT_ONCE).try_collect().await?;
    view::show(screen, format, &jobs, |jobs| list_text(jobs, screen, now_unix_ms()))?;
    Ok(0)
}

fn list_text(jobs: &[Job], screen: &Screen, now_unix_ms: u64) -> String {
    if jobs.is_empty() {
        return "no jobs yet: `vpctl submit FILE` makes one\n".to_owned();
    }
    let mut table = Table::new(&["JOB", "STATE", "SEGMENTS", "AGE", "FILE", "SIZE", "RECIPE", "REASON"]);
    for job in jobs {
        let segments = job.segments_total.filter(|_| !job.is_over()).map(|total| format!("{} of {total}", job.segments_done));
        let age = job.submitted_unix_ms.map(|at| span(now_unix_ms.saturating_sub(at))).unwrap_or_default();
        table.row(vec![
            job.job.as_str().into(),
            state(job),
            segments.unwrap_or_default().into(),
            age.into(),
            job.file.clone().unwrap_or_default().into(),
            job.bytes.map(size).unwrap_or_default().into(),
            job.recipe.clone().unwrap_or_default().into(),
            job.reason.clone().unwrap_or_default().into(),
        ]);
    }
    table.render(screen)
}

fn state(job: &Job) -> Cell {
    let tone = match job.state.as_str() {
        "done" => Tone::Good,
        "failed" => Tone::Bad,
        "cancelled" => Tone::Dim,
        _ => Tone::Warn,
    };
    Cell::new(tone, job.state.as_str())
}

fn show_text(job: &Job, screen: &Screen) -> String {
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            table.row(vec![Cell::new(Tone::Dim, name), value.into()]);
        }
    };
    row("job", Some(job.job.clone()));
    row("state", Some(if job.cancel_requested { format!("{}, cancellation asked for", job.state) } else { job.state.clone() }));
    row("reason", job.reason.clone());
    row("source", job.bucket.as_ref().zip(job.key.as_ref()).map(|(b, k)| format!("s3://{b}/{k}")));
    row("size", job.bytes.map(size));
    row("recipe", job.recipe.clone());
    row("submitted", job.submitted_unix_ms.map(|at| format!("{} UTC", moment(at))));
    row("segments", job.segments_total.map(|total| format!("{} of {total}", job.segments_done)));
    row("closed", job.closed_unix_ms.map(|at| format!("{} UTC", moment(at))));
    row("took", job.submitted_unix_ms.zip(job.closed_unix_ms).map(|(from, to)| span(to.saturating_sub(from))));
    for output in &job.outputs {
        row("output", Some(format!("{}  {}  sha256 {}", output.name, size(output.bytes), output.sha256)));
    }
    // The heading of this table is empty; its line is dropped.
    table.render(screen).trim_start_matches(['\n', ' ']).to_owned()
}

#[derive(Debug, Serialize)]
struct CancelRecord<'a> {
    job: &'a JobId,
    requested_unix_ms: u64,
}

async fn cancel(pipeline: &Pipeline, screen: &Screen, format: Format, name: &str) -> Result<u8, Failure> {
    let id = results::named(pipeline, name).await?;
    let job = results::read(pipeline, &id).await?;
    let answer = json!({"job": id.to_string(), "state": job.state, "cancel_requested": !job.is_over()});
    if job.is_over() {
        view::show(screen, format, &answer, |_| format!("job {id} is {} already: nothing to cancel\n", job.state))?;
        return Ok(0);
    }
    let record = CancelRecord { job: &id, requested_unix_ms: now_unix_ms() };
    let body = view::json_line(&record)?;
    match pipeline.store.put_if_absent(&pipeline.results, &keys::cancel(&id), body.into(), "application/json").await {
        Ok(_) => {}
        // Asked for before: that is what is wanted.
        Err(error) if error.is_precondition_failed() => {}
        Err(error) => return Err(error.into()),
    }
    view::show(screen, format, &answer, |_| format!("job {id}: cancellation asked for; `vpctl jobs show {id}` shows when it is\n"))?;
    Ok(0)
}

async fn retry(pipeline: &Pipeline, screen: &Screen, format: Format, name: &str, wait: bool) -> Result<u8, Failure> {
    let id = results::named(pipeline, name).await?;
    let old = results::read(pipeline, &id).await?;
    if !old.is_over() {
        let next = format!("wait for it, or `vpctl jobs cancel {id}` first");
        return Err(Failure::NotNow { what: format!("job {id} is {}: it is not over yet", old.state), next });
    }
    let (Some(bucket), Some(key), Some(recipe)) = (&old.bucket, &old.key, &old.recipe) else {
        return Err(Failure::Malformed { what: format!("job {id}"), reason: "its record does not say where its video is".to_owned() });
    };
    let file = key.rsplit('/').next().unwrap_or(key);
    let fresh = format!("{}/{file}", uuid::Uuid::new_v4());
    let etag = pipeline.store.copy(bucket, key, &pipeline.uploads, &fresh).await?;
    let new = JobId::of(&pipeline.uploads, &fresh, &etag, recipe);
    if !wait {
        let answer = json!({"job": new, "retry_of": id, "key": fresh});
        view::show(screen, format, &answer, |_| format!("job {new} is {id} again; `vpctl jobs show {new}` shows how far it is\n"))?;
        return Ok(0);
    }
    let bars = screen.bars();
    let bar = segments_bar(&bars, file);
    let job = tokio::select! {
        job = until_over(pipeline, &new, file, &bar, screen) => job?,
        _ = tokio::signal::ctrl_c() => {
            screen.note(&format!("the job goes on: `vpctl jobs show {new}`"));
            return Ok(EXIT_INTERRUPTED);
        }
    };
    view::show(screen, format, &job, |job| show_text(job, screen))?;
    Ok(if job.state == "done" { 0 } else { EXIT_FAILED })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: &str) -> Job {
        Job {
            job: "0123456789abcdef0123".to_owned(),
            state: state.to_owned(),
            file: Some("clip.mp4".to_owned()),
            bucket: Some("dev-uploads".to_owned()),
            key: Some("u/clip.mp4".to_owned()),
            bytes: Some(4 << 20),
            recipe: Some("default".to_owned()),
            submitted_unix_ms: Some(1_795_464_904_123),
            segments_done: 3,
            segments_total: Some(12),
            cancel_requested: false,
            reason: None,
            closed_unix_ms: None,
            outputs: vec![],
        }
    }

    #[test]
    fn a_list_shows_progress_only_while_there_is_some() {
        let mut failed = job("failed");
        failed.reason = Some("it is not a video".to_owned());
        let text = list_text(&[job("processing"), failed], &Screen::plain(), 1_795_464_909_123);
        let golden = "\
JOB                   STATE       SEGMENTS  AGE    FILE      SIZE     RECIPE   REASON
0123456789abcdef0123  processing  3 of 12   5.0 s  clip.mp4  4.0 MiB  default
0123456789abcdef0123  failed                5.0 s  clip.mp4  4.0 MiB  default  it is not a video
";
        assert_eq!(text, golden);
    }

    #[test]
    fn one_job_reads_as_names_and_values() {
        let golden = "\
job        0123456789abcdef0123
state      processing
source     s3://dev-uploads/u/clip.mp4
size       4.0 MiB
recipe     default
submitted  2026-11-23 20:15:04.123 UTC
segments   3 of 12
";
        assert_eq!(show_text(&job("processing"), &Screen::plain()), golden);
    }
}
