//! The keys under which a job's objects stand in the results bucket (contracts §5).

use crate::ids::{JobId, SegmentId};

/// Prefix of all job records.
pub const JOBS: &str = "jobs/";

/// The record that an upload became this job.
pub fn submitted(job: &JobId) -> String {
    format!("jobs/{job}/submitted.json")
}

/// The ordered segment hashes.
pub fn plan(job: &JobId) -> String {
    format!("jobs/{job}/plan.json")
}

/// How the job stands or ended.
pub fn result(job: &JobId) -> String {
    format!("jobs/{job}/result.json")
}

/// A request to cancel.
pub fn cancel(job: &JobId) -> String {
    format!("jobs/{job}/cancel.json")
}

/// The final record.
pub fn closed(job: &JobId) -> String {
    format!("jobs/{job}/closed.json")
}

/// The job a `jobs/JOB/NAME` key belongs to, and NAME.
pub fn parse_record(key: &str) -> Option<(JobId, &str)> {
    let (job, name) = key.strip_prefix(JOBS)?.split_once('/')?;
    Some((job.parse().ok()?, name))
}

/// The description of the outputs for a person's client.
pub fn manifest(job: &JobId) -> String {
    format!("results/{job}/manifest.json")
}

/// One output.
pub fn output(job: &JobId, name: &str) -> String {
    format!("results/{job}/{name}")
}

/// Prefix of all that only an open job needs.
pub fn work(job: &JobId) -> String {
    format!("work/{job}/")
}

/// Prefix of the whole segments of a job.
pub fn segments(job: &JobId) -> String {
    format!("work/{job}/in/")
}

/// A whole segment.
pub fn segment(job: &JobId, segment: SegmentId) -> String {
    format!("work/{job}/in/{segment}")
}

/// Prefix of the segments' outputs of a job.
pub fn segment_outputs(job: &JobId) -> String {
    format!("work/{job}/out/")
}

/// A segment's output for a recipe output.
pub fn segment_output(job: &JobId, segment: SegmentId, name: &str) -> String {
    format!("work/{job}/out/{segment}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_key_gives_back_its_job_and_name() {
        let job = JobId::of("b", "k", "e", "r");
        assert_eq!(parse_record(&result(&job)), Some((job, "result.json")));
        for key in ["jobs/x/result.json", "results/aaaaaaaaaaaaaaaaaaaa/manifest.json", "jobs/", ""] {
            assert_eq!(parse_record(key), None, "{key}");
        }
    }
}
