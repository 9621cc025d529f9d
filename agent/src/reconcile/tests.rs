//! Tables of situation and expected step, each named as a sentence.

use super::*;

const NOW: Instant = Instant(1_000_000_000_000);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn slot() -> Slot {
    Slot::new("thing", 1).unwrap()
}

fn before(ms: u64) -> Instant {
    Instant(NOW.0 - ms * 1_000_000)
}

fn later(ms: u64) -> Instant {
    NOW.after(Duration::from_millis(ms))
}

fn quorum(generation: u64) -> Assignment {
    Assignment { generation, fencing: Fencing::Quorum, volume: None, start: true, waiting_on: String::new(), stop: false }
}

fn exclusive(generation: u64) -> Assignment {
    Assignment { fencing: Fencing::Exclusive, ..quorum(generation) }
}

fn idle(accepted: u64) -> Observed {
    Observed { process: Process::None, accepted, released: 0, lease: None, volume_there: false, known_role: true, crashed: None, stop_timeout: STOP_TIMEOUT }
}

fn running(generation: u64) -> Observed {
    Observed { process: Process::Running { generation }, ..idle(generation) }
}

fn stopping(generation: u64, ms_ago: u64) -> Observed {
    Observed { process: Process::Stopping { generation, since: before(ms_ago) }, ..idle(generation) }
}

fn action(wanted: Option<Assignment>, seen: Observed) -> Option<Action> {
    let desired = wanted.map(|wanted| (slot(), wanted)).into_iter().collect();
    let steps = reconcile(&desired, &BTreeMap::from([(slot(), seen)]), NOW);
    assert!(steps.len() <= 1, "one step a slot: {steps:?}");
    steps.into_iter().next().map(|step| step.action)
}

fn started(generation: u64) -> Option<Action> {
    Some(Action::Start { generation, deadline: None })
}

fn waiting(on: Waiting) -> Option<Action> {
    Some(Action::Wait(on))
}

#[test]
fn a_quorum_slot_with_an_open_gate_is_started_without_any_lease() {
    assert_eq!(action(Some(quorum(7)), idle(7)), started(7));
}

#[test]
fn a_disposable_slot_needs_no_lease_either() {
    let wanted = Assignment { fencing: Fencing::Disposable, ..quorum(7) };
    assert_eq!(action(Some(wanted), idle(7)), started(7));
}

#[test]
fn a_slot_that_runs_as_wanted_yields_no_step() {
    assert_eq!(action(Some(quorum(7)), running(7)), None);
}

#[test]
fn a_quorum_slot_keeps_running_when_its_lease_is_long_over() {
    assert_eq!(action(Some(quorum(7)), Observed { lease: Some(before(60_000)), ..running(7) }), None);
}

#[test]
fn an_exclusive_slot_that_no_acknowledgement_named_waits() {
    assert_eq!(action(Some(exclusive(7)), idle(7)), waiting(Waiting::Lease));
}

#[test]
fn an_exclusive_slot_starts_with_the_deadline_of_its_lease() {
    let seen = Observed { lease: Some(later(3000)), ..idle(7) };
    assert_eq!(action(Some(exclusive(7)), seen), Some(Action::Start { generation: 7, deadline: Some(later(3000)) }));
}

#[test]
fn an_exclusive_slot_whose_lease_has_just_run_out_is_not_started() {
    assert_eq!(action(Some(exclusive(7)), Observed { lease: Some(NOW), ..idle(7) }), waiting(Waiting::Lease));
}

#[test]
fn a_running_exclusive_slot_is_killed_not_asked_when_its_lease_is_over() {
    assert_eq!(action(Some(exclusive(7)), Observed { lease: Some(before(1)), ..running(7) }), Some(Action::Kill));
}

#[test]
fn a_running_exclusive_slot_adopted_after_a_restart_is_left_to_its_guard() {
    assert_eq!(action(Some(exclusive(7)), running(7)), None);
}

#[test]
fn a_running_exclusive_slot_under_its_lease_is_left_alone() {
    assert_eq!(action(Some(exclusive(7)), Observed { lease: Some(later(1)), ..running(7) }), None);
}

#[test]
fn a_closed_gate_holds_back_a_start_and_says_which() {
    let wanted = Assignment { start: false, waiting_on: "zookeeper".into(), ..quorum(7) };
    assert_eq!(action(Some(wanted), idle(7)), waiting(Waiting::Gate("zookeeper".into())));
}

#[test]
fn a_gate_that_closes_again_stops_nothing_that_runs() {
    assert_eq!(action(Some(Assignment { start: false, ..quorum(7) }), running(7)), None);
}

#[test]
fn a_slot_waits_for_its_volume() {
    let wanted = Assignment { volume: Some("vol-1".into()), ..quorum(7) };
    assert_eq!(action(Some(wanted), idle(7)), waiting(Waiting::Volume("vol-1".into())));
}

#[test]
fn a_slot_starts_once_its_volume_is_there() {
    let wanted = Assignment { volume: Some("vol-1".into()), ..quorum(7) };
    assert_eq!(action(Some(wanted), Observed { volume_there: true, ..idle(7) }), started(7));
}

#[test]
fn a_role_that_the_image_lacks_is_waited_for() {
    assert_eq!(action(Some(quorum(7)), Observed { known_role: false, ..idle(7) }), waiting(Waiting::Role));
}

#[test]
fn a_crashed_slot_waits_out_its_pause() {
    let seen = Observed { crashed: Some((before(499), 1)), ..idle(7) };
    assert_eq!(action(Some(quorum(7)), seen), waiting(Waiting::Backoff(later(1))));
}

#[test]
fn a_crashed_slot_is_started_after_its_pause() {
    assert_eq!(action(Some(quorum(7)), Observed { crashed: Some((before(500), 1)), ..idle(7) }), started(7));
}

#[test]
fn the_pause_doubles_from_half_a_second_to_fifteen() {
    let pauses: Vec<u128> = [1, 2, 3, 5, 6, 7, 1000, u32::MAX].map(|n| pause(n).as_millis()).into();
    assert_eq!(pauses, [500, 1000, 2000, 8000, 15000, 15000, 15000, 15000]);
}

#[test]
fn what_a_crash_left_behind_is_killed_before_anything_starts() {
    assert_eq!(action(Some(quorum(7)), Observed { process: Process::Leftovers, ..idle(7) }), Some(Action::Kill));
}

#[test]
fn a_new_generation_stops_the_old_process_first() {
    assert_eq!(action(Some(quorum(8)), Observed { accepted: 8, ..running(7) }), Some(Action::Stop));
}

#[test]
fn a_new_generation_starts_when_the_old_process_is_gone() {
    assert_eq!(action(Some(quorum(8)), idle(8)), started(8));
}

#[test]
fn a_process_asked_to_end_is_given_its_time() {
    assert_eq!(action(None, stopping(7, 4999)), None);
}

#[test]
fn a_process_that_overstays_its_time_is_killed() {
    assert_eq!(action(None, stopping(7, 5000)), Some(Action::Kill));
}

#[test]
fn a_slot_that_is_wanted_again_while_it_ends_is_not_started_beside_itself() {
    assert_eq!(action(Some(quorum(8)), Observed { accepted: 8, ..stopping(7, 10) }), None);
}

#[test]
fn a_slot_no_longer_named_is_stopped() {
    assert_eq!(action(None, running(7)), Some(Action::Stop));
}

#[test]
fn a_slot_no_longer_named_that_is_gone_is_not_reported() {
    assert_eq!(action(None, idle(7)), None);
}

#[test]
fn a_slot_asked_to_stop_is_stopped_before_it_is_given_back() {
    assert_eq!(action(Some(Assignment { stop: true, ..quorum(7) }), running(7)), Some(Action::Stop));
    assert_eq!(action(Some(Assignment { stop: true, ..quorum(7) }), stopping(7, 10)), None);
    let gone = action(Some(Assignment { stop: true, ..quorum(7) }), idle(7));
    assert_eq!(gone, Some(Action::Release { generation: 7 }));
}

#[test]
fn a_slot_given_back_yields_no_more_steps() {
    let wanted = Assignment { stop: true, ..quorum(7) };
    assert_eq!(action(Some(wanted), Observed { released: 7, ..idle(7) }), None);
}

#[test]
fn leftovers_are_killed_before_our_word_is_given() {
    let wanted = Assignment { stop: true, ..quorum(7) };
    assert_eq!(action(Some(wanted), Observed { process: Process::Leftovers, ..idle(7) }), Some(Action::Kill));
}

#[test]
fn a_stop_ends_an_older_generation_too_and_gives_back_the_asked_one() {
    let wanted = Assignment { stop: true, ..quorum(9) };
    assert_eq!(action(Some(wanted), Observed { accepted: 9, ..running(7) }), Some(Action::Stop));
}

#[test]
fn an_older_generation_than_accepted_is_refused() {
    assert_eq!(action(Some(quorum(6)), idle(7)), waiting(Waiting::Refused { generation: 6, known: 7 }));
}

#[test]
fn an_older_generation_does_not_touch_the_newer_that_runs() {
    assert_eq!(action(Some(quorum(6)), running(7)), waiting(Waiting::Refused { generation: 6, known: 7 }));
    let stop = Assignment { stop: true, ..quorum(6) };
    assert_eq!(action(Some(stop), running(7)), waiting(Waiting::Refused { generation: 6, known: 7 }));
}

#[test]
fn a_generation_given_back_is_never_started_again() {
    assert_eq!(action(Some(quorum(7)), Observed { released: 7, ..idle(7) }), waiting(Waiting::Refused { generation: 7, known: 7 }));
}

#[test]
fn the_generation_after_the_one_given_back_starts() {
    assert_eq!(action(Some(quorum(8)), Observed { released: 7, ..idle(8) }), started(8));
}

#[test]
fn steps_of_several_slots_do_not_disturb_each_other() {
    let other = Slot::new("other", 1).unwrap();
    let desired = BTreeMap::from([(slot(), quorum(7)), (other.clone(), quorum(3))]);
    let observed = BTreeMap::from([(slot(), running(7)), (other.clone(), idle(3))]);
    let steps = reconcile(&desired, &observed, NOW);
    assert_eq!(steps, vec![Step { slot: other, action: Action::Start { generation: 3, deadline: None } }]);
}
