//! The slice of the simulation that every test run has: a few hundred seeds, the replay, and the picture.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

use std::time::Duration;

use vp_sim::{
    Watch, run,
    runs::{Order, all},
};

/// Seeds in the slice; `VP_SIM_SEEDS` asks for another number.
const SEEDS: u64 = 200;

#[test]
fn no_seed_of_the_slice_breaks_a_rule() {
    let seeds = std::env::var("VP_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let total = all(&Order { first: 0, seeds, within: Duration::from_secs(600), threads, mutant: None });
    println!("{total}");
    assert_eq!(total.violations, []);
    assert_eq!(total.seeds, seeds);
    // A simulation in which nothing happens would break no rule either.
    assert!(total.elections > seeds && total.moves > 0 && total.faults.len() > 10, "{total}");
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for seed in [1, 2, 3, 11, 12] {
        let (first, trace, _) = run(seed, Watch::Everything);
        let (second, again, _) = run(seed, Watch::Everything);
        assert_eq!(trace.unwrap(), again.unwrap(), "seed {seed}");
        assert_eq!(first.hash, second.hash, "seed {seed}");
        // Watching changes nothing.
        assert_eq!(run(seed, Watch::Outcome).0.hash, first.hash, "seed {seed}");
    }
}

#[test]
fn two_seeds_are_two_runs() {
    assert_ne!(run(1, Watch::Outcome).0.hash, run(2, Watch::Outcome).0.hash);
}

#[test]
fn a_picture_names_every_coordinator_and_slot() {
    let (outcome, _, history) = run(4, Watch::Everything);
    let (svg, text) = (history.svg(&outcome), history.text());
    for name in ["coordinator 1", "coordinator 3", "zookeeper-1", "kafka-3", "stream-1", "worker-2"] {
        assert!(svg.contains(name) && text.contains(name), "{name}\n{text}");
    }
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}

/// Those that the first seeds notice, one of each kind; `make mutants` plants all of them.
#[cfg(feature = "mutants")]
#[test]
fn bugs_planted_by_name_are_noticed_within_a_hundred_seeds() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for name in [
        "no-sync-before-send",
        "commit-before-quorum",
        "events-lost-in-snapshot",
        "half-a-lease",
        "exclusive-without-lease",
        "quorum-killed-with-lease",
        "silence-moves-a-quorum-role",
        "unknown-is-terminated",
        "generation-not-raised",
        "volume-detached-from-holder",
        "brake-off",
        "brake-opens-at-once",
        "old-member-on-an-empty-disk",
        "joiner-not-in-sync",
    ] {
        let total = all(&Order { first: 0, seeds: 100, within: Duration::from_secs(60), threads, mutant: Some(name) });
        let (seed, rule, _) = total.violations.first().unwrap_or_else(|| panic!("{name}: nothing noticed it in {} seeds", total.seeds));
        println!("{name}: seed {seed}: {rule}");
    }
}
