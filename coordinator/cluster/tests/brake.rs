//! When silence may not be believed: the brake by zone and cluster, its release, the cap, and a coordinator that suspects itself.
#[macro_use]
mod situation;
use std::collections::BTreeMap;

use situation::{Situation, entry, node_in, spec, zone};
use vp_cluster::{
    Command, NodeId, Observations,
    liveness::{self, Brake, CAP_WINDOW_MS, judge, lost_after_ms, remember_brake, silent_now, suspected_after_ms, to_terminate},
    observe::{BrakeMemory, CoordinatorSeen, Instance},
    round,
    self_watch::{SelfWatch, pause_limit_ms},
};

/// Nodes named in `silent` (from 1) were last heard longer than the lease ago.
fn silence(zones: &str, silent: &[usize]) -> Situation {
    let mut s = Situation::of(spec(), zones);
    for index in silent {
        s.hear(&format!("i-{index}"), 100_000 - lost_after_ms(4000) - 1);
    }
    s
}

fn given_up(s: &Situation) -> Vec<String> {
    let lost = judge(&s.state, &s.obs).verdicts.into_iter().filter_map(|verdict| match verdict {
        Command::NodeLost { node, .. } => Some(node.0),
        _ => None,
    });
    lost.collect()
}

fn closed(s: &Situation) -> bool {
    judge(&s.state, &s.obs).brake != Brake::Open
}

/// zones, silent nodes, how many are given up at once, whether the brake is closed
type Row = (&'static str, &'static [usize], usize, bool);

fn brake((zones, silent, lost, shut): Row) {
    let s = silence(zones, silent);
    assert_eq!((given_up(&s).len(), closed(&s)), (lost, shut), "{zones} {silent:?}");
}

table! { brake:
    nobody_silent_leaves_it_open => ("abcab", &[], 0, false),
    one_silent_node_is_given_up => ("abcab", &[1], 1, false),
    two_of_five_are_given_up => ("abcab", &[1, 2], 2, false),
    three_of_five_close_it => ("abcab", &[1, 2, 3], 0, true),
    all_five_close_it => ("abcab", &[1, 2, 3, 4, 5], 0, true),
    two_of_three_are_too_few_to_close_it => ("abc", &[1, 2], 2, false),
    two_of_two_are_too_few_to_close_it => ("ab", &[1, 2], 2, false),
    three_of_three_close_it => ("abc", &[1, 2, 3], 0, true),
    most_but_not_all_of_a_zone_close_it_there => ("aaaabbbbcccc", &[1, 2, 3], 0, true),
    half_of_a_zone_is_not_most_of_it => ("aaaaaaaaaabbbbbbbbbb", &[1, 2, 3, 4, 5], 5, false),
    six_of_a_zone_of_ten_close_it_there => ("aaaaaaaaaabbbbbbbbbb", &[1, 2, 3, 4, 5, 6], 0, true),
    fifty_five_percent_of_the_cluster_are_not_more_than_that => ("aaaaaaaaaaaaaaaaaaaa", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 11, false),
    sixty_percent_of_the_cluster_close_it => ("aaaaaaaaaaaaaaaaaaaa", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0, true),
    a_zone_of_two_is_lost_without_ado => ("aabbbccc", &[1, 2], 2, false),
    a_whole_zone_is_lost_one_node_at_a_time => ("aaabbbccc", &[1, 2, 3], 1, false),
    two_whole_zones_of_three_are_most_of_the_cluster => ("aaabbbccc", &[1, 2, 3, 4, 5, 6], 0, true),
    two_whole_zones_of_six_are_no_zone_lost_as_the_rest_is_not_well => ("aaabbbcccdddeeefff", &[1, 2, 3, 4, 5, 6], 0, true),
    a_whole_zone_and_one_node_elsewhere_are_a_zone_lost_and_a_node_lost => ("aaabbbccc", &[1, 2, 3, 4], 2, false),
    a_braked_zone_does_not_hold_back_a_node_of_another => ("aaaabbbbccccdddd", &[1, 2, 3, 5], 1, true),
}

/// Five nodes, each silent for so long (ms): how many are given up, and whether the brake is closed.
fn together((silent_ms, lost, shut): ([u64; 5], usize, bool)) {
    let mut s = Situation::of(spec(), "abcab");
    for (index, ms) in silent_ms.into_iter().enumerate() {
        s.hear(&format!("i-{}", index + 1), 100_000 - ms);
    }
    assert_eq!((given_up(&s).len(), closed(&s)), (lost, shut), "{silent_ms:?}");
}

table! { together:
    the_first_over_its_lease_of_three_that_fell_silent_together_is_not_given_up => ([4_291, 3_900, 3_300, 100, 100], 0, true),
    the_alarm_comes_before_the_first_lease_is_over => ([2_500, 2_400, 2_001, 100, 100], 0, true),
    two_missed_heartbeats_are_no_suspicion_yet => ([4_291, 2_000, 2_000, 100, 100], 1, false),
    one_suspected_node_beside_one_over_its_lease_holds_nothing_back => ([4_291, 3_000, 100, 100, 100], 1, false),
    suspicion_alone_gives_nobody_up => ([4_290, 3_000, 100, 100, 100], 0, false),
}

#[test]
fn a_new_leader_suspects_nobody_it_has_not_heard_and_judges_all_of_them_at_once() {
    let mut s = Situation::of(spec(), "abcab");
    s.obs.nodes.clear();
    s.obs.leading_since_ms = s.obs.now_ms - lost_after_ms(4000);
    assert!(!closed(&s), "no alarm at every change of leaders");
    s.obs.now_ms += 1;
    assert_eq!((given_up(&s).len(), closed(&s)), (0, true));
}

#[test]
fn of_those_a_new_leader_has_not_heard_the_last_to_return_is_not_given_up_for_being_alone() {
    let mut s = Situation::of(spec(), "abcab");
    s.obs.nodes.clear();
    s.obs.leading_since_ms = s.obs.now_ms - suspected_after_ms(4000);
    let mut kept = BrakeMemory::default();
    remember_brake(&s.state, &s.obs, &mut kept);
    assert_eq!(kept, BrakeMemory::default(), "they may still be dialling");
    s.obs.leading_since_ms = s.obs.now_ms - lost_after_ms(4000);
    remember_brake(&s.state, &s.obs, &mut kept);
    assert_eq!(kept.everywhere_ms, Some(s.obs.now_ms));
    s.obs.braked = kept;
    let others_are_heard = |s: &mut Situation| (1..=4).for_each(|index| s.hear(&format!("i-{index}"), s.obs.now_ms));
    s.obs.now_ms += 1;
    others_are_heard(&mut s);
    assert_eq!((given_up(&s).len(), closed(&s)), (0, true));
    s.obs.now_ms += lost_after_ms(4000);
    others_are_heard(&mut s);
    assert_eq!((given_up(&s), closed(&s)), (vec!["i-5".to_owned()], false), "it had as long again");
}

#[test]
fn a_zone_whose_coordinator_answers_is_not_lost_however_silent_its_nodes_are() {
    let mut s = silence("aaabbbccc", &[1, 2, 3]);
    let seen = |answers| vec![CoordinatorSeen { zone: zone("a"), answers }, CoordinatorSeen { zone: zone("b"), answers: true }];
    s.obs.coordinators = seen(true);
    assert!(closed(&s) && given_up(&s).is_empty());
    s.obs.coordinators = seen(false);
    assert_eq!(given_up(&s), ["i-1"]);
}

#[test]
fn a_lost_zone_is_emptied_one_source_node_after_another() {
    let mut s = Situation::of(spec(), "aaabbbccc");
    s.settle();
    let held = |s: &Situation, node: &str| s.state.held_by(&node.into()).filter(|(id, _)| ["worker", "stream"].contains(&id.role.0.as_str())).count();
    for index in 1..=3 {
        s.hear(&format!("i-{index}"), 0);
    }
    let first = given_up(&s);
    assert_eq!(first, ["i-1"]);
    s.lose(&"i-1".into());
    if held(&s, "i-1") > 0 {
        assert_eq!(given_up(&s), Vec::<String>::new(), "what i-1 held has not moved yet");
        let gates = format!("{:?}", judge(&s.state, &s.obs).gates);
        assert!(gates.contains("one node after another, and i-1 comes first"), "{gates}");
    }
    s.carry_out();
    assert_eq!((held(&s, "i-1"), given_up(&s)), (0, vec!["i-2".to_owned()]));
}

#[test]
fn a_closed_zone_asks_for_no_termination_there_and_for_one_elsewhere() {
    let mut s = silence("aaaabbbbccccdddd", &[1, 2, 3, 5]);
    s.lose(&"i-1".into());
    s.lose(&"i-5".into());
    assert_eq!(to_terminate(&s.state, &s.obs), [&NodeId::from("i-5")]);
}

/// To a new leader the silent look well until its first window is over: the brake that its predecessor had closed is open.
#[test]
fn a_leader_that_is_new_or_was_not_running_terminates_nobody_before_it_has_looked_for_a_whole_window() {
    let mut s = silence("abcab", &[1]);
    s.lose(&"i-1".into());
    let limit = lost_after_ms(s.obs.lease_ms);
    let looks: [fn(&mut Observations, u64); 2] = [|obs, since| obs.leading_since_ms = since, |obs, since| obs.trusted_since_ms = since];
    for look in looks {
        let mut obs = s.obs.clone();
        look(&mut obs, s.obs.now_ms - limit);
        assert_eq!(to_terminate(&s.state, &obs), Vec::<&NodeId>::new());
        look(&mut obs, s.obs.now_ms - limit - 1);
        assert_eq!(to_terminate(&s.state, &obs), [&NodeId::from("i-1")]);
    }
    // Whom an operator vouched for is gone whoever leads.
    release(&mut s);
    s.obs.leading_since_ms = s.obs.now_ms;
    assert_eq!(to_terminate(&s.state, &s.obs), [&NodeId::from("i-1")]);
}

#[test]
fn silent_nodes_behind_a_closed_brake_are_gates_that_name_what_opens_it() {
    let s = silence("abcab", &[1, 2, 3]);
    let gates = judge(&s.state, &s.obs).gates;
    assert_eq!(gates.iter().map(|gate| gate.subject.as_str()).collect::<Vec<_>>(), ["i-1", "i-2", "i-3"]);
    assert!(gates.iter().all(|gate| gate.closed_by.contains("brake") && gate.opens_when.contains("vpctl brake release")));
    let told = round::look(&s.state, &s.obs).gates;
    assert!(gates.iter().all(|gate| told.contains(gate)), "{told:?}");
}

// The release

fn release(s: &mut Situation) {
    let nodes = silent_now(&s.state, &s.obs);
    s.ok(Command::ReleaseBrake { by: "ada".to_owned(), nodes });
}

#[test]
fn a_release_gives_up_those_who_were_silent_and_nobody_who_falls_silent_later() {
    let mut s = silence("abcababc", &[1, 2, 3, 4, 5]);
    assert!(closed(&s));
    release(&mut s);
    assert_eq!(given_up(&s), ["i-1", "i-2", "i-3", "i-4", "i-5"]);
    for later in ["i-6", "i-7", "i-8"] {
        s.hear(later, 0);
    }
    assert!(closed(&s), "the three that are left fell silent together");
    assert_eq!(given_up(&s), ["i-1", "i-2", "i-3", "i-4", "i-5"]);
}

#[test]
fn a_released_node_that_is_lost_is_terminated_though_the_brake_is_closed_again() {
    let mut s = silence("abcababc", &[1, 2, 3, 4, 5]);
    release(&mut s);
    s.lose(&"i-1".into());
    for later in ["i-6", "i-7", "i-8"] {
        s.hear(later, 0);
    }
    assert_eq!(to_terminate(&s.state, &s.obs), [&NodeId::from("i-1")]);
}

#[test]
fn a_released_node_that_is_heard_again_counts_as_any_other_from_then_on() {
    let mut s = silence("abcab", &[1, 2, 3]);
    release(&mut s);
    s.hear("i-1", 100_000);
    let again = Command::NodeHeardAgain { node: "i-1".into() };
    assert!(judge(&s.state, &s.obs).verdicts.contains(&again));
    s.ok(again);
    let release = s.state.brake_release.clone().expect("two are named still");
    assert_eq!(release.nodes.keys().map(|node| node.0.as_str()).collect::<Vec<_>>(), ["i-2", "i-3"]);
    s.hear("i-1", 0);
    assert_eq!(given_up(&s), ["i-2", "i-3", "i-1"], "released first, then one silent node of three");
}

#[test]
fn a_new_leaders_patience_is_no_word_of_a_released_node() {
    let mut s = silence("abcab", &[1, 2, 3]);
    release(&mut s);
    s.obs.nodes.clear();
    s.obs.leading_since_ms = s.obs.now_ms;
    assert_eq!(judge(&s.state, &s.obs).verdicts, []);
    let mut s = silence("abcab", &[1, 2, 3]);
    release(&mut s);
    s.obs.trusted_since_ms = s.obs.now_ms;
    assert_eq!(judge(&s.state, &s.obs).verdicts, [], "nor is that of one that was not running");
}

#[test]
fn proof_ends_a_release() {
    let mut s = silence("abcab", &[1, 2, 3]);
    release(&mut s);
    for node in ["i-1", "i-2", "i-3"] {
        s.fence(&node.into());
    }
    assert_eq!(s.state.brake_release, None);
}

#[test]
fn a_new_session_ends_a_release_for_its_node() {
    let mut s = silence("abcab", &[1, 2, 3]);
    release(&mut s);
    s.ok(node_in("i-1", "a"));
    assert!(!s.state.brake_release.as_ref().expect("two are left").nodes.contains_key(&NodeId::from("i-1")));
}

#[test]
fn a_release_is_refused_without_nodes_of_other_sessions_and_of_strangers() {
    let mut s = silence("abcab", &[1, 2, 3]);
    let word = |nodes: BTreeMap<NodeId, vp_cluster::Session>| Command::ReleaseBrake { by: "ada".to_owned(), nodes };
    assert!(s.apply(word(BTreeMap::new())).is_err());
    assert!(s.apply(word([("i-1".into(), vp_cluster::Session(9999))].into())).is_err());
    assert!(s.apply(word([("i-99".into(), vp_cluster::Session(1))].into())).is_err());
    assert_eq!(s.state.brake_release, None);
    assert!(s.apply(Command::NodeHeardAgain { node: "i-1".into() }).is_err(), "nothing was released");
}

#[test]
fn a_release_is_written_down_with_who_and_when() {
    let mut s = silence("abcab", &[1, 2, 3]);
    let nodes = silent_now(&s.state, &s.obs);
    entry(&mut s.state, |state, index| vp_cluster::apply(state, index, 77, &Command::ReleaseBrake { by: "ada".to_owned(), nodes })).expect("accepted");
    let release = s.state.brake_release.expect("released");
    assert_eq!((release.by.as_str(), release.unix_ms), ("ada", 77));
    assert!(s.state.events.back().expect("event").detail.contains("by ada, for i-1, i-2, i-3"));
}

#[test]
fn a_release_does_not_pass_the_cap() {
    let mut spec = spec();
    spec.policy.sources_per_minute = 2;
    let mut s = Situation::of(spec, "abcab");
    for index in 1..=3 {
        s.hear(&format!("i-{index}"), 0);
    }
    release(&mut s);
    assert_eq!(given_up(&s), ["i-1", "i-2"]);
}

// The cap

/// Nodes given up `ages` ms ago, and how many of four silent ones of twenty may follow when five a minute are allowed.
fn cap((ages, more): (&[u64], usize)) {
    let mut spec = spec();
    spec.policy.sources_per_minute = 5;
    let mut s = Situation::of(spec, "abcabcabcabcabcabcab");
    for index in 1..=4 {
        s.hear(&format!("i-{index}"), 0);
    }
    s.obs.given_up_ms = ages.iter().enumerate().map(|(n, age)| (format!("gone-{n}").as_str().into(), s.obs.now_ms - age)).collect();
    assert_eq!(given_up(&s).len(), more);
}

table! { cap:
    with_nothing_given_up_all_four_are => (&[], 4),
    with_one_given_up_all_four_still_are => (&[1], 4),
    with_two_given_up_three_more_are => (&[1, 2], 3),
    with_five_given_up_none_is => (&[1, 2, 3, 4, 5], 0),
    with_more_given_up_than_allowed_none_is => (&[1, 2, 3, 4, 5, 6, 7], 0),
    a_minute_ago_counts_no_more => (&[60_000, 60_001, 70_000, 80_000, 99_000], 4),
    just_under_a_minute_still_counts => (&[59_999, 1, 2, 3, 4], 0),
}

#[test]
fn proof_passes_the_cap() {
    let mut spec = spec();
    spec.policy.sources_per_minute = 1;
    let mut s = Situation::of(spec, "abcab");
    for index in ["i-1", "i-2", "i-3", "i-4"] {
        s.obs.nodes.get_mut(&index.into()).expect("node").instance = Instance::Terminated;
    }
    assert_eq!(judge(&s.state, &s.obs).verdicts.len(), 4);
}

#[test]
fn the_cap_says_when_the_next_may_go() {
    let mut s = silence("abcab", &[1]);
    s.state.spec.policy.sources_per_minute = 1;
    s.obs.given_up_ms.insert("gone".into(), s.obs.now_ms - 20_000);
    let gates = format!("{:?}", judge(&s.state, &s.obs).gates);
    assert!(gates.contains("1 nodes were given up within a minute") && gates.contains("40000 ms have passed"), "{gates}");
}

#[test]
fn a_new_leader_counts_the_lost_it_finds_as_given_up_just_now() {
    let mut s = silence("abcab", &[1]);
    s.lose(&"i-1".into());
    let mut memory = BTreeMap::new();
    liveness::remember_lost(&s.state, &mut memory, 5_000);
    assert_eq!(memory, [(NodeId::from("i-1"), 5_000)].into());
    liveness::remember_lost(&s.state, &mut memory, 5_000 + 3 * CAP_WINDOW_MS);
    assert_eq!(memory, [(NodeId::from("i-1"), 5_000)].into(), "still lost: not counted anew");
    s.fence(&"i-1".into());
    liveness::remember_lost(&s.state, &mut memory, 5_000 + 3 * CAP_WINDOW_MS);
    assert_eq!(memory, BTreeMap::new());
}

#[test]
fn a_node_given_up_and_forgotten_counts_until_its_minute_is_over() {
    let s = Situation::of(spec(), "abcab");
    let mut memory = [(NodeId::from("gone"), 1_000)].into();
    liveness::remember_lost(&s.state, &mut memory, 1_000 + CAP_WINDOW_MS - 1);
    assert_eq!(memory.len(), 1);
    liveness::remember_lost(&s.state, &mut memory, 1_000 + CAP_WINDOW_MS);
    assert_eq!(memory.len(), 0);
}

// Self-suspicion

/// Times of looks, the lease, and since when the last may trust itself.
fn watch((looks, lease_ms, trusted_since): (&[u64], u64, u64)) {
    let mut own = SelfWatch::default();
    assert_eq!(looks.iter().map(|at| own.look(*at, lease_ms)).last(), Some(trusted_since));
}

table! { watch:
    the_first_look_trusts_itself => (&[9_000], 4000, 0),
    looks_in_time_keep_trust => (&[0, 1_000, 2_000, 3_000], 4000, 0),
    a_gap_of_a_quarter_lease_is_still_normal => (&[0, 1_000], 4000, 0),
    a_longer_gap_starts_a_new_window => (&[0, 1_001], 4000, 1_001),
    trust_does_not_come_back_by_looking_often => (&[0, 5_000, 5_100, 5_200], 4000, 5_000),
    a_second_gap_starts_it_again => (&[0, 5_000, 5_100, 9_000], 4000, 9_000),
    half_a_second_is_allowed_under_the_shortest_lease => (&[0, 500], 2000, 0),
    more_than_that_is_not => (&[0, 501], 2000, 501),
    a_clock_that_stands_still_is_no_gap => (&[7, 7, 7], 4000, 0),
    a_clock_that_goes_back_is_no_gap => (&[7_000, 6_000], 4000, 0),
}

#[test]
fn a_coordinator_that_was_paused_gives_nobody_up_before_a_window_of_its_own_has_passed() {
    let mut s = silence("abcab", &[1]);
    s.obs.trusted_since_ms = s.obs.now_ms;
    assert_eq!(given_up(&s), Vec::<String>::new());
    let gates = format!("{:?}", judge(&s.state, &s.obs).gates);
    assert!(gates.contains("this coordinator itself was not running"), "{gates}");
    s.obs.now_ms += lost_after_ms(4000);
    for well in ["i-2", "i-3", "i-4", "i-5"] {
        s.hear(well, 103_000);
    }
    assert_eq!(given_up(&s), Vec::<String>::new(), "to the millisecond");
    s.obs.now_ms += 1;
    assert_eq!(given_up(&s), ["i-1"]);
}

#[test]
fn proof_needs_no_trust_in_oneself() {
    let mut s = silence("abcab", &[1]);
    s.obs.trusted_since_ms = s.obs.now_ms;
    s.obs.nodes.get_mut(&"i-1".into()).expect("node").instance = Instance::Terminated;
    assert_eq!(judge(&s.state, &s.obs).verdicts, [Command::NodeFenced { node: "i-1".into() }]);
}

#[test]
fn an_absurd_lease_does_not_overflow_the_watch() {
    assert!(pause_limit_ms(u64::MAX) > 0);
}
