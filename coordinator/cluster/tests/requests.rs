//! A request is applied once however often it is asked for, and old and new programs agree until the rules are raised.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod situation;
use std::collections::BTreeMap;

use situation::entry;
use vp_cluster::{
    ClusterState, Command, MemberId, Rejection, Revision, Session, apply,
    coordinators::{self, CoordinatorChange, CoordinatorSlot},
    requests::{Answer, LONGEST_REQUEST, REMEMBERED, apply_once, skip},
    version::NEWEST,
};

fn note(text: &str) -> Command {
    Command::Note { kind: text.to_owned(), subject: String::new(), detail: String::new() }
}

fn at(apply_version: u32) -> ClusterState {
    let slot = CoordinatorSlot { address: "10.0.1.10".to_owned(), zone: "a".into(), group: "coordinator-1".to_owned() };
    coordinators::founded(BTreeMap::from([(1, slot)]), apply_version)
}

fn asked(state: &mut ClusterState, index: u64, request: Option<&str>, command: &Command) -> Answer {
    entry(state, |state, _| apply_once(state, index, 0, request, command))
}

fn skipped(state: &mut ClusterState, index: u64) {
    entry(state, |state, _| skip(state, index));
}

#[test]
fn a_request_asked_again_is_answered_as_the_first_time_and_changes_nothing() {
    let mut state = at(NEWEST);
    let first = asked(&mut state, 5, Some("r"), &note("a"));
    assert_eq!((first.revision, first.rejection.clone()), (Revision(5), None));
    let refused = asked(&mut state, 6, Some("s"), &Command::SetDraining { node: "i-none".into(), draining: true });
    assert!(refused.rejection.is_some());
    let events = state.events.clone();
    assert_eq!(asked(&mut state, 7, Some("r"), &note("a")), first);
    assert_eq!(asked(&mut state, 8, Some("s"), &note("other")), refused, "the id decides, not what is asked under it");
    assert_eq!((&state.events, state.revision), (&events, Revision(8)), "only the revision advances");
    asked(&mut state, 9, None, &note("a"));
    assert_eq!(state.events.len(), events.len() + 1, "without an id each is a new one");
}

#[test]
fn the_table_of_answers_is_bounded_and_so_is_an_id() {
    let mut state = at(NEWEST);
    for index in 1..=REMEMBERED as u64 + 10 {
        asked(&mut state, index, Some(&format!("r{index}")), &note("a"));
    }
    assert_eq!(state.requests.len(), REMEMBERED);
    let last = state.revision.0;
    let long = asked(&mut state, last + 1, Some(&"x".repeat(LONGEST_REQUEST + 1)), &note("a"));
    assert!(long.rejection.is_some());
    assert_eq!(state.requests.len(), REMEMBERED);
}

/// The program of before request ids: it does not see them, and stops at rules that it does not know.
struct Old(ClusterState);

impl Old {
    fn apply(&mut self, index: u64, command: &Command) -> Result<(), &'static str> {
        let _ = entry(&mut self.0, |state, _| apply(state, index, 0, command));
        if self.0.apply_version > 0 { Err("start the newer program") } else { Ok(()) }
    }
}

/// The program of rules 1 cannot read a command of rules 2, its request id neither: it skips the entry. Asked for in the midst of an upgrade, as `vpctl` asks.
#[test]
fn a_command_that_older_programs_cannot_read_leaves_every_state_alike_its_request_id_too() {
    let gone = Command::Gone { node: "i-1".into(), session: Session(1), by: "ada".to_owned() };
    let (mut old, mut new) = (at(1), at(1));
    let refused = asked(&mut new, 5, Some("r"), &gone);
    skipped(&mut old, 5);
    assert!(refused.rejection.unwrap().to_string().contains("upgrade every coordinator first"));
    assert_eq!(old, new);
    // Asked again once the rules hold, it is judged, not answered as before.
    new.apply_version = NEWEST;
    let judged = asked(&mut new, 6, Some("r"), &gone);
    assert_eq!(judged.rejection, Some(Rejection::NoSuchNode("i-1".into())));
}

#[test]
fn old_and_new_programs_agree_on_one_log_until_the_rules_are_raised_and_then_the_old_one_stops() {
    let seen = |supports| Command::Coordinators(CoordinatorChange::Seen { member: MemberId(1), instance: "i-1".into(), supports });
    let raise = Command::RaiseApplyVersion { to: 1 };
    // Requests asked twice, a raise that comes too early, an entry that one of them cannot read.
    let log: Vec<(Option<&str>, Option<Command>)> = vec![
        (Some("r"), Some(note("a"))),
        (Some("r"), Some(note("a"))),
        (None, Some(seen(0))),
        (None, Some(raise.clone())),
        (None, None),
        (Some("r"), Some(note("b"))),
    ];
    let (mut old, mut new) = (Old(at(0)), at(0));
    let mut index = 0;
    for (request, command) in &log {
        index += 1;
        match command {
            Some(command) => {
                asked(&mut new, index, *request, command);
                old.apply(index, command).unwrap();
            }
            None => {
                skipped(&mut new, index);
                skipped(&mut old.0, index);
            }
        }
        assert_eq!(old.0, new, "at index {index}");
    }
    for command in [seen(1), raise] {
        index += 1;
        asked(&mut new, index, None, &command);
        let went_on = old.apply(index, &command);
        assert_eq!(old.0, new, "the raise itself is the last thing that both know");
        assert_eq!(went_on.is_ok(), new.apply_version == 0);
    }
    asked(&mut new, index + 1, Some("q"), &note("c"));
    let events = new.events.len();
    asked(&mut new, index + 2, Some("q"), &note("c"));
    assert_eq!(new.events.len(), events, "from here on a request counts once");
}
