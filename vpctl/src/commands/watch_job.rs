//! Waiting for a job: its state and segments as a bar or as plain lines, until it is over.

use std::time::Duration;

use indicatif::ProgressBar;
use vp_cloud::s3::StoreError;
use vp_jobs::JobId;

use super::results::{self, Job};
use crate::failure::Failure;
use crate::place::Pipeline;
use crate::terminal::{Screen, counts_segments};

const LOOK: Duration = Duration::from_millis(500);

/// Follows a job to its end. A store that is away for a while is waited for: the job does not depend on this program.
pub async fn until_over(pipeline: &Pipeline, job: &JobId, name: &str, bar: &ProgressBar, screen: &Screen) -> Result<Job, Failure> {
    let mut last = Told::default();
    loop {
        match results::read(pipeline, job).await {
            Ok(view) => {
                bar.set_message(view.state.clone());
                if let Some(total) = view.segments_total {
                    counts_segments(bar, view.segments_done, total);
                }
                if !screen.is_live()
                    && let Some(line) = last.line(&view)
                {
                    screen.note(&format!("{name}: {line}"));
                }
                if view.is_over() {
                    bar.finish_and_clear();
                    return Ok(view);
                }
            }
            Err(Failure::Store(StoreError::Unreachable { .. })) => bar.set_message("no answer"),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was last told in plain lines, so that a log gets a line a change and not a line a look.
#[derive(Debug, Default)]
struct Told {
    state: String,
    tenths: u64,
}

impl Told {
    fn line(&mut self, view: &Job) -> Option<String> {
        let total = view.segments_total.unwrap_or(0);
        let tenths = (view.segments_done * 10).checked_div(total).unwrap_or_default();
        if view.state == self.state && tenths == self.tenths {
            return None;
        }
        *self = Self { state: view.state.clone(), tenths };
        Some(match view.segments_total {
            Some(total) => format!("{}, {} of {total} segments", view.state, view.segments_done),
            None => view.state.clone(),
        })
    }
}
