//! The lease's deadline under what can befall a machine: a full disk, clocks that jump, no memory, a network cut one way. The real agent and its guard; killed,
//! frozen and restarted agents are in `agent.rs`.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod cluster;

use std::sync::atomic::Ordering;
use std::time::Instant;

use cluster::hardship::{Memory, SmallDisk, WallClock};
use cluster::{Bed, alive, assignment};
use vp_proto::v1::{Assignment, Phase, SlotObservation};

const SOLID: &str = r#"summary: Keeps a file fresh.
fencing: exclusive
fenced_sinks: true
environment: {}
command: [sh, -c, "while :; do echo \"beat=$VP_GENERATION\" > {{ run_dir }}/beat; sleep 0.1; done"]
stop: {signal: TERM, timeout_ms: 1000}
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "beat=(?<beat>[0-9]+)"}}
"#;

/// Takes memory, a child of 8 MiB after the other, each smaller than an agent, until one of them was killed; then it says by which signal.
const HOG: &str = r#"summary: Takes all memory.
fencing: quorum
command: [python3, -c, "import os, time\ngone = 0\nwhile not gone:\n r, w = os.pipe()\n if os.fork() == 0:\n  much = b'x' * (8 << 20)\n  os.write(w, b'.')\n  while 1: time.sleep(9)\n os.close(w)\n os.read(r, 1)\n os.close(r)\n gone, how = os.waitpid(-1, os.WNOHANG)\nwhile 1:\n open('beat', 'w').write('killed=' + str(how))\n time.sleep(0.1)"]
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "killed=(?<killed>[0-9]+)"}}
"#;

const TEN_YEARS_S: i64 = 10 * 365 * 24 * 3600;

fn running(bed: &mut Bed) -> SlotObservation {
    bed.want(vec![assignment("solid", 7, "exclusive")]);
    bed.reported("solid-1", Phase::Healthy)
}

fn restarted(bed: &Bed, before: &SlotObservation) {
    bed.eventually("it runs again", || bed.script.observation("solid-1").filter(|o| o.phase() == Phase::Healthy && o.pid != before.pid));
}

fn told(bed: &Bed, slot: &str) -> SlotObservation {
    bed.eventually("the full disk is told", || bed.script.observation(slot).filter(|o| o.message.contains("cannot be kept: No space left on device")))
}

#[test]
fn on_a_full_disk_an_exclusive_role_lives_by_its_lease_and_nothing_new_is_taken() {
    let calm = SOLID.replace("exclusive", "quorum").replace("fenced_sinks: true\n", "");
    let mut bed = Bed::new(&[("solid", SOLID), ("calm", &calm)]);
    bed.kill_agent();
    let disk = SmallDisk::mount(&bed.path("root/agent"));
    bed.start_agent();
    let before = running(&mut bed);
    disk.fill();
    bed.want(vec![assignment("solid", 7, "exclusive"), assignment("calm", 8, "quorum")]);
    assert_eq!(told(&bed, "calm-1").phase(), Phase::Waiting);
    assert_eq!(told(&bed, "solid-1").phase(), Phase::Healthy);
    bed.outlive_a_lease();
    assert!(alive(before.pid) && alive(bed.agent_pid()), "both are those of before");
    assert!(bed.processes("calm-1", "").is_empty(), "a set that is not kept is not acted on");
    bed.stop_coordinator();
    bed.dies_by_its_lease("solid-1", Instant::now());
    assert!(alive(bed.agent_pid()));
    disk.empty();
    bed.script.acknowledge(true);
    bed.start_coordinator();
    let calm = bed.reported("calm-1", Phase::Healthy);
    assert_eq!(calm.message, "");
    restarted(&bed, &before);
    let warnings = bed.log().lines().filter(|line| line.contains("the agent goes on with what it has kept before")).count();
    assert_eq!(warnings, 1, "once a minute, not once a try");
}

#[test]
fn a_slot_is_given_back_only_when_a_full_disk_has_room_again() {
    let mut bed = Bed::new(&[("solid", SOLID)]);
    bed.kill_agent();
    let disk = SmallDisk::mount(&bed.path("root/agent"));
    bed.start_agent();
    let before = running(&mut bed);
    disk.fill();
    bed.want(vec![Assignment { stop: true, ..assignment("solid", 7, "exclusive") }]);
    told(&bed, "solid-1");
    bed.outlive_a_lease();
    assert!(alive(before.pid) && bed.script.released().is_empty());
    disk.empty();
    bed.eventually("given back", || bed.script.released().first().cloned().filter(|pair| *pair == ("solid-1".to_owned(), 7)));
    assert!(bed.processes("solid-1", "").is_empty());
}

/// First under acknowledgements, then just as they end; both from the true time.
fn the_wall_clock_jumps(seconds: i64, then: i64) {
    let clock = WallClock::new();
    let [(preload, library), (name, file)] = clock.environment();
    let environment = format!("environment: {{{preload}: {}, {name}: {}}}", library.display(), file.display());
    // What the role writes is dated by the true clock: to the agent it is years old, or of the future.
    let solid = SOLID.replace("environment: {}", &environment).replace("max_age_ms: 3000", "max_age_ms: 1000000000000");
    let mut bed = Bed::new(&[("solid", &solid)]);
    bed.kill_agent();
    bed.environment = clock.environment().into();
    bed.start_agent();
    let before = running(&mut bed);
    assert!(clock.is_read_by(bed.agent_pid()) && clock.is_read_by(before.pid), "agent and guard");
    clock.jump(seconds);
    // Whatever it writes down next tells the time it believes in.
    bed.want(vec![assignment("solid", 7, "exclusive")]);
    let year = |line: &str| line.get(..4).and_then(|year| year.parse::<i64>().ok());
    bed.eventually("the agent's clock has jumped", || {
        let log = bed.log();
        let (first, last) = (log.lines().find_map(year)?, log.lines().rev().find_map(year)?);
        ((last - first) * seconds.signum() >= 9).then_some(())
    });
    bed.outlive_a_lease();
    let after = bed.reported("solid-1", Phase::Healthy);
    assert_eq!((after.pid, after.restarts, alive(before.pid)), (before.pid, 0, true));
    bed.stop_coordinator();
    clock.jump(then);
    bed.dies_by_its_lease("solid-1", Instant::now());
}

#[test]
fn a_wall_clock_set_ten_years_forward_stops_nothing_and_the_deadline_holds_when_it_is_set_back() {
    the_wall_clock_jumps(TEN_YEARS_S, -TEN_YEARS_S);
}

#[test]
fn a_wall_clock_set_ten_years_back_stops_nothing_and_the_deadline_holds() {
    the_wall_clock_jumps(-TEN_YEARS_S, -TEN_YEARS_S);
}

#[test]
fn when_memory_runs_out_a_role_is_killed_before_agent_and_guard_and_the_deadline_holds() {
    let memory = Memory::of(192 << 20);
    let mut bed = Bed::new(&[("solid", SOLID), ("hog", HOG)]);
    memory.take(bed.agent_pid());
    let before = running(&mut bed);
    bed.want(vec![assignment("solid", 7, "exclusive"), assignment("hog", 8, "quorum")]);
    let hog = bed.reported("hog-1", Phase::Healthy);
    assert_eq!(hog.facts.get("killed").map(String::as_str), Some("9"));
    bed.outlive_a_lease();
    let after = bed.reported("solid-1", Phase::Healthy);
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
    assert!(alive(bed.agent_pid()) && alive(before.pid));
    bed.stop_coordinator();
    bed.dies_by_its_lease("solid-1", Instant::now());
}

#[test]
fn when_heartbeats_arrive_and_acknowledgements_do_not_the_deadline_holds() {
    let mut bed = Bed::behind_a_wire(&[("solid", SOLID)]);
    let before = running(&mut bed);
    bed.wire(true, false);
    let cut = Instant::now();
    let come = bed.script.heartbeats.load(Ordering::SeqCst);
    bed.within(cluster::lease_and_slack(), "heartbeats still arrive", || (bed.script.heartbeats.load(Ordering::SeqCst) > come).then_some(()));
    bed.dies_by_its_lease("solid-1", cut);
    bed.wire(true, true);
    restarted(&bed, &before);
}

#[test]
fn when_heartbeats_do_not_arrive_the_deadline_holds() {
    let mut bed = Bed::behind_a_wire(&[("solid", SOLID)]);
    let before = running(&mut bed);
    bed.wire(false, true);
    let cut = Instant::now();
    let come = bed.script.heartbeats.load(Ordering::SeqCst);
    bed.dies_by_its_lease("solid-1", cut);
    assert!(bed.script.heartbeats.load(Ordering::SeqCst) <= come + 1, "none but one that was under way");
    bed.wire(true, true);
    restarted(&bed, &before);
}
