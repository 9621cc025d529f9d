//! Do the members agree on what the log has made? Each compares the hash of its state with the others' at the same index, and one that a majority
//! contradicts stops loudly, and says so to whoever asks, so that status shows it. Under steady writes no two of them stand at one index when they are
//! asked; so each also keeps what its state was at marks, indexes that all of them pass.
//! Left out: mending (its log is sound, but what it made of it is not to be trusted).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::sync::watch;
use tracing::{error, warn};
use vp_cluster::{
    ClusterState, Command, MemberId, Revision,
    coordinators::{CoordinatorChange, Standing},
};
use vp_proto::v1::IdentifyResponse;

use crate::{
    api::group::identify,
    leader::Leader,
    peers::{Hashed, Hashes, StateHash},
    trust::Trust,
};

/// Time between two comparisons.
const EVERY: Duration = Duration::from_secs(5);
/// Indexes from mark to mark; the same for all programs that are to be compared.
const MARK_EVERY: u64 = 256;
/// Marks kept: members that are no further apart than these have one in common.
const MARKS: usize = 8;

/// A state, the Raft index it was reached at, and the marks passed on the way.
pub type Reached = (u64, Arc<ClusterState>, Marks);

/// First 8 bytes of the SHA-256 of the state as a snapshot would carry it.
pub fn hash(state: &ClusterState) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, &crate::machine::encode(state));
    digest.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The states at the newest marks, each until it is hashed.
#[derive(Clone, Default)]
pub struct Marks {
    /// Up to here the state's course is known; None: it came from elsewhere.
    known_to: Option<u64>,
    kept: VecDeque<Arc<Mark>>,
}

struct Mark {
    index: u64,
    content: Mutex<Content>,
}

enum Content {
    State(Arc<ClusterState>),
    Hash(u64),
}

impl Marks {
    /// The state is `state` at `index`, and was since the last call: entries in between have changed nothing (empty ones are not told). A mark among
    /// them costs one copy of the state here, in the log's thread; whoever compares does the hashing.
    pub fn pass(&mut self, index: u64, state: &ClusterState) {
        let mark = index - index % MARK_EVERY;
        if mark > self.known_to.unwrap_or(index.saturating_sub(1)) {
            if self.kept.len() == MARKS {
                self.kept.pop_front();
            }
            let content = Mutex::new(Content::State(Arc::new(state.clone())));
            self.kept.push_back(Arc::new(Mark { index: mark, content }));
        }
        self.known_to = Some(index);
    }
}

impl Mark {
    fn hash(&self) -> u64 {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match &*content {
            Content::Hash(found) => *found,
            Content::State(state) => hash(state),
        };
        *content = Content::Hash(found);
        found
    }
}

/// Hashes of what a machine has reached, made when they are asked for, once an index.
struct Lazily {
    reached: watch::Receiver<Reached>,
    last: Mutex<(u64, u64)>,
}

impl Hashes for Lazily {
    fn now(&self) -> Hashed {
        // Not held while hashing: the log's thread would wait.
        let (index, state, marks) = self.reached.borrow().clone();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if index != last.0 || index == 0 {
            *last = (index, hash(&state));
        }
        Hashed { last: *last, marks: marks.kept.iter().map(|mark| (mark.index, mark.hash())).collect() }
    }
}

/// Index and hash of what was reached last, and of the marks before it.
pub fn latest(reached: watch::Receiver<Reached>) -> StateHash {
    Arc::new(Lazily { reached, last: Mutex::default() })
}

/// What a comparison shows, the gravest last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agreement {
    /// Nobody at the same index says anything else; these say the same.
    Agreed(Vec<u64>),
    /// These members differ from this one, and no majority says who is wrong.
    Differ(Vec<u64>),
    /// More than half of all members, this one among them, agree against these.
    Outvotes(Vec<u64>),
    /// More than half of all members agree on another state than this one's.
    Outvoted(Vec<u64>),
}

/// Judges own (index, hash) against the others' (id, index, hash), of `members` in all. Other indexes say nothing.
pub fn judge(own: (u64, u64), others: &[(u64, u64, u64)], members: usize) -> Agreement {
    let (same, differ): (Vec<_>, Vec<_>) = others.iter().filter(|(_, index, _)| *index == own.0).partition(|(_, _, hash)| *hash == own.1);
    let ids = |of: &[&(u64, u64, u64)]| of.iter().map(|(id, ..)| *id).collect::<Vec<u64>>();
    if differ.is_empty() {
        return Agreement::Agreed(ids(&same));
    }
    if same.len() + 1 > members / 2 {
        return Agreement::Outvotes(ids(&differ));
    }
    for (_, _, hash) in &differ {
        let together: Vec<_> = differ.iter().copied().filter(|other| other.2 == *hash).collect();
        if together.len() > members / 2 {
            return Agreement::Outvoted(ids(&together));
        }
    }
    Agreement::Differ(ids(&differ))
}

/// The hashes that one member told, by index.
type ByIndex = BTreeMap<u64, u64>;

fn by_index(hashed: &Hashed) -> ByIndex {
    hashed.marks.iter().copied().chain([hashed.last]).collect()
}

fn told(answer: &IdentifyResponse) -> ByIndex {
    let marks = answer.marks.iter().map(|mark| (mark.index, mark.hash)).collect();
    by_index(&Hashed { last: (answer.applied, answer.state_hash), marks })
}

/// Judges own hashes against the others' (id, hashes), with each at the newest index that both have. The gravest verdict and its index; if all agree, the
/// oldest index at which they were found to.
fn compare(own: &ByIndex, others: &[(u64, ByIndex)], members: usize) -> (u64, Agreement) {
    let newest = |theirs: &ByIndex| theirs.keys().rev().find(|index| own.contains_key(index)).copied();
    let indexes: BTreeSet<u64> = others.iter().filter_map(|(_, theirs)| newest(theirs)).collect();
    let mut agree = BTreeSet::new();
    let mut gravest: Option<(Agreement, u64)> = None;
    for &index in &indexes {
        // Whoever has a newer one in common as well counts here too: that may make the majority.
        let there: Vec<(u64, u64, u64)> = others.iter().filter_map(|(id, theirs)| Some((*id, index, *theirs.get(&index)?))).collect();
        match judge((index, own[&index]), &there, members) {
            Agreement::Agreed(ids) => agree.extend(ids),
            verdict => gravest = gravest.max(Some((verdict, index))),
        }
    }
    match gravest {
        Some((verdict, index)) => (index, verdict),
        None => (indexes.first().copied().unwrap_or_default(), Agreement::Agreed(agree.into_iter().collect())),
    }
}

/// Compares for ever; ends with the index at which this member is the one that is wrong.
pub async fn run(leader: Arc<Leader>, trust: Arc<Trust>, own: StateHash) -> u64 {
    let (leader, trust) = (&*leader, &*trust);
    let mut alarmed = Vec::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let own = own.clone();
        let Ok(before) = tokio::task::spawn_blocking(move || own.now()).await else { continue };
        let state = leader.state();
        let members = &state.coordinators.members;
        // Voters count, each once and in its own name: a successor that learns answers at its predecessor's address.
        let voting = members.iter().filter(|(id, member)| **id != leader.member && member.standing == Standing::Voter);
        let asked = voting.map(|(id, member)| async move { identify(trust, &member.address, &leader.cluster_id).await.filter(|answer| answer.id == id.0) });
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        leader.world.lock().answering = Some(answers.iter().map(|answer| MemberId(answer.id)).collect());
        let voters = members.values().filter(|member| member.standing == Standing::Voter).count();
        // One that has stopped still tells its marks, from before it went astray, too.
        let (stopped, others): (Vec<&IdentifyResponse>, Vec<&IdentifyResponse>) = answers.iter().partition(|answer| answer.differs_at != 0);
        for stopped in stopped {
            record(leader, stopped.id, true, stopped.differs_at).await;
        }
        let others: Vec<(u64, ByIndex)> = others.into_iter().map(|answer| (answer.id, told(answer))).collect();
        let (index, verdict) = compare(&by_index(&before), &others, voters);
        match verdict {
            Agreement::Agreed(same) => {
                alarmed.clear();
                for id in same {
                    record(leader, id, false, index).await;
                }
            }
            Agreement::Outvotes(ids) => {
                error!(index, members = ?ids, "coordinators have another state than the majority at the same index");
                for id in ids {
                    record(leader, id, true, index).await;
                }
            }
            Agreement::Outvoted(ids) => {
                error!(index, members = ?ids, "this member's state is not what the majority has at the same index");
                record(leader, leader.member.0, true, index).await;
                return index;
            }
            Agreement::Differ(ids) => {
                error!(index, members = ?ids, "coordinators have different states at the same index");
                if alarmed != ids && leader.leads() {
                    let detail = format!("coordinators {ids:?} differ from the leader at index {index}");
                    leader.note("state mismatch", "coordinators", detail).await;
                    alarmed = ids;
                }
            }
        }
    }
}

/// Puts into the log that a member `differs` at `index`, or agrees there; only the leader does, and only what is new. An index from before it differed
/// says nothing of what became of it.
async fn record(leader: &Leader, id: u64, differs: bool, index: u64) {
    let member = MemberId(id);
    let state = leader.state();
    let Some(known) = state.coordinators.members.get(&member) else { return };
    let change = match known.differs_at {
        None if differs => CoordinatorChange::Differs { member, at: Revision(index) },
        Some(at) if !differs && at.0 < index => CoordinatorChange::Agrees { member },
        _ => return,
    };
    if !leader.leads() {
        return;
    }
    if let Err(error) = leader.propose(Command::Coordinators(change)).await {
        warn!(%error, "event not recorded");
    }
}

#[cfg(test)]
mod tests {
    use vp_cluster::Command;

    use super::*;
    use crate::{
        machine::{ClusterMachine, Entry},
        raft::Machine,
    };

    #[test]
    fn only_equal_indexes_are_compared_and_a_majority_decides_who_is_wrong() {
        type Answers = &'static [(u64, u64, u64)];
        let cases: [(&str, Answers, usize, Agreement); 9] = [
            ("all the same", &[(2, 9, 1), (3, 9, 1)], 3, Agreement::Agreed(vec![2, 3])),
            ("nobody answers", &[], 3, Agreement::Agreed(vec![])),
            ("others are elsewhere", &[(2, 8, 5), (3, 10, 5)], 3, Agreement::Agreed(vec![])),
            ("one differs", &[(2, 9, 5), (3, 9, 1)], 3, Agreement::Outvotes(vec![2])),
            ("one of five differs", &[(2, 9, 5), (3, 9, 1), (4, 9, 1), (5, 8, 1)], 5, Agreement::Outvotes(vec![2])),
            ("one differs, one is elsewhere", &[(2, 9, 5), (3, 8, 5)], 3, Agreement::Differ(vec![2])),
            ("both differ, alike", &[(2, 9, 5), (3, 9, 5)], 3, Agreement::Outvoted(vec![2, 3])),
            ("all three differ", &[(2, 9, 5), (3, 9, 6)], 3, Agreement::Differ(vec![2, 3])),
            ("two of five", &[(2, 9, 5), (3, 9, 5)], 5, Agreement::Differ(vec![2, 3])),
        ];
        for (name, others, members, wanted) in cases {
            assert_eq!(judge((9, 1), others, members), wanted, "{name}");
        }
    }

    fn note(text: &str) -> Vec<u8> {
        let command = Command::Note { kind: text.to_owned(), subject: String::new(), detail: String::new() };
        serde_json::to_vec(&Entry { unix_ms: 5, request: None, command }).unwrap()
    }

    #[test]
    fn equal_logs_give_equal_hashes_and_a_snapshot_keeps_them() {
        let run = |texts: &[&str]| {
            let (mut machine, _, reached) = ClusterMachine::new();
            for (index, text) in (1..).zip(texts) {
                machine.apply(index, &note(text));
                machine.batch_done(index);
            }
            (latest(reached).now().last, machine.snapshot())
        };
        let (first, snapshot) = run(&["a", "b"]);
        assert_eq!(run(&["a", "b"]).0, first);
        assert_eq!(first.0, 2);
        assert_ne!(run(&["a", "c"]).0.1, first.1);
        let (mut restored, _, reached) = ClusterMachine::new();
        restored.restore(&snapshot).unwrap();
        restored.batch_done(2);
        assert_eq!(latest(reached).now().last, first);
    }

    #[test]
    fn the_hash_follows_the_state() {
        let (mut machine, _, reached) = ClusterMachine::new();
        let latest = latest(reached);
        let empty = latest.now().last;
        machine.apply(4, &note("x"));
        machine.batch_done(4);
        assert_eq!(latest.now().last.0, 4);
        assert_ne!(latest.now().last.1, empty.1);
    }

    /// Applies `indexes` in batches of `batch`. At 512 stands an empty entry, which no machine is told of; at `odd` another than with the others.
    fn apply(machine: &mut ClusterMachine, indexes: std::ops::RangeInclusive<u64>, batch: u64, odd: u64) {
        let last = *indexes.end();
        for index in indexes {
            if index != 512 {
                machine.apply(index, &note(if index == odd { "odd" } else { "even" }));
            }
            if index.is_multiple_of(batch) || index == last {
                machine.batch_done(index);
            }
        }
    }

    /// What a member tells that has applied everything up to `last`.
    fn member(last: u64, batch: u64, odd: u64) -> ByIndex {
        let (mut machine, _, reached) = ClusterMachine::new();
        apply(&mut machine, 1..=last, batch, odd);
        by_index(&latest(reached).now())
    }

    #[test]
    fn members_that_never_stand_at_one_index_when_they_are_asked_are_compared_all_the_same() {
        let own = member(600, 7, 0);
        assert_eq!(own.keys().copied().collect::<Vec<_>>(), [256, 512, 600]);
        let (further, behind, astray) = (member(700, 700, 0), member(530, 9, 0), member(690, 11, 300));
        assert_eq!(compare(&own, &[(2, further.clone()), (3, behind.clone())], 3), (512, Agreement::Agreed(vec![2, 3])));
        assert_eq!(compare(&own, &[(2, astray.clone()), (3, behind.clone())], 3), (512, Agreement::Outvotes(vec![2])));
        assert_eq!(compare(&own, &[(2, astray.clone())], 3), (512, Agreement::Differ(vec![2])));
        assert_eq!(compare(&astray, &[(1, own.clone()), (3, behind)], 3), (512, Agreement::Outvoted(vec![1, 3])));
        // One that is not as far yet is compared where it stood; there the same, whatever came later.
        assert_eq!(compare(&own, &[(2, member(300, 7, 0)), (3, further)], 3), (256, Agreement::Agreed(vec![2, 3])));
        assert_eq!(compare(&member(299, 7, 0), &[(2, astray)], 3), (256, Agreement::Agreed(vec![2])));
        // And one whose program keeps no marks, where it stands by chance.
        let old = BTreeMap::from([(512, own[&512])]);
        assert_eq!(compare(&own, &[(2, old), (3, BTreeMap::from([(601, 1)]))], 3), (512, Agreement::Agreed(vec![2])));
    }

    #[test]
    fn of_several_verdicts_the_gravest_counts() {
        let own = ByIndex::from([(256, 1), (512, 1), (600, 1)]);
        let at = |pairs: &[(u64, u64)]| pairs.iter().copied().collect::<ByIndex>();
        // One agrees where both stand; with its older mark it tells that the third is wrong.
        let others = [(2, at(&[(256, 1), (600, 1)])), (3, at(&[(256, 9)]))];
        assert_eq!(compare(&own, &others, 3), (256, Agreement::Outvotes(vec![3])));
        let others = [(2, at(&[(512, 9)])), (3, at(&[(512, 9), (600, 9)]))];
        assert_eq!(compare(&own, &others, 3), (512, Agreement::Outvoted(vec![2, 3])));
        // What was once different and is the same at the newest index in common is the same.
        assert_eq!(compare(&own, &[(2, at(&[(256, 9), (512, 1)]))], 3), (512, Agreement::Agreed(vec![2])));
        assert_eq!(compare(&own, &[], 3), (0, Agreement::Agreed(vec![])));
    }

    #[test]
    fn the_newest_eight_marks_are_kept_and_one_that_was_restored_has_none_from_before() {
        let all: Vec<u64> = member(2600, 100, 0).into_keys().collect();
        assert_eq!(all, [768, 1024, 1280, 1536, 1792, 2048, 2304, 2560, 2600]);
        let (mut machine, _, _) = ClusterMachine::new();
        apply(&mut machine, 1..=300, 50, 0);
        let (mut restored, _, reached) = ClusterMachine::new();
        apply(&mut restored, 1..=260, 50, 200);
        restored.restore(&machine.snapshot()).unwrap();
        restored.batch_done(300);
        apply(&mut restored, 301..=600, 50, 0);
        let wanted: ByIndex = member(600, 50, 0).into_iter().filter(|(index, _)| *index > 300).collect();
        assert_eq!(by_index(&latest(reached).now()), wanted);
    }

    #[test]
    fn a_state_is_let_go_once_it_is_hashed() {
        let (mut machine, _, reached) = ClusterMachine::new();
        apply(&mut machine, 1..=256, 256, 0);
        let marks = reached.borrow().2.clone();
        let first = marks.kept[0].hash();
        assert!(matches!(*marks.kept[0].content.lock().unwrap(), Content::Hash(kept) if kept == first));
        assert_eq!(latest(reached).now(), Hashed { last: (256, first), marks: vec![(256, first)] });
    }
}
