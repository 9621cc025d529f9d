//! A disk that refuses to keep the agent's state, as a full one does: when to try again, when to warn, what the heartbeat says meanwhile. What is not kept
//! is neither taken nor given back; what is kept holds. No file is touched here: `control` does the writing.

use std::time::Duration;

use vp_proto::v1;

use crate::clock::Instant;
use crate::durable::FileError;
use crate::slot::Slot;

const AGAIN: Duration = Duration::from_secs(1);
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Something that could not be kept.
#[derive(Debug)]
pub struct Unkept {
    sentence: String,
    /// Slots of the set that could therefore not be taken.
    slots: Vec<v1::SlotGeneration>,
}

impl Unkept {
    /// What the disk said, and the desired set that it was said of, if it was one.
    pub fn new(error: &FileError, set: Option<&v1::Desired>) -> Self {
        let named = |wanted: &v1::Assignment| Some(Slot::try_from(wanted.slot.as_ref()?).ok()?.at(wanted.generation));
        let slots = set.iter().flat_map(|set| &set.assignments).filter_map(named).collect();
        Self { sentence: format!("the agent's state cannot be kept: {} ({error})", error.source), slots }
    }
}

#[derive(Debug)]
struct Refusal {
    unkept: Unkept,
    tried: Instant,
    warned: Instant,
}

/// The disk, as the last try found it.
#[derive(Debug, Default)]
pub struct Disk {
    refusal: Option<Refusal>,
}

impl Disk {
    /// Whether it may be written to at `now`: always, but only each second while it refuses.
    pub fn is_due(&self, now: Instant) -> bool {
        self.refusal.as_ref().is_none_or(|refusal| now.since(refusal.tried) >= AGAIN)
    }

    /// What was to be kept at `now` was kept, or some of it was not.
    pub fn tried(&mut self, unkept: Option<Unkept>, now: Instant) {
        let before = self.refusal.take();
        let Some(unkept) = unkept else {
            if before.is_some() {
                tracing::info!("the agent's state can be kept again");
            }
            return;
        };
        let warned = before.map(|before| before.warned).filter(|warned| now.since(*warned) < WARN_EVERY);
        if warned.is_none() {
            tracing::warn!(reason = unkept.sentence, "the agent goes on with what it has kept before");
        }
        self.refusal = Some(Refusal { unkept, tried: now, warned: warned.unwrap_or(now) });
    }

    /// Says so in the report of every slot, also of those that could not be taken: nothing of them runs here.
    pub fn tell(&self, slots: &mut Vec<v1::SlotObservation>) {
        let Some(Refusal { unkept, .. }) = &self.refusal else { return };
        for wanted in &unkept.slots {
            if !slots.iter().any(|said| said.slot == wanted.slot) {
                let (slot, generation) = (wanted.slot.clone(), wanted.generation);
                slots.push(v1::SlotObservation { slot, generation, phase: v1::Phase::Waiting as i32, ..v1::SlotObservation::default() });
            }
        }
        for said in slots {
            let rest = if said.message.is_empty() { String::new() } else { format!("; {}", said.message) };
            said.message = format!("{}{rest}", unkept.sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> FileError {
        FileError { what: "write", path: "/agent/desired.pb.new".into(), source: std::io::Error::from_raw_os_error(28) }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    fn slot() -> Option<v1::SlotRef> {
        Some(v1::SlotRef { role: "kafka".into(), index: 1 })
    }

    #[test]
    fn a_disk_that_refuses_is_tried_again_a_second_later_and_a_good_one_always() {
        let mut disk = Disk::default();
        assert!(disk.is_due(at(5)));
        disk.tried(Some(Unkept::new(&full(), None)), at(5));
        assert!(!disk.is_due(at(5)) && disk.is_due(at(6)));
        disk.tried(None, at(6));
        assert!(disk.is_due(at(6)));
    }

    #[test]
    fn a_disk_that_goes_on_refusing_is_warned_of_once_a_minute() {
        let mut disk = Disk::default();
        let warned = [0, 1, 59, 60, 61].map(|second| {
            disk.tried(Some(Unkept::new(&full(), None)), at(second));
            disk.refusal.as_ref().map(|refusal| refusal.warned)
        });
        assert_eq!(warned, [0, 0, 0, 60, 60].map(|second| Some(at(second))));
    }

    #[test]
    fn every_slot_is_told_why_also_one_that_could_not_be_taken() {
        let assignments = vec![v1::Assignment { slot: slot(), generation: 9, ..v1::Assignment::default() }];
        let set = v1::Desired { assignments, ..v1::Desired::default() };
        let other = v1::SlotObservation { phase: v1::Phase::Unhealthy as i32, message: "no answer".into(), ..v1::SlotObservation::default() };
        let mut disk = Disk::default();
        disk.tried(Some(Unkept::new(&full(), Some(&set))), at(1));
        let mut slots = vec![other.clone()];
        disk.tell(&mut slots);
        let why = "the agent's state cannot be kept: No space left on device (os error 28) (cannot write /agent/desired.pb.new)";
        assert_eq!((slots[0].phase(), slots[0].message.as_str()), (v1::Phase::Unhealthy, format!("{why}; no answer").as_str()));
        assert_eq!((slots[1].slot.clone(), slots[1].generation, slots[1].phase(), slots[1].message.as_str()), (slot(), 9, v1::Phase::Waiting, why));
        disk.tried(None, at(2));
        let mut slots = vec![other.clone()];
        disk.tell(&mut slots);
        assert_eq!(slots, [other]);
    }
}
