//! The agent's only judgement: from what is wanted and what is, the steps between. Pure: no clock, no disk, no processes.
//!
//! A step is taken, the world is looked at again, and this is asked again; nothing is remembered here. A world that is
//! as wanted yields no step.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalogue::Fencing;
use crate::clock::Instant;
use crate::mutant;
use crate::slot::Slot;

#[cfg(test)]
mod tests;

/// What the coordinators want of one slot on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The fencing token of the wanted holder.
    pub generation: u64,
    /// What two copies would do.
    pub fencing: Fencing,
    /// The volume it owns, by id.
    pub volume: Option<String>,
    /// The gate: open or not. It starts things, it never stops one.
    pub start: bool,
    /// Which gate is closed, for a person.
    pub waiting_on: String,
    /// Stop and give it back.
    pub stop: bool,
}

/// The process of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Process {
    /// Nothing of it is left.
    #[default]
    None,
    /// It runs.
    Running {
        /// As which generation it was started.
        generation: u64,
    },
    /// It was asked to end.
    Stopping {
        /// As which generation it was started.
        generation: u64,
        /// When it was asked.
        since: Instant,
    },
    /// Its first process is gone, others of its session may be left.
    Leftovers,
}

/// What is, of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its process.
    pub process: Process,
    /// Highest generation accepted, persisted.
    pub accepted: u64,
    /// Highest generation given back, persisted.
    pub released: u64,
    /// Deadline of its lease, if it was named in an acknowledgement since the agent started.
    pub lease: Option<Instant>,
    /// Its volume is attached.
    pub volume_there: bool,
    /// The role is in this image.
    pub known_role: bool,
    /// Its last end without being asked, and how many in a row.
    pub crashed: Option<(Instant, u32)>,
    /// How long it may take to end when asked.
    pub stop_timeout: Duration,
}

/// One thing to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Render and start it.
    Start {
        /// As this generation.
        generation: u64,
        /// Killed at this instant unless renewed; exclusive slots only.
        deadline: Option<Instant>,
    },
    /// Ask it to end.
    Stop,
    /// Kill everything of it.
    Kill,
    /// Persist that it is given back, then say so.
    Release {
        /// Up to this generation.
        generation: u64,
    },
    /// Nothing can be done yet.
    Wait(Waiting),
}

/// What a slot waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// A gate that the coordinators keep.
    Gate(String),
    /// Its volume to be attached.
    Volume(String),
    /// The first acknowledgement that names it.
    Lease,
    /// The pause after a crash, to end at this instant.
    Backoff(Instant),
    /// An image that has the role.
    Role,
    /// It is older than what was accepted or given back: never.
    Refused {
        /// Wanted.
        generation: u64,
        /// Known here.
        known: u64,
    },
}

/// An action on a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub slot: Slot,
    /// What.
    pub action: Action,
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The pause before start number `crashes + 1`: 0.5 s doubled up to 15 s.
pub fn pause(crashes: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << crashes.saturating_sub(1).min(10));
    doubled.min(LONGEST_PAUSE)
}

/// The steps from what is to what is wanted, in the order of the slots' names. `observed` holds every slot that is wanted or of
/// which something is known here; one that is missing counts as a slot of which nothing is.
pub fn reconcile(desired: &BTreeMap<Slot, Assignment>, observed: &BTreeMap<Slot, Observed>, now: Instant) -> Vec<Step> {
    let mut steps = Vec::new();
    for (slot, seen) in observed {
        let action = match desired.get(slot) {
            Some(wanted) => one(wanted, seen, now),
            None => unwanted(seen, now),
        };
        steps.extend(action.map(|action| Step { slot: slot.clone(), action }));
    }
    steps
}

/// A slot that is no longer ours: it was fenced or forgotten. It ends; nobody waits for our word.
fn unwanted(seen: &Observed, now: Instant) -> Option<Action> {
    match seen.process {
        Process::None => None,
        _ => end(seen, now),
    }
}

fn one(wanted: &Assignment, seen: &Observed, now: Instant) -> Option<Action> {
    let running = match seen.process {
        Process::Running { generation } => Some(generation),
        _ => None,
    };
    if wanted.generation < seen.accepted && !mutant!("lower-generation-taken") {
        // What runs, if anything, is of a newer generation: this word is old.
        return Some(refused(wanted, seen.accepted));
    }
    if wanted.stop {
        return match seen.process {
            Process::None if seen.released >= wanted.generation => None,
            Process::None => Some(Action::Release { generation: wanted.generation }),
            Process::Stopping { .. } if mutant!("word-before-the-end") && seen.released < wanted.generation => {
                Some(Action::Release { generation: wanted.generation })
            }
            _ => end(seen, now),
        };
    }
    if wanted.generation <= seen.released && !mutant!("released-started-again") {
        return match seen.process {
            Process::None => Some(refused(wanted, seen.released)),
            _ => end(seen, now),
        };
    }
    match seen.process {
        Process::Running { .. } if running == Some(wanted.generation) => keep(wanted, seen, now),
        Process::Running { .. } | Process::Stopping { .. } | Process::Leftovers => end(seen, now),
        Process::None => Some(start(wanted, seen, now)),
    }
}

/// A running slot is kept, whatever the gates say. An exclusive one whose lease is known to be over ends at once: its guard does the same
/// on its own, this is the second pair of eyes. A lease that is not known (the agent has just started) is the guard's alone.
fn keep(wanted: &Assignment, seen: &Observed, now: Instant) -> Option<Action> {
    let unknown = seen.lease.is_none() && mutant!("restart-kills");
    let fenced = wanted.fencing == Fencing::Exclusive || mutant!("quorum-killed-with-lease");
    let over = fenced && (unknown || seen.lease.is_some_and(|deadline| deadline <= now));
    over.then_some(Action::Kill)
}

fn end(seen: &Observed, now: Instant) -> Option<Action> {
    match seen.process {
        Process::None => None,
        Process::Running { .. } => Some(Action::Stop),
        Process::Stopping { since, .. } => (now.since(since) >= seen.stop_timeout).then_some(Action::Kill),
        Process::Leftovers => Some(Action::Kill),
    }
}

fn start(wanted: &Assignment, seen: &Observed, now: Instant) -> Action {
    if !seen.known_role {
        return Action::Wait(Waiting::Role);
    }
    if !wanted.start {
        return Action::Wait(Waiting::Gate(wanted.waiting_on.clone()));
    }
    if let Some(volume) = wanted.volume.as_ref().filter(|_| !seen.volume_there) {
        return Action::Wait(Waiting::Volume(volume.clone()));
    }
    if let Some((at, crashes)) = seen.crashed {
        let until = at.after(pause(crashes));
        if now < until {
            return Action::Wait(Waiting::Backoff(until));
        }
    }
    let exclusive = wanted.fencing == Fencing::Exclusive;
    let deadline = seen.lease.filter(|deadline| exclusive && *deadline > now);
    if exclusive && deadline.is_none() && !mutant!("exclusive-without-lease") {
        return Action::Wait(Waiting::Lease);
    }
    Action::Start { generation: wanted.generation, deadline }
}

fn refused(wanted: &Assignment, known: u64) -> Action {
    Action::Wait(Waiting::Refused { generation: wanted.generation, known })
}
