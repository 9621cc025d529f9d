//! How far a job is: segments with all their outputs, of the plan's segments.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ids::SegmentId, keys, plan::Plan};

/// Segments done and wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments whose outputs are all there.
    pub done: u32,
    /// Segments of the plan.
    pub total: u32,
}

impl Progress {
    /// Counts from a listing of `work/JOB/out/`; keys that are not outputs of this plan count for nothing.
    pub fn of<'a>(plan: &Plan, listed: impl IntoIterator<Item = &'a str>) -> Self {
        let prefix = keys::segment_outputs(&plan.job);
        let names: BTreeSet<&str> = plan.recipe.outputs.iter().map(|output| output.name()).collect();
        let mut found: BTreeMap<SegmentId, BTreeSet<&str>> = BTreeMap::new();
        for key in listed {
            let Some((segment, name)) = key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            if let (Ok(segment), true) = (segment.parse(), names.contains(name)) {
                found.entry(segment).or_default().insert(name);
            }
        }
        let done = plan.segments.iter().filter(|segment| found.get(&SegmentId::Video(segment.index)).is_some_and(|have| have.len() == names.len()));
        Self { done: u32::try_from(done.count()).unwrap_or(u32::MAX), total: u32::try_from(plan.segments.len()).unwrap_or(u32::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::JobId, plan, recipe::Recipe};

    #[test]
    fn a_segment_counts_when_every_output_of_the_recipe_is_there() {
        let job = JobId::of("b", "k", "e", "default");
        let recipe = Recipe::parse(
            "default",
            "default.yaml",
            "summary: s\noutputs:\n  - {name: a.mp4, kind: transcode, height: 360}\n  - {name: b.jpg, kind: contact_sheet}\n",
        )
        .unwrap();
        let segment = |index| plan::Segment { index, sha256: String::new(), bytes: 1, parts: 1, frames: 1, first_pts: 0, last_pts: 0, end_pts: 1 };
        let video = plan::Video {
            codec: "h264".into(),
            width: 2,
            height: 2,
            rotation: 0,
            pixel_format: "yuv420p".into(),
            frames: 2,
            time_base: "1/2".into(),
            start_pts: 0,
            duration_s: 1.0,
            average_frame_rate: "2/1".into(),
            variable: false,
        };
        let plan = Plan {
            version: 1,
            job: job.clone(),
            bucket: "b".into(),
            key: "k".into(),
            etag: "e".into(),
            recipe,
            video,
            audio: None,
            segments: vec![segment(0), segment(1)],
        };
        let key = |segment, name| keys::segment_output(&job, SegmentId::Video(segment), name);
        let listed = [key(0, "a.mp4"), key(0, "b.jpg"), key(1, "a.mp4"), key(1, "other"), key(7, "a.mp4"), "work/x/out/00001/b.jpg".to_owned()];
        let progress = Progress::of(&plan, listed.iter().map(String::as_str));
        assert_eq!(progress, Progress { done: 1, total: 2 });
        assert_eq!(Plan::from_bytes(&plan.to_bytes().unwrap()).unwrap(), plan);
    }
}
