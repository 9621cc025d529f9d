//! The coordinators' own group: ids that are never given twice, replacement under proof, and which membership entry comes next.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod situation;
use std::collections::{BTreeMap, BTreeSet};

use situation::entry;
use vp_cluster::{
    ClusterState, Command, MemberId, NodeId, Rejection, Zone, apply,
    coordinators::{self, CoordinatorChange, CoordinatorSlot, Standing},
    membership::{self, GroupSeen, PeerSeen, Step},
    restore,
    version::{self, NEWEST},
};

fn slots(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<u32, CoordinatorSlot> {
    let slot =
        |number: u32| CoordinatorSlot { address: format!("10.0.{number}.10"), zone: Zone(format!("zone-{number}")), group: format!("coordinator-{number}") };
    numbers.into_iter().map(|number| (number, slot(number))).collect()
}

/// A group of coordinators as its log makes it: commands and membership entries, each checked.
struct Case {
    state: ClusterState,
    voters: BTreeSet<MemberId>,
    learners: BTreeSet<MemberId>,
    silent: BTreeSet<MemberId>,
    /// For how long those are.
    silent_ms: u64,
    behind: BTreeSet<MemberId>,
    leader: MemberId,
}

fn ids<const N: usize>(list: [u64; N]) -> BTreeSet<MemberId> {
    list.into_iter().map(MemberId).collect()
}

impl Case {
    fn of(count: u32) -> Self {
        let state = coordinators::founded(slots(1..=count), NEWEST);
        let voters = (1..=u64::from(count)).map(MemberId).collect();
        let mut case = Self { state, voters, learners: ids([]), silent: ids([]), silent_ms: 0, behind: ids([]), leader: MemberId(1) };
        for number in 1..=u64::from(count) {
            case.apply(CoordinatorChange::Seen { member: MemberId(number), instance: NodeId(format!("i-{number}")), supports: NEWEST }).unwrap();
        }
        case
    }

    fn apply(&mut self, change: CoordinatorChange) -> Result<(), Rejection> {
        self.command(&Command::Coordinators(change))
    }

    fn command(&mut self, command: &Command) -> Result<(), Rejection> {
        entry(&mut self.state, |state, index| apply(state, index, 5, command).map(drop))
    }

    fn join(&mut self, slot: u32, instance: &str) -> Result<MemberId, Rejection> {
        self.apply(CoordinatorChange::Join { slot, instance: instance.into(), supports: NEWEST })?;
        Ok(self.state.coordinators.last_member)
    }

    /// The instance of a member dies, and EC2 says so.
    fn dies(&mut self, member: u64) {
        self.silent.insert(MemberId(member));
        self.apply(CoordinatorChange::Fenced { member: MemberId(member) }).unwrap();
    }

    fn next(&self) -> Option<Step> {
        membership::next(&self.state.coordinators, &self.seen()).0
    }

    fn waits(&self) -> String {
        let (step, gates) = membership::next(&self.state.coordinators, &self.seen());
        assert_eq!(step, None);
        gates.into_iter().map(|gate| format!("{}: {}", gate.subject, gate.closed_by)).collect::<Vec<_>>().join("; ")
    }

    fn seen(&self) -> GroupSeen {
        let silent = |id: &MemberId| self.silent.contains(id);
        let peer = |id: &MemberId| PeerSeen {
            active: !silent(id),
            behind: if self.behind.contains(id) { 1000 } else { 0 },
            silent_ms: if silent(id) { self.silent_ms } else { 0 },
        };
        let all = self.voters.union(&self.learners);
        GroupSeen {
            leader: self.leader,
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            joint: false,
            peers: all.filter(|id| **id != self.leader).map(|id| (*id, peer(id))).collect(),
        }
    }

    /// Carries out what comes next, as the log would; the steps that were taken.
    fn settle(&mut self) -> Vec<Step> {
        let mut taken = Vec::new();
        while let Some(step) = self.next() {
            match &step {
                Step::AddLearner(id) => drop(self.learners.insert(*id)),
                Step::Change { promote, remove } => {
                    self.voters = self.voters.union(promote).filter(|id| !remove.contains(id)).copied().collect();
                    self.learners.retain(|id| !promote.contains(id) && !remove.contains(id));
                    assert!(self.voters.len() % 2 == 1, "an even number of voters after {step:?}");
                }
                Step::HandOver(to) => self.leader = *to,
                Step::LeaveJoint => {}
            }
            let (voters, learners) = (self.voters.clone(), self.learners.clone());
            entry(&mut self.state, |state, index| coordinators::configured(state, index, &voters, &learners));
            taken.push(step);
            assert!(taken.len() < 20, "it never settles: {taken:?}");
        }
        taken
    }

    fn standing(&self, member: u64) -> Option<Standing> {
        Some(self.state.coordinators.members.get(&MemberId(member))?.standing)
    }
}

#[test]
fn a_group_as_wanted_needs_nothing() {
    assert_eq!(Case::of(3).settle(), []);
    assert_eq!(Case::of(3).waits(), "");
}

#[test]
fn a_dead_coordinator_is_replaced_by_a_learner_and_one_joint_change() {
    let mut case = Case::of(3);
    case.dies(2);
    assert_eq!(case.waits(), "coordinator 2: member 2 is terminated");
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(4));
    let steps = case.settle();
    assert_eq!(steps, [Step::AddLearner(MemberId(4)), Step::Change { promote: ids([4]), remove: ids([2]) }]);
    assert_eq!(case.voters, ids([1, 3, 4]));
    assert_eq!((case.standing(2), case.standing(4)), (None, Some(Standing::Voter)));
}

#[test]
fn nobody_takes_a_place_before_ec2_says_that_its_instance_is_terminated() {
    let mut case = Case::of(3);
    case.silent.insert(MemberId(2));
    let refused = case.join(2, "i-new").unwrap_err();
    assert_eq!(refused, Rejection::MemberLives { slot: 2, member: MemberId(2), instance: "i-2".to_owned() });
    assert_eq!(case.state.coordinators.last_member, MemberId(3), "a refusal gives no id");
    case.dies(2);
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(4));
}

#[test]
fn an_id_is_never_given_twice_however_often_an_instance_asks() {
    let mut case = Case::of(3);
    case.dies(2);
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(4));
    // Its disk was lost before the group knew it.
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(5));
    assert_eq!(case.standing(4), None);
    // And again, after it was a learner.
    assert_eq!(case.next(), Some(Step::AddLearner(MemberId(5))));
    case.behind.insert(MemberId(5));
    case.settle();
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(6));
    assert_eq!(case.next(), Some(Step::Change { promote: ids([]), remove: ids([5]) }), "the learner it was is reaped");
    case.settle();
    assert_eq!(case.voters, ids([1, 3, 6]));
}

#[test]
fn a_member_is_one_instance_for_ever() {
    let mut case = Case::of(3);
    let seen = |instance: &str| CoordinatorChange::Seen { member: MemberId(2), instance: instance.into(), supports: NEWEST };
    let refused = case.apply(seen("i-other")).unwrap_err().to_string();
    assert!(refused.contains("an id belongs to one disk"), "{refused}");
    assert_eq!(case.state.coordinators.members[&MemberId(2)].instance, Some("i-2".into()));
    case.apply(seen("i-2")).unwrap();
}

#[test]
fn a_group_restored_from_a_snapshot_gives_out_no_id_of_before() {
    let mut case = Case::of(3);
    case.dies(2);
    assert_eq!(case.join(2, "i-new").unwrap(), MemberId(4));
    case.state = restore::restored(case.state, restore::INDEX_STEP, slots(1..=3), 5);
    assert_eq!(case.state.coordinators.members.keys().copied().collect::<BTreeSet<_>>(), ids([1, 2, 3]));
    case.dies(2);
    assert_eq!(case.join(2, "i-newer").unwrap(), MemberId(5));
}

#[test]
fn a_voter_whose_instance_asks_again_with_an_empty_disk_gets_nothing() {
    let mut case = Case::of(3);
    assert!(matches!(case.join(2, "i-2"), Err(Rejection::MemberLives { .. })));
}

#[test]
fn a_member_that_never_came_up_is_reaped_and_the_next_takes_its_place() {
    let mut case = Case::of(3);
    case.dies(2);
    case.join(2, "i-a").unwrap();
    case.behind.insert(MemberId(4));
    assert_eq!(case.settle(), [Step::AddLearner(MemberId(4))]);
    assert_eq!(case.waits(), "coordinator 2: member 4 has not caught up");
    assert!(matches!(case.join(2, "i-b"), Err(Rejection::MemberLives { member: MemberId(4), .. })), "it may still come up");
    case.dies(4);
    assert_eq!(case.settle(), [Step::Change { promote: ids([]), remove: ids([4]) }]);
    assert_eq!(case.join(2, "i-b").unwrap(), MemberId(5));
    case.settle();
    assert_eq!(case.voters, ids([1, 3, 5]));
}

#[test]
fn one_that_died_before_the_group_knew_it_is_forgotten_at_once_or_reaped_when_it_was_added_meanwhile() {
    let mut case = Case::of(3);
    case.dies(2);
    case.join(2, "i-a").unwrap();
    case.dies(4);
    assert_eq!((case.standing(4), case.next()), (None, None));
    // A leader of before had its entry under way.
    case.learners.insert(MemberId(4));
    assert_eq!(case.next(), Some(Step::Change { promote: ids([]), remove: ids([4]) }));
}

#[test]
fn no_change_is_made_that_the_living_could_not_outvote() {
    let mut case = Case::of(3);
    case.dies(2);
    case.join(2, "i-new").unwrap();
    case.silent.insert(MemberId(3));
    // The new one answers: of 1, 3, 4 two live.
    assert_eq!(case.settle().len(), 2);
    let mut case = Case::of(5);
    case.dies(4);
    case.dies(5);
    case.silent.extend(ids([2, 3]));
    case.join(4, "i-new").unwrap();
    case.settle();
    assert_eq!(case.waits(), "coordinator 4: only 2 of the 5 voters that would follow answer; coordinator 5: member 5 is terminated");
}

#[test]
fn three_become_five_in_one_change_and_three_again_in_one() {
    let mut case = Case::of(3);
    case.apply(CoordinatorChange::Want { slots: slots(1..=5) }).unwrap();
    assert_eq!(case.settle(), []);
    case.join(4, "i-4").unwrap();
    case.settle();
    assert_eq!(case.waits(), "coordinator 4: the number of voters stays odd");
    case.join(5, "i-5").unwrap();
    let steps = case.settle();
    assert_eq!(steps.last(), Some(&Step::Change { promote: ids([4, 5]), remove: ids([]) }));
    assert_eq!(case.voters.len(), 5);
    // Two go, one of them leads.
    case.apply(CoordinatorChange::Want { slots: slots([2, 3, 5]) }).unwrap();
    assert_eq!(case.settle(), [Step::HandOver(MemberId(2)), Step::Change { promote: ids([]), remove: ids([1, 4]) }]);
    assert_eq!(case.voters, ids([2, 3, 5]));
}

#[test]
fn three_on_their_way_to_five_are_the_same_three_once_that_is_taken_back_and_the_ids_given_meanwhile_are_spent() {
    let mut case = Case::of(3);
    case.apply(CoordinatorChange::Want { slots: slots(1..=5) }).unwrap();
    assert_eq!(case.join(4, "i-4").unwrap(), MemberId(4));
    assert_eq!(case.settle(), [Step::AddLearner(MemberId(4))]);
    assert_eq!(case.join(5, "i-5").unwrap(), MemberId(5));
    case.apply(CoordinatorChange::Want { slots: slots(1..=3) }).unwrap();
    assert_eq!((case.standing(4), case.standing(5)), (Some(Standing::Learner), None), "one learns, the other was not known to the group yet");
    // Its entry was under way all the same.
    case.learners.insert(MemberId(5));
    let reaped = |id| Step::Change { promote: ids([]), remove: ids([id]) };
    assert_eq!(case.settle(), [reaped(4), reaped(5)]);
    assert_eq!((case.voters.clone(), case.learners.clone(), case.waits()), (ids([1, 2, 3]), ids([]), String::new()));
    assert!(matches!(case.join(4, "i-4"), Err(Rejection::Impossible(_))), "its place is not wanted any more");
    // Wanted once more.
    case.apply(CoordinatorChange::Want { slots: slots(1..=5) }).unwrap();
    assert_eq!((case.join(4, "i-4").unwrap(), case.join(5, "i-5").unwrap()), (MemberId(6), MemberId(7)));
    case.settle();
    assert_eq!(case.voters, ids([1, 2, 3, 6, 7]));
}

#[test]
fn nobody_goes_before_whoever_is_to_come_has_joined() {
    let mut case = Case::of(3);
    case.apply(CoordinatorChange::Want { slots: slots([1, 2, 4]) }).unwrap();
    assert_eq!(case.settle(), []);
    assert_eq!(case.waits(), "coordinator 3: the number of voters stays odd");
}

#[test]
fn what_is_wanted_is_odd_and_a_place_keeps_its_address() {
    let mut case = Case::of(3);
    let moved = BTreeMap::from([(1, slots([9])[&9].clone())]);
    let twice = BTreeMap::from([(1, slots([1])[&1].clone()), (2, slots([2])[&2].clone()), (7, slots([1])[&1].clone())]);
    for (wrong, said) in
        [(slots(1..=2), "use 1, 3 or 5"), (slots(1..=9), "use 1, 3 or 5"), (slots([]), "use 1, 3 or 5"), (moved, "keeps its address"), (twice, "one address")]
    {
        let refused = case.apply(CoordinatorChange::Want { slots: wrong }).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn a_joint_configuration_that_nobody_left_is_left_before_anything_else() {
    let mut case = Case::of(3);
    case.dies(2);
    case.join(2, "i-new").unwrap();
    let seen = GroupSeen { joint: true, ..case.seen() };
    assert_eq!(membership::next(&case.state.coordinators, &seen).0, Some(Step::LeaveJoint));
}

#[test]
fn rules_are_raised_only_when_every_member_knows_them() {
    let mut case = Case::of(3);
    case.state.apply_version = 0;
    case.apply(CoordinatorChange::Seen { member: MemberId(3), instance: "i-3".into(), supports: 0 }).unwrap();
    assert_eq!(version::raisable(&case.state), None);
    assert!(case.command(&Command::RaiseApplyVersion { to: 1 }).is_err());
    case.apply(CoordinatorChange::Seen { member: MemberId(3), instance: "i-3".into(), supports: 1 }).unwrap();
    assert_eq!(version::raisable(&case.state), Some(1));
    case.command(&Command::RaiseApplyVersion { to: 1 }).unwrap();
    assert_eq!((case.state.apply_version, version::raisable(&case.state)), (1, None));
}

#[test]
fn a_wanted_coordinator_for_another_takes_its_place_in_one_change_also_when_the_other_leads() {
    for leader in [1, 3] {
        let mut case = Case::of(3);
        case.leader = MemberId(leader);
        let mut wanted = slots(1..=3);
        wanted.remove(&3);
        wanted.extend(slots(4..=4));
        case.apply(CoordinatorChange::Want { slots: wanted }).unwrap();
        assert_eq!(case.join(4, "i-4").unwrap(), MemberId(4));
        let steps = case.settle();
        assert_eq!(case.voters, ids([1, 2, 4]), "{steps:?}");
        assert!(steps.contains(&Step::Change { promote: ids([4]), remove: ids([3]) }), "{steps:?}");
    }
}

#[test]
fn a_voter_silent_for_long_though_ec2_says_it_runs_is_terminated_once_nobody_else_is_silent() {
    let mut case = Case::of(3);
    let terminated = |case: &Case| membership::to_terminate(&case.state.coordinators, &case.seen());
    assert_eq!(terminated(&case), None, "all answer");
    case.silent.insert(MemberId(2));
    case.silent_ms = membership::GONE_AFTER_MS - 1;
    assert_eq!(terminated(&case), None, "it may come back");
    case.silent_ms += 1;
    assert_eq!(terminated(&case), Some(MemberId(2)));
    case.silent.insert(MemberId(3));
    assert_eq!(terminated(&case), None, "of two that are silent at once the fault may be here");
    case.silent.remove(&MemberId(3));
    case.dies(2);
    assert_eq!(terminated(&case), None, "it is terminated already");
}

#[test]
fn a_successor_that_never_comes_up_is_terminated_once_every_voter_that_may_live_answers() {
    let terminated = |case: &Case| membership::to_terminate(&case.state.coordinators, &case.seen());
    let mut hangs = Case::of(3);
    hangs.dies(2);
    hangs.join(2, "i-a").unwrap();
    hangs.silent.insert(MemberId(4));
    assert_eq!(hangs.settle(), [Step::AddLearner(MemberId(4))]);
    hangs.silent_ms = membership::GONE_AFTER_MS - 1;
    assert_eq!(terminated(&hangs), None, "it may still come up");
    hangs.silent_ms += 1;
    assert_eq!(terminated(&hangs), Some(MemberId(4)));
    hangs.silent.insert(MemberId(3));
    assert_eq!(terminated(&hangs), None, "a voter that may live is silent too: the fault may be here");
    hangs.silent.remove(&MemberId(3));
    hangs.dies(4);
    assert_eq!(terminated(&hangs), None, "it is terminated already: its group boots the next");
    // The same while the group grows and nobody is dead.
    let mut grows = Case::of(3);
    grows.apply(CoordinatorChange::Want { slots: slots(1..=5) }).unwrap();
    grows.join(4, "i-4").unwrap();
    assert_eq!(grows.settle(), [Step::AddLearner(MemberId(4))]);
    (grows.silent, grows.silent_ms) = (ids([4]), membership::GONE_AFTER_MS);
    assert_eq!(terminated(&grows), Some(MemberId(4)));
}

#[test]
fn neither_a_member_of_a_pair_nor_one_that_is_on_its_way_out_is_terminated_for_its_silence() {
    let mut pair = Case::of(3);
    pair.voters = ids([1, 2]);
    (pair.silent, pair.silent_ms) = (ids([2]), membership::GONE_AFTER_MS);
    assert_eq!(membership::to_terminate(&pair.state.coordinators, &pair.seen()), None);
    let mut changing = Case::of(3);
    (changing.silent, changing.silent_ms) = (ids([2]), membership::GONE_AFTER_MS);
    let joint = GroupSeen { joint: true, ..changing.seen() };
    assert_eq!(membership::to_terminate(&changing.state.coordinators, &joint), None);
    changing.state.coordinators.slots.remove(&2);
    assert_eq!(membership::to_terminate(&changing.state.coordinators, &changing.seen()), None, "its slot is not wanted any more");
}
