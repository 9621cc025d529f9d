//! Verdicts from silence. The brake has tests of its own (`brake`).
mod situation;
use situation::{Situation, node_in, spec};
use vp_cluster::{
    Command,
    liveness::{Brake, judge, lost_after_ms, remember_brake, to_terminate},
    observe::{BrakeMemory, Instance},
};

/// Nodes named in `silent` (from 1) were last heard longer than the lease ago.
fn silence(zones: &str, silent: &[usize]) -> Situation {
    let mut s = Situation::of(spec(), zones);
    for index in silent {
        s.hear(&format!("i-{index}"), 100_000 - lost_after_ms(4000) - 1);
    }
    s
}

#[test]
fn a_new_leader_waits_the_full_window() {
    let mut s = Situation::of(spec(), "a");
    s.obs.nodes.clear();
    s.obs.leading_since_ms = s.obs.now_ms - lost_after_ms(4000);
    assert!(judge(&s.state, &s.obs).verdicts.is_empty());
    s.obs.now_ms += 1;
    assert_eq!(judge(&s.state, &s.obs).verdicts.len(), 1);
}

#[test]
fn an_acknowledgement_after_the_last_word_starts_the_window_again() {
    let mut s = silence("a", &[1]);
    s.obs.nodes.values_mut().for_each(|seen| seen.acknowledged_ms = Some(99_000));
    assert!(judge(&s.state, &s.obs).verdicts.is_empty());
}

/// What is known of nodes that the state does not have, before, between and after those it has, is nobody's word.
#[test]
fn a_node_is_judged_by_what_was_seen_of_it_and_of_no_other() {
    let mut s = silence("abcab", &[4]);
    for stranger in ["a", "i-0", "i-1x", "i-3x", "i-4x", "i-9", "z"] {
        s.hear(stranger, if stranger == "i-4x" { s.obs.now_ms } else { 0 });
    }
    s.obs.nodes.remove(&"i-2".into());
    s.obs.leading_since_ms = 0;
    let lost = |verdict: &Command| matches!(verdict, Command::NodeLost { node, .. } if ["i-2", "i-4"].contains(&node.0.as_str()));
    let verdicts = judge(&s.state, &s.obs).verdicts;
    assert!(verdicts.len() == 2 && verdicts.iter().all(lost), "{verdicts:?}");
}

#[test]
fn terminated_passes_the_brake() {
    let mut s = silence("abcab", &[1, 2, 3, 4]);
    s.obs.nodes.get_mut(&"i-1".into()).expect("node").instance = Instance::Terminated;
    assert_eq!(judge(&s.state, &s.obs).verdicts, [Command::NodeFenced { node: "i-1".into() }]);
}

#[test]
fn only_terminated_is_proof() {
    for instance in [Instance::Unknown, Instance::Pending, Instance::Running, Instance::ShuttingDown] {
        let mut s = silence("a", &[]);
        s.obs.nodes.values_mut().for_each(|seen| seen.instance = instance);
        assert!(judge(&s.state, &s.obs).verdicts.is_empty(), "{instance:?}");
    }
}

#[test]
fn a_verdict_on_an_older_session_is_refused() {
    let mut s = Situation::of(spec(), "a");
    let old = s.session("i-1");
    s.ok(node_in("i-1", "a"));
    assert!(s.apply(Command::NodeLost { node: "i-1".into(), session: old, silent_ms: 1 }).is_err());
    assert_ne!(old, s.session("i-1"));
}

#[test]
fn an_absurd_lease_does_not_overflow() {
    assert_eq!(lost_after_ms(u64::MAX), u64::MAX);
}

#[test]
fn a_closed_brake_asks_for_no_termination_not_even_of_a_node_lost_before() {
    let mut s = silence("abcab", &[1]);
    s.lose(&"i-1".into());
    assert_eq!(to_terminate(&s.state, &s.obs), [&"i-1".into()]);
    for id in ["i-2", "i-3"] {
        s.hear(id, 0);
    }
    assert_ne!(judge(&s.state, &s.obs).brake, Brake::Open);
    assert!(to_terminate(&s.state, &s.obs).is_empty());
    s.hear("i-3", 100_000);
    assert_eq!(to_terminate(&s.state, &s.obs), [&"i-1".into()], "opened by a return");
}

#[test]
fn only_lost_nodes_are_terminated_and_only_once_they_are_not_dying_already() {
    let mut s = silence("abcab", &[1, 2]);
    assert!(to_terminate(&s.state, &s.obs).is_empty(), "silent, not judged yet");
    s.lose(&"i-1".into());
    for (instance, asked) in
        [(Instance::Unknown, true), (Instance::Pending, true), (Instance::Running, true), (Instance::ShuttingDown, false), (Instance::Terminated, false)]
    {
        s.obs.nodes.get_mut(&"i-1".into()).expect("node").instance = instance;
        assert_eq!(!to_terminate(&s.state, &s.obs).is_empty(), asked, "{instance:?}");
    }
}

#[test]
fn the_brake_opens_on_proof() {
    let mut s = silence("abcab", &[1, 2, 3]);
    assert_ne!(judge(&s.state, &s.obs).brake, Brake::Open);
    s.obs.nodes.get_mut(&"i-1".into()).expect("node").instance = Instance::Terminated;
    assert_eq!(judge(&s.state, &s.obs).brake, Brake::Open, "2 of the remaining 4");
}

#[test]
fn the_lease_is_waited_out_to_the_millisecond_with_drift_and_margin() {
    for (silent, lost) in [(4000, false), (4290, false), (4291, true)] {
        let mut s = Situation::of(spec(), "a");
        s.hear("i-1", s.obs.now_ms - silent);
        assert_eq!(!judge(&s.state, &s.obs).verdicts.is_empty(), lost, "{silent} ms");
    }
}

#[test]
fn a_node_judged_lost_is_not_judged_again() {
    let mut s = silence("abcab", &[1]);
    s.lose(&"i-1".into());
    assert!(judge(&s.state, &s.obs).verdicts.is_empty());
    s.fence(&"i-1".into());
    assert!(judge(&s.state, &s.obs).verdicts.is_empty());
}

#[test]
fn a_verdict_names_the_session_that_was_judged() {
    let s = silence("a", &[1]);
    let session = s.session("i-1");
    assert!(matches!(&judge(&s.state, &s.obs).verdicts[..], [Command::NodeLost { session: judged, .. }] if *judged == session));
}

#[test]
fn those_that_return_late_are_not_given_up_because_the_first_have_returned() {
    let mut s = silence("abcab", &[1, 2]);
    s.obs.braked.everywhere_ms = Some(s.obs.now_ms - lost_after_ms(4000));
    assert_eq!(judge(&s.state, &s.obs).verdicts, []);
    assert_ne!(judge(&s.state, &s.obs).brake, Brake::Open);
    s.obs.braked.everywhere_ms = Some(s.obs.now_ms - lost_after_ms(4000) - 1);
    assert!(!judge(&s.state, &s.obs).verdicts.is_empty());
}

#[test]
fn a_brake_that_had_to_close_in_one_zone_holds_nothing_back_in_another() {
    let mut s = silence("aaaabbbbcccc", &[1, 5]);
    s.obs.braked.zones_ms.insert("a".into(), s.obs.now_ms);
    let found = judge(&s.state, &s.obs);
    assert!(matches!(&found.verdicts[..], [Command::NodeLost { node, .. }] if *node == "i-5".into()));
}

#[test]
fn only_what_closes_the_brake_by_itself_is_remembered() {
    let remembered = |silent: &[usize], memory: BrakeMemory| {
        let mut s = silence("abcab", silent);
        s.obs.braked = memory;
        let mut kept = BrakeMemory::default();
        remember_brake(&s.state, &s.obs, &mut kept);
        kept.everywhere_ms
    };
    assert_eq!(remembered(&[1, 2, 3], BrakeMemory::default()), Some(100_000));
    let closed_before = BrakeMemory { everywhere_ms: Some(99_000), ..BrakeMemory::default() };
    assert_eq!(remembered(&[1, 2], closed_before), None, "a closed brake does not keep itself closed");
}
