//! Do the members agree on what the log has made? Each compares the hash of its state with the others' at the same index, and one that a majority
//! contradicts stops loudly, and says so to whoever asks, so that status shows it. Left out: mending (its log is sound, but what it made of it is not to be trusted).

use std::{
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

use crate::{api::group::identify, leader::Leader, peers::StateHash, trust::Trust};

/// Time between two comparisons.
const EVERY: Duration = Duration::from_secs(5);

/// A state and the Raft index it was reached at.
pub type Reached = (u64, Arc<ClusterState>);

/// First 8 bytes of the SHA-256 of the state as a snapshot would carry it.
pub fn hash(state: &ClusterState) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, &crate::machine::encode(state));
    digest.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Index and hash of what was reached last; hashed when asked, once an index.
pub fn latest(reached: watch::Receiver<Reached>) -> StateHash {
    let kept = Mutex::new((0, 0));
    Arc::new(move || {
        let (index, state) = reached.borrow().clone();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if index != kept.0 || index == 0 {
            *kept = (index, hash(&state));
        }
        *kept
    })
}

/// What a comparison shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Nobody at the same index says anything else; these say the same.
    Agreed(Vec<u64>),
    /// More than half of all members, this one among them, agree against these.
    Outvotes(Vec<u64>),
    /// These members differ from this one, and no majority says who is wrong.
    Differ(Vec<u64>),
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

/// Compares for ever; ends with the index at which this member is the one that is wrong.
pub async fn run(leader: Arc<Leader>, trust: Arc<Trust>, own: StateHash) -> u64 {
    let (leader, trust) = (&*leader, &*trust);
    let mut alarmed = Vec::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let state = leader.state();
        let members = &state.coordinators.members;
        // Voters count, each once and in its own name: a successor that learns answers at its predecessor's address.
        let voting = members.iter().filter(|(id, member)| **id != leader.member && member.standing == Standing::Voter);
        let asked = voting.map(|(id, member)| async move { identify(trust, &member.address, &leader.cluster_id).await.filter(|answer| answer.id == id.0) });
        let before = own();
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let others: Vec<(u64, u64, u64)> = answers.iter().map(|answer| (answer.id, answer.applied, answer.state_hash)).collect();
        leader.world.lock().answering = Some(others.iter().map(|(id, ..)| MemberId(*id)).collect());
        let voters = members.values().filter(|member| member.standing == Standing::Voter).count();
        for stopped in answers.iter().filter(|answer| answer.differs_at != 0) {
            record(leader, stopped.id, Some(stopped.differs_at)).await;
        }
        match judge(before, &others, voters) {
            Agreement::Agreed(same) => {
                alarmed.clear();
                for id in same {
                    record(leader, id, None).await;
                }
            }
            Agreement::Outvotes(ids) => {
                error!(index = before.0, members = ?ids, "coordinators have another state than the majority at the same index");
                for id in ids {
                    record(leader, id, Some(before.0)).await;
                }
            }
            Agreement::Outvoted(ids) => {
                error!(index = before.0, members = ?ids, "this member's state is not what the majority has at the same index");
                record(leader, leader.member.0, Some(before.0)).await;
                return before.0;
            }
            Agreement::Differ(ids) => {
                error!(index = before.0, members = ?ids, "coordinators have different states at the same index");
                if alarmed != ids && leader.leads() {
                    let detail = format!("coordinators {ids:?} differ from the leader at index {}", before.0);
                    leader.note("state mismatch", "coordinators", detail).await;
                    alarmed = ids;
                }
            }
        }
    }
}

/// Puts into the log that a member differs, or agrees again; only the leader does, and only what is new.
async fn record(leader: &Leader, id: u64, differs_at: Option<u64>) {
    let member = MemberId(id);
    let state = leader.state();
    let Some(known) = state.coordinators.members.get(&member) else { return };
    if !leader.leads() || known.differs_at.is_some() == differs_at.is_some() {
        return;
    }
    let change = match differs_at {
        Some(at) => CoordinatorChange::Differs { member, at: Revision(at) },
        None => CoordinatorChange::Agrees { member },
    };
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

    #[test]
    fn equal_logs_give_equal_hashes_and_a_snapshot_keeps_them() {
        let note = |text: &str| Command::Note { kind: text.to_owned(), subject: String::new(), detail: String::new() };
        let run = |texts: &[&str]| {
            let (mut machine, _, reached) = ClusterMachine::new();
            for (index, text) in (1..).zip(texts) {
                let entry = Entry { unix_ms: 5, request: None, command: note(text) };
                machine.apply(index, &serde_json::to_vec(&entry).unwrap());
                machine.batch_done(index);
            }
            (latest(reached)(), machine.snapshot())
        };
        let (first, snapshot) = run(&["a", "b"]);
        assert_eq!(run(&["a", "b"]).0, first);
        assert_eq!(first.0, 2);
        assert_ne!(run(&["a", "c"]).0.1, first.1);
        let (mut restored, _, reached) = ClusterMachine::new();
        restored.restore(&snapshot).unwrap();
        restored.batch_done(2);
        assert_eq!(latest(reached)(), first);
    }

    #[test]
    fn the_hash_follows_the_state() {
        let (mut machine, _, reached) = ClusterMachine::new();
        let latest = latest(reached);
        let empty = latest();
        let entry = Entry { unix_ms: 5, request: None, command: Command::Note { kind: "x".to_owned(), subject: String::new(), detail: String::new() } };
        machine.apply(4, &serde_json::to_vec(&entry).unwrap());
        machine.batch_done(4);
        assert_eq!(latest().0, 4);
        assert_ne!(latest().1, empty.1);
    }
}
