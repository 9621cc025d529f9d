//! The fail points by name, where they strike, and how one is armed. `tests` hold the lists against the sources.

use crate::dice::Dice;

/// What a point can do besides ending its thread or being late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Can {
    /// Nothing.
    Panic,
    /// Answer with an error.
    Fail,
}

use Can::{Fail, Panic};

/// In storage, raft and peers: what a register server and a coordinator have.
pub const LOG: &[(&str, Can)] = &[
    ("applied::flush", Panic),
    ("applied::insert", Panic),
    ("disk::bootstrap", Panic),
    ("disk::save_applied", Panic),
    ("disk::snapshot_received", Panic),
    ("disk::snapshot_saved", Panic),
    ("log::compact", Panic),
    ("log::remove_segments", Panic),
    ("log::replay", Panic),
    ("log::reset", Panic),
    ("log::roll", Fail),
    ("log::roll_rename", Panic),
    ("log::rolled", Panic),
    ("log::sync", Fail),
    ("log::synced", Panic),
    ("log::write", Fail),
    ("node::advance", Panic),
    ("node::applied", Panic),
    ("node::install", Panic),
    ("node::persist", Panic),
    ("node::persisted", Panic),
    ("node::promised", Panic),
    ("node::ready", Panic),
    ("node::sent", Panic),
    ("node::snapshot", Panic),
    ("peers::connect", Panic),
    ("peers::send", Fail),
    ("peers::step", Panic),
    ("peers::stream", Fail),
    ("task::answer", Panic),
    ("task::leadership", Panic),
    ("task::propose", Panic),
    ("task::read_round", Panic),
    ("task::step", Panic),
    ("task::tick", Panic),
];

/// In a coordinator's conversations and its control loop.
pub const COORDINATOR: &[(&str, Can)] = &[
    ("agents::acknowledge", Panic),
    ("agents::confirmed", Panic),
    ("agents::heartbeat", Panic),
    ("agents::hello", Panic),
    ("agents::registered", Panic),
    ("agents::released", Fail),
    ("control::condemn", Panic),
    ("control::judge", Panic),
    ("control::plan", Panic),
    ("control::propose_plan", Panic),
    ("leader::propose", Panic),
    ("leader::proposed", Panic),
];

/// In an agent.
pub const AGENT: &[(&str, Can)] = &[
    ("agent_control::consider", Panic),
    ("agent_control::desired_kept", Panic),
    ("agent_control::keep_desired", Panic),
    ("agent_control::publish_hosts", Panic),
    ("agent_control::report", Panic),
    ("agent_control::turn", Panic),
    ("durable::rename", Fail),
    ("durable::renamed", Panic),
    ("durable::write", Fail),
    ("executor::kill", Panic),
    ("executor::release", Panic),
    ("executor::rendered", Panic),
    ("executor::start", Panic),
    ("executor::stop", Panic),
    ("generations::keep", Panic),
    ("generations::kept", Panic),
    ("generations::open", Panic),
    ("session::acknowledged", Panic),
    ("session::before_it_leaves", Panic),
    ("session::connect", Panic),
    ("session::desired", Panic),
    ("session::heartbeat", Panic),
    ("session::hello", Panic),
    ("session::renew_guards", Panic),
    ("session::welcomed", Panic),
    ("supervisor::adopted", Panic),
    ("supervisor::recorded", Panic),
    ("supervisor::spawned", Panic),
    ("supervisor::start", Panic),
];

/// A setting for `FAILPOINTS`.
pub struct Armed {
    pub text: String,
    /// The process is expected to end by it. Where it is not, it sleeps by it once the point has had its effect, and the preload notes that.
    pub ends: bool,
}

impl Armed {
    /// Whether the point had its effect. `ended`: the process has; `slept`: it was seen to sleep by the point (`Hardware::slept`).
    pub fn struck(&self, ended: bool, slept: bool) -> bool {
        if self.ends { ended } else { slept }
    }
}

/// One point of the log, after a number of passes, with one effect.
pub fn arm(dice: &mut Dice) -> Armed {
    one(dice, LOG)
}

/// One point of a coordinator.
pub fn arm_coordinator(dice: &mut Dice) -> Armed {
    let of = if dice.below(2) == 0 { LOG } else { COORDINATOR };
    one(dice, of)
}

/// One point of an agent.
pub fn arm_agent(dice: &mut Dice) -> Armed {
    one(dice, AGENT)
}

fn one(dice: &mut Dice, of: &[(&str, Can)]) -> Armed {
    let (name, can) = *dice.pick(of);
    let passes = *dice.pick(&[0, 1, 2, 3, 5, 10, 20, 50]);
    // Up to 197, and a length that nobody else sleeps: by it the preload knows the point.
    let late_ms = dice.below(20) * 10 + 7;
    let of_disk = name.starts_with("log::") || name.starts_with("durable::");
    match (dice.below(3), can) {
        // Late when it is passed first, and one time in five from then on.
        (0, _) => Armed { text: format!("{name}=1*sleep({late_ms})->20%sleep({late_ms})"), ends: false },
        // The disk's errors end a process.
        (1, Fail) if of_disk => Armed { text: format!("{name}={passes}*off->1*return->off"), ends: true },
        // A message that is dropped does not; that the point was passed once more tells of it.
        (1, Fail) => Armed { text: format!("{name}={passes}*off->1*return->1*sleep({late_ms})->off"), ends: false },
        _ => Armed { text: format!("{name}={passes}*off->1*panic->off"), ends: true },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// Names in the sources below `folders`, and whether each can answer with an error.
    fn in_sources(folders: &[&str]) -> BTreeSet<(String, bool)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let found = Command::new("grep").args(["-rhoE", "fail_point!\\(\"[a-z_:]+\"(, )?"]).args(folders).current_dir(root).output().unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        text.lines().filter_map(|line| line.split('"').nth(1).map(|name| (name.to_owned(), line.ends_with(", ")))).collect()
    }

    fn listed(lists: &[&[(&str, Can)]]) -> BTreeSet<(String, bool)> {
        lists.iter().flat_map(|list| list.iter()).map(|(name, can)| ((*name).to_owned(), *can == Fail)).collect()
    }

    #[test]
    fn a_point_that_ends_nothing_sleeps_for_one_length_of_its_own_and_is_struck_by_nothing_else() {
        let mut dice = Dice::new(1);
        for _ in 0..1000 {
            let armed = arm(&mut dice);
            let sleeps: Vec<u64> = armed.text.split("sleep(").skip(1).filter_map(|rest| rest.split(')').next()?.parse().ok()).collect();
            assert_eq!(armed.ends, sleeps.is_empty(), "{}", armed.text);
            assert!(sleeps.iter().all(|ms| ms % 10 == 7 && *ms == sleeps[0]), "{}", armed.text);
            assert_eq!([armed.struck(true, false), armed.struck(false, true)], [armed.ends, !armed.ends]);
        }
    }

    #[test]
    fn every_fail_point_of_the_sources_is_listed_and_none_else() {
        assert_eq!(listed(&[LOG]), in_sources(&["coordinator/src/storage", "coordinator/src/raft", "coordinator/src/peers.rs", "coordinator/src/peers"]));
        assert_eq!(listed(&[LOG, COORDINATOR]), in_sources(&["coordinator/src"]));
        assert_eq!(listed(&[AGENT]), in_sources(&["agent/src"]));
        assert!(LOG.len() + COORDINATOR.len() + AGENT.len() >= 50);
    }
}
