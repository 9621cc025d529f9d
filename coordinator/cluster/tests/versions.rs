//! What `apply` makes of a log is pinned, rule by rule and word by word: members of two versions must make equal states of one log, events and refusals
//! included, or the minority stops. A change that turns this red needs a version of its own ([`vp_cluster::version`]), by which the old text or rule stays for
//! the old number; then `VP_PIN=1 cargo test --workspace --test versions` writes the new number's state. A kind of
//! command that is added goes to the end of the history; the pins are then written anew (delete them first), and their diff may only show what was appended.
#![cfg(feature = "serde")]
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod situation;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem::discriminant,
    path::PathBuf,
};

use situation::entry;
use vp_cluster::{
    Action, ClusterState, Command, Generation, MemberId, NodeId, Plan, Rejection, Revision, Session, SlotId, VolumeId,
    coordinators::{self, CoordinatorChange, CoordinatorSlot},
    requests::apply_once,
    state::{Fencing, Membership, Policy, Proof, RoleSpec, Spec},
    version::NEWEST,
};

fn role(pref: u32, fencing: Fencing, membership: Membership, volume: bool) -> RoleSpec {
    let fenced_sinks = fencing == Fencing::Exclusive;
    RoleSpec { min: 1, pref, max: 5, fencing, fenced_sinks, volume, membership, after: Vec::new(), spread_zones: true, memory_mib: 200 }
}

fn spec() -> Spec {
    let roles = [
        ("zookeeper", role(1, Fencing::Quorum, Membership::ZooKeeper, true)),
        ("kafka", role(2, Fencing::Quorum, Membership::Kafka, true)),
        ("stream", role(1, Fencing::Exclusive, Membership::None, false)),
    ];
    Spec { roles: roles.map(|(name, role)| (name.into(), role)).into(), volume_wait_ms: 60_000, policy: Policy::default() }
}

fn slot(text: &str) -> SlotId {
    text.parse().unwrap()
}

fn coordinator(host: u32) -> CoordinatorSlot {
    CoordinatorSlot { address: format!("10.0.{host}.10"), zone: "a".into(), group: format!("coordinator-{host}") }
}

fn register(node: &str, zone: &str) -> Command {
    let (address, instance_type, agent_version) = (format!("at-{node}"), "t3.small".to_owned(), "1".to_owned());
    Command::RegisterNode { node: node.into(), address, zone: zone.into(), instance_type, memory_mib: 1000, cpu_millis: 2000, agent_version }
}

fn plan(index: u64, actions: Vec<Action>) -> Command {
    Command::Plan(Plan { based_on: Revision(index - 1), actions })
}

fn grant(name: &str, node: &str, member_id: u32) -> Action {
    Action::Grant { slot: slot(name), node: node.into(), member_id }
}

/// Every command, action and change at least once, and every refusal: command N has index N.
fn history() -> Vec<Command> {
    let volume = |name: &str| VolumeId(format!("vol-{name}"));
    let created = |name: &str, generation, zone: &str| Command::VolumeCreated {
        slot: slot(name),
        generation: Generation(generation),
        volume: volume(name),
        zone: zone.into(),
    };
    let lost = |node: &str, session| Command::NodeLost { node: node.into(), session: Session(session), silent_ms: 5000 };
    let group = Command::Coordinators;
    let mut log: Vec<Command> = Vec::new();
    let mut say = |command: &dyn Fn(u64) -> Command| {
        let index = log.len() as u64 + 1;
        log.push(command(index));
    };
    say(&|_| Command::SetSpec { spec: spec() });
    say(&|_| register("i-1", "a"));
    say(&|_| register("i-2", "b"));
    say(&|_| register("i-3", "c"));
    say(&|index| plan(index, vec![grant("kafka-1", "i-1", 1), grant("kafka-2", "i-2", 2), grant("zookeeper-1", "i-1", 1), grant("stream-1", "i-3", 1)]));
    say(&|_| created("kafka-1", 5, "a"));
    say(&|_| created("kafka-2", 5, "b"));
    say(&|_| created("zookeeper-1", 5, "a"));
    say(&|_| Command::EnsembleFounded { role: "zookeeper".into(), members: BTreeMap::from([(slot("zookeeper-1"), 1)]) });
    say(&|_| Command::VotersListed { role: "zookeeper".into(), version: 7, voters: BTreeSet::from([1]) });
    say(&|_| Command::SlotUsed { slot: slot("kafka-1"), generation: Generation(5) });
    say(&|_| Command::SlotUsed { slot: slot("zookeeper-1"), generation: Generation(5) });
    // The stream's node falls silent: its lease is proof enough.
    say(&|_| lost("i-3", 4));
    say(&|index| {
        let proof = Proof::LeaseExpired { node: "i-3".into() };
        plan(index, vec![Action::Vacate { slot: slot("stream-1"), proof }, grant("stream-1", "i-2", 1)])
    });
    say(&|_| Command::NodeFenced { node: "i-3".into() });
    say(&|index| plan(index, vec![Action::Forget { node: "i-3".into() }]));
    // A move given back by word, and its disk left behind.
    say(&|_| Command::MoveSlot { slot: slot("kafka-2"), to: None, empty_disk: true });
    say(&|_| Command::CancelMove { slot: slot("kafka-2") });
    say(&|_| Command::MoveSlot { slot: slot("kafka-2"), to: None, empty_disk: true });
    say(&|index| plan(index, vec![Action::Release { slot: slot("kafka-2") }]));
    say(&|_| Command::SlotReleased { slot: slot("kafka-2"), generation: Generation(5), node: "i-2".into() });
    say(&|index| plan(index, vec![Action::AbandonVolume { slot: slot("kafka-2") }]));
    // Its disk is gone, its member with it.
    say(&|_| Command::VolumeLost { slot: slot("zookeeper-1"), volume: volume("zookeeper-1") });
    say(&|_| lost("i-1", 2));
    say(&|_| Command::NodeFenced { node: "i-1".into() });
    say(&|index| {
        let proof = || Proof::InstanceTerminated { node: "i-1".into() };
        let vacate = |name| Action::Vacate { slot: slot(name), proof: proof() };
        plan(index, vec![vacate("kafka-1"), vacate("zookeeper-1"), grant("zookeeper-1", "i-2", 2)])
    });
    say(&|_| Command::MemberRemoved { slot: slot("zookeeper-1"), member_id: 1 });
    say(&|_| Command::Scale { role: "kafka".into(), pref: 1 });
    say(&|index| plan(index, vec![Action::Remove { slot: slot("kafka-2") }]));
    // People's words.
    say(&|_| register("i-4", "a"));
    say(&|_| Command::SetCordoned { node: "i-2".into(), cordoned: true });
    say(&|_| Command::SetCordoned { node: "i-2".into(), cordoned: false });
    say(&|_| Command::SetDraining { node: "i-2".into(), draining: true });
    say(&|_| Command::SetDraining { node: "i-2".into(), draining: false });
    say(&|_| Command::ReleaseBrake { by: "ada".to_owned(), nodes: BTreeMap::from([(NodeId::from("i-2"), Session(3))]) });
    say(&|_| Command::NodeHeardAgain { node: "i-2".into() });
    say(&|_| Command::Note { kind: "join refused".to_owned(), subject: "i-9".to_owned(), detail: "its document is forged".to_owned() });
    // The coordinators' own group.
    say(&|_| group(CoordinatorChange::Seen { member: MemberId(1), instance: "i-c1".into(), supports: 1 }));
    say(&|_| group(CoordinatorChange::Seen { member: MemberId(2), instance: "i-c2".into(), supports: 1 }));
    say(&|_| group(CoordinatorChange::Differs { member: MemberId(2), at: Revision(38) }));
    say(&|_| group(CoordinatorChange::Agrees { member: MemberId(2) }));
    say(&|_| group(CoordinatorChange::Join { slot: 2, instance: "i-c4".into(), supports: 1 }));
    say(&|_| group(CoordinatorChange::Fenced { member: MemberId(2) }));
    say(&|_| group(CoordinatorChange::Join { slot: 2, instance: "i-c4".into(), supports: 1 }));
    say(&|_| group(CoordinatorChange::Want { slots: (1..=5).map(|id| (id, coordinator(id))).collect() }));
    // Refused, each for another reason.
    say(&|_| Command::Plan(Plan { based_on: Revision(1), actions: vec![Action::Forget { node: "i-2".into() }] }));
    say(&|_| Command::SetDraining { node: "i-none".into(), draining: true });
    say(&|_| Command::CancelMove { slot: slot("kafka-9") });
    say(&|_| lost("i-2", 99));
    say(&|_| Command::SetDraining { node: "i-1".into(), draining: true });
    say(&|_| Command::SlotReleased { slot: slot("stream-1"), generation: Generation(5), node: "i-3".into() });
    say(&|index| plan(index, vec![grant("stream-1", "i-4", 1)]));
    say(&|index| plan(index, vec![Action::Vacate { slot: slot("stream-1"), proof: Proof::LeaseExpired { node: "i-2".into() } }]));
    say(&|_| Command::SetSpec {
        spec: Spec { roles: BTreeMap::from([("kafka".into(), RoleSpec { min: 3, pref: 1, ..role(1, Fencing::Quorum, Membership::Kafka, true) })]), ..spec() },
    });
    say(&|_| Command::RaiseApplyVersion { to: 0 });
    // A node that EC2 has forgotten: an operator's word, from rules 2 on.
    say(&|index| plan(index, vec![grant("kafka-1", "i-4", 1)]));
    say(&|_| lost("i-4", 30));
    say(&|_| Command::Gone { node: "i-4".into(), session: Session(30), by: "ada".to_owned() });
    say(&|index| {
        let proof = Proof::OperatorsWord { node: "i-4".into(), by: "ada".to_owned() };
        plan(index, vec![Action::Vacate { slot: slot("kafka-1"), proof }])
    });
    log
}

/// What the log makes under the rules of one version, and each refusal.
fn applied(version: u32) -> (ClusterState, Vec<Option<Rejection>>) {
    let mut state = coordinators::founded((1..=3).map(|id| (id, coordinator(id))).collect(), version);
    let mut refusals = Vec::new();
    for (at, command) in history().iter().enumerate() {
        let index = at as u64 + 1;
        let answer = entry(&mut state, |state, _| apply_once(state, index, 1_700_000_000_000 + index, Some(&format!("r{index}")), command));
        refusals.push(answer.rejection);
    }
    (state, refusals)
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pinned").join(name)
}

/// The bytes that members compare, with ends of lines so that a person sees what differs.
fn pinned(name: &str, now: &impl serde::Serialize) {
    let now = serde_json::to_string(now).unwrap().replace("},{", "},\n{").replace("},\"", "},\n\"") + "\n";
    if std::env::var_os("VP_PIN").is_some() && !file(name).exists() {
        std::fs::write(file(name), &now).unwrap();
    }
    let then = std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let differs = then.lines().zip(now.lines()).enumerate().find(|(_, (then, now))| then != now);
    assert_eq!(differs, None, "{name}: line, then, now");
    assert_eq!(then, now, "{name}");
}

#[test]
fn what_a_log_makes_is_the_same_word_for_word_in_every_program_of_a_version() {
    for version in 0..=NEWEST {
        pinned(&format!("state-{version}.json"), &applied(version).0);
    }
}

#[test]
fn commands_are_written_as_they_always_were() {
    pinned("commands.json", &history());
    let read: Vec<Command> = serde_json::from_str(&std::fs::read_to_string(file("commands.json")).unwrap()).unwrap();
    assert_eq!(read, history());
}

/// How many kinds there are is counted by hand: who adds one adds it to the history.
#[test]
fn the_history_has_every_command_action_change_and_refusal() {
    let log = history();
    let kinds = log.iter().map(discriminant).collect::<std::collections::HashSet<_>>();
    let of = |command: &Command| match command {
        Command::SetSpec { .. } | Command::RegisterNode { .. } | Command::NodeLost { .. } | Command::NodeFenced { .. } => 23,
        Command::SetDraining { .. } | Command::SetCordoned { .. } | Command::MoveSlot { .. } | Command::CancelMove { .. } => 23,
        Command::Scale { .. } | Command::Gone { .. } | Command::ReleaseBrake { .. } | Command::NodeHeardAgain { .. } | Command::Plan(_) => 23,
        Command::SlotReleased { .. } | Command::VolumeCreated { .. } | Command::VolumeLost { .. } | Command::SlotUsed { .. } => 23,
        Command::EnsembleFounded { .. } | Command::VotersListed { .. } | Command::MemberRemoved { .. } => 23,
        Command::Coordinators(_) | Command::RaiseApplyVersion { .. } | Command::Note { .. } => 23,
    };
    assert_eq!(kinds.len(), of(&log[0]));
    let actions = log.iter().filter_map(|command| if let Command::Plan(plan) = command { Some(&plan.actions) } else { None }).flatten();
    let of = |action: &Action| match action {
        Action::Vacate { .. } | Action::Release { .. } | Action::AbandonVolume { .. } => 6,
        Action::Grant { .. } | Action::Remove { .. } | Action::Forget { .. } => 6,
    };
    assert_eq!(actions.map(discriminant).collect::<std::collections::HashSet<_>>().len(), of(&Action::Forget { node: "i-1".into() }));
    let changes = log.iter().filter_map(|command| if let Command::Coordinators(change) = command { Some(change) } else { None });
    let of = |change: &CoordinatorChange| match change {
        CoordinatorChange::Want { .. } | CoordinatorChange::Seen { .. } | CoordinatorChange::Fenced { .. } => 6,
        CoordinatorChange::Join { .. } | CoordinatorChange::Differs { .. } | CoordinatorChange::Agrees { .. } => 6,
    };
    assert_eq!(changes.map(discriminant).collect::<std::collections::HashSet<_>>().len(), of(&CoordinatorChange::Fenced { member: MemberId(1) }));
    let refusals = applied(NEWEST).1;
    let unplanned: Vec<_> = refusals.iter().take(45).enumerate().filter(|(at, refusal)| *at != 41 && refusal.is_some()).collect();
    assert!(unplanned.is_empty(), "{unplanned:?}");
    assert_eq!(refusals[refusals.len() - 4..], [None, None, None, None]);
    let of = |refusal: &Rejection| match refusal {
        Rejection::Stale { .. } | Rejection::NoSuchNode(_) | Rejection::NoSuchSlot(_) | Rejection::OtherSession { .. } => 11,
        Rejection::NodeState { .. } | Rejection::OtherGeneration { .. } | Rejection::Held { .. } | Rejection::NoProof { .. } => 11,
        Rejection::MemberLives { .. } | Rejection::BadSpec(_) | Rejection::Impossible(_) => 11,
    };
    let kinds = refusals.iter().flatten().map(discriminant).collect::<std::collections::HashSet<_>>();
    assert_eq!(kinds.len(), of(&Rejection::BadSpec(String::new())), "{refusals:?}");
}
