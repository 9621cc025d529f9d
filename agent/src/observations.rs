//! What the heartbeat says of a slot, from what the supervisor and the probe know. Pure.

use std::time::Duration;

use vp_proto::v1::{Phase, SlotObservation};

use crate::clock::Instant;
use crate::generations::Known;
use crate::probes::Health;
use crate::reconcile::{Assignment, Process, Waiting};
use crate::slot::Slot;
use crate::supervisor::Status;

/// One bad answer in a row is noise of a busy machine; the second is news.
const FAILURES_THAT_COUNT: u32 = 2;

/// A run shorter than this is never steady.
const STEADY: Duration = Duration::from_secs(30);

/// After how long a process is steady, so that its end counts as the first again: one that ends each time before it had to be ready never was.
pub fn steady_after(start_timeout: Duration) -> Duration {
    STEADY.max(start_timeout)
}

/// Everything known of one slot.
pub struct Facts<'a> {
    /// Which.
    pub slot: &'a Slot,
    /// Wanted generation, or the running one when nothing is wanted.
    pub generation: u64,
    /// Asked to stop and given back.
    pub released: bool,
    /// Its process.
    pub status: Status,
    /// Its probe, while it runs.
    pub health: Option<Health>,
    /// What it waits for.
    pub waiting: Option<&'a Waiting>,
    /// The last failure, for a person.
    pub failure: &'a str,
    /// Starts after the first.
    pub restarts: u32,
    /// Ends by itself, none of which came after a steady run.
    pub ends: u32,
    /// Until then a failing probe means "starting".
    pub start_timeout: Duration,
}

impl Waiting {
    /// A sentence for a person.
    pub fn sentence(&self, now: Instant) -> String {
        match self {
            Self::Gate(gate) => format!("waiting for {gate}"),
            Self::Volume(volume) => format!("waiting for volume {volume} to be attached"),
            Self::Lease => "waiting for the coordinators to grant its lease".into(),
            Self::Backoff(until) => format!("starts again in {:.1} s", until.since(now).as_secs_f64()),
            Self::Role => "this image has no such role".into(),
            Self::Refused { generation, known } => format!("generation {generation} is refused: {known} was accepted or given back here"),
        }
    }
}

/// What the agent says of an assignment beside its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It would hold the slot and wants its lease renewed.
    Holds,
    /// It has given the slot back: our word.
    GivenBack {
        /// At which generation.
        generation: u64,
    },
}

/// None: what is wanted is older than what is known here.
pub fn claim(wanted: &Assignment, known: Known) -> Option<Claim> {
    if wanted.stop && known.released >= wanted.generation {
        return Some(Claim::GivenBack { generation: wanted.generation });
    }
    (wanted.generation >= known.accepted && wanted.generation > known.released).then_some(Claim::Holds)
}

/// The observation at `now`.
pub fn observation(facts: &Facts<'_>, now: Instant) -> SlotObservation {
    let (phase, generation) = match facts.status.process {
        Process::Running { generation } => (running(facts, now), generation),
        Process::Stopping { generation, .. } => (Phase::Stopping, generation),
        Process::Leftovers => (Phase::Stopping, facts.generation),
        Process::None if facts.released => (Phase::Stopped, facts.generation),
        Process::None => match facts.waiting {
            Some(Waiting::Backoff(_)) => (Phase::Backoff, facts.generation),
            _ => (Phase::Waiting, facts.generation),
        },
    };
    let health = facts.health.clone().unwrap_or_default();
    let waits = facts.waiting.map(|waiting| waiting.sentence(now)).unwrap_or_default();
    let message = match phase {
        Phase::Healthy => String::new(),
        Phase::Starting | Phase::Unhealthy => health.message,
        _ if facts.failure.is_empty() => waits,
        _ if waits.is_empty() => facts.failure.to_owned(),
        _ => format!("{}; {waits}", facts.failure),
    };
    SlotObservation {
        slot: Some(facts.slot.to_wire()),
        generation,
        phase: phase as i32,
        message,
        pid: facts.status.pid,
        restarts: facts.restarts,
        ends_in_a_row: if runs_steadily(facts, now) { 0 } else { facts.ends },
        facts: health.facts.into_iter().collect(),
    }
}

fn runs_steadily(facts: &Facts<'_>, now: Instant) -> bool {
    matches!(facts.status.process, Process::Running { .. }) && now.since(facts.status.started) >= steady_after(facts.start_timeout)
}

fn running(facts: &Facts<'_>, now: Instant) -> Phase {
    let Some(health) = &facts.health else { return Phase::Starting };
    let overdue = now.since(facts.status.started) > facts.start_timeout;
    match (health.ever_good, health.failures) {
        (true, failures) if failures < FAILURES_THAT_COUNT => Phase::Healthy,
        (true, _) => Phase::Unhealthy,
        (false, failures) if overdue && failures > 0 => Phase::Unhealthy,
        (false, _) => Phase::Starting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a slot that has ended seven times in a row, whose role may take a minute to start.
    fn seen(process: Process, health: Option<Health>, waiting: Option<Waiting>, ran_s: u64) -> SlotObservation {
        let slot = Slot::new("kafka", 1).unwrap();
        let now = Instant(1_000_000_000_000);
        let facts = Facts {
            slot: &slot,
            generation: 3,
            released: false,
            status: Status { process, pid: 1, started: Instant(now.0 - ran_s * 1_000_000_000) },
            health,
            waiting: waiting.as_ref(),
            failure: "",
            restarts: 7,
            ends: 7,
            start_timeout: Duration::from_secs(60),
        };
        observation(&facts, now)
    }

    fn phase(process: Process, health: Option<Health>, waiting: Option<Waiting>, ran_s: u64) -> Phase {
        seen(process, health, waiting, ran_s).phase()
    }

    const RUNNING: Process = Process::Running { generation: 3 };

    fn health(ever_good: bool, failures: u32) -> Option<Health> {
        Some(Health { ever_good, failures, ..Health::default() })
    }

    #[test]
    fn a_role_is_starting_until_its_probe_was_good_or_its_time_is_up() {
        assert_eq!(phase(RUNNING, None, None, 1), Phase::Starting);
        assert_eq!(phase(RUNNING, health(false, 9), None, 59), Phase::Starting);
        assert_eq!(phase(RUNNING, health(false, 9), None, 61), Phase::Unhealthy);
        assert_eq!(phase(RUNNING, health(true, 0), None, 1), Phase::Healthy);
    }

    #[test]
    fn one_bad_answer_is_noise_and_two_are_unhealthy() {
        assert_eq!(phase(RUNNING, health(true, 1), None, 5), Phase::Healthy);
        assert_eq!(phase(RUNNING, health(true, 2), None, 5), Phase::Unhealthy);
    }

    #[test]
    fn who_ends_before_its_role_had_to_be_ready_was_never_steady() {
        assert_eq!(steady_after(Duration::from_secs(90)), Duration::from_secs(90));
        assert_eq!(steady_after(Duration::from_secs(1)), STEADY, "and nobody is within half a minute");
    }

    #[test]
    fn ends_in_a_row_are_told_until_a_process_runs_steadily() {
        let ends = |process, ran_s| seen(process, None, None, ran_s).ends_in_a_row;
        assert_eq!((ends(RUNNING, 59), ends(RUNNING, 60)), (7, 0));
        assert_eq!(ends(Process::None, 61), 7, "what does not run is not steady");
    }

    #[test]
    fn a_slot_without_a_process_waits_or_backs_off() {
        assert_eq!(phase(Process::None, None, Some(Waiting::Lease), 0), Phase::Waiting);
        assert_eq!(phase(Process::None, None, Some(Waiting::Backoff(Instant(0))), 0), Phase::Backoff);
    }
}
