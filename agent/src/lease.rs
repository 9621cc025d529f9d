//! Lease arithmetic, pure: a heartbeat lists pairs, its acknowledgement renews those it names, to the heartbeat's
//! **send** time plus the lease. Counting from the send time makes our idea of the deadline earlier than the
//! coordinator's, whatever the network did in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Instant;
use crate::mutant;
use crate::slot::Slot;

/// One lease that an acknowledgement renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Whose.
    pub slot: Slot,
    /// At which generation.
    pub generation: u64,
    /// Until when.
    pub deadline: Instant,
}

struct Sent {
    at: Instant,
    pairs: BTreeSet<(Slot, u64)>,
}

/// Heartbeats under way and leases held.
#[derive(Default)]
pub struct Leases {
    sent: BTreeMap<u64, Sent>,
    held: BTreeMap<Slot, (u64, Instant)>,
}

/// Heartbeats without an answer that are remembered; more than a lease holds of them are worthless.
const MOST_UNDER_WAY: usize = 64;

impl Leases {
    /// A heartbeat is about to be sent at `now`, naming `pairs`.
    pub fn sent(&mut self, sequence: u64, now: Instant, pairs: BTreeSet<(Slot, u64)>) {
        self.sent.insert(sequence, Sent { at: now, pairs });
        while self.sent.len() > MOST_UNDER_WAY {
            self.sent.pop_first();
        }
    }

    /// The coordinator named `renewed` in its answer to heartbeat `sequence`. Pairs that the heartbeat did not list, and answers to
    /// heartbeats of another session, renew nothing; a late answer never shortens a lease.
    pub fn acknowledged(&mut self, sequence: u64, renewed: &[(Slot, u64)], lease: Duration) -> Vec<Renewal> {
        let Some(sent) = self.sent.remove(&sequence) else { return Vec::new() };
        self.sent.retain(|earlier, _| *earlier > sequence);
        let newest = || self.sent.values().next_back().map_or(sent.at, |newest| newest.at);
        let deadline = if mutant!("lease-from-newest-heartbeat") { newest() } else { sent.at }.after(lease);
        let mut renewals = Vec::new();
        for pair in sent.pairs.iter().filter(|pair| renewed.contains(pair) || mutant!("unnamed-pairs-renewed")) {
            let (slot, generation) = pair.clone();
            let held = self.held.entry(slot.clone()).or_insert((generation, deadline));
            if generation < held.0 || (generation == held.0 && deadline < held.1) {
                continue;
            }
            *held = (generation, deadline);
            renewals.push(Renewal { slot, generation, deadline });
        }
        renewals
    }

    /// A new session: answers to the old one's heartbeats no longer count. Leases already held run on.
    pub fn new_session(&mut self) {
        self.sent.clear();
    }

    /// The deadline known for the slot at exactly this generation; none when it was never named since the agent started.
    pub fn deadline(&self, slot: &Slot, generation: u64) -> Option<Instant> {
        self.held.get(slot).filter(|(held, _)| *held == generation).map(|(_, deadline)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(4);

    fn slot() -> Slot {
        Slot::new("stream", 1).unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    fn leases_with_heartbeat(sequence: u64, now: Instant, generation: u64) -> Leases {
        let mut leases = Leases::default();
        leases.sent(sequence, now, BTreeSet::from([(slot(), generation)]));
        leases
    }

    #[test]
    fn a_lease_runs_from_when_the_heartbeat_was_sent_not_from_its_answer() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        leases.acknowledged(1, &[(slot(), 5)], LEASE);
        assert_eq!(leases.deadline(&slot(), 5), Some(at(14)));
    }

    #[test]
    fn a_lease_runs_from_the_heartbeat_that_is_answered_not_from_a_later_one() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        leases.sent(2, at(12), BTreeSet::from([(slot(), 5)]));
        leases.acknowledged(1, &[(slot(), 5)], LEASE);
        assert_eq!(leases.deadline(&slot(), 5), Some(at(14)));
        leases.acknowledged(2, &[(slot(), 5)], LEASE);
        assert_eq!(leases.deadline(&slot(), 5), Some(at(16)));
    }

    #[test]
    fn a_pair_the_answer_does_not_name_is_not_renewed() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        assert_eq!(leases.acknowledged(1, &[], LEASE), vec![]);
        assert_eq!(leases.deadline(&slot(), 5), None);
    }

    #[test]
    fn a_pair_the_heartbeat_did_not_list_is_not_renewed() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        assert_eq!(leases.acknowledged(1, &[(slot(), 6)], LEASE), vec![]);
    }

    #[test]
    fn an_answer_from_before_the_session_renews_nothing() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        leases.new_session();
        assert_eq!(leases.acknowledged(1, &[(slot(), 5)], LEASE), vec![]);
    }

    #[test]
    fn the_same_answer_twice_renews_once() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        assert_eq!(leases.acknowledged(1, &[(slot(), 5)], LEASE).len(), 1);
        assert_eq!(leases.acknowledged(1, &[(slot(), 5)], LEASE).len(), 0);
    }

    #[test]
    fn an_answer_overtaken_by_a_later_one_renews_nothing() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        leases.sent(2, at(11), BTreeSet::from([(slot(), 5)]));
        leases.acknowledged(2, &[(slot(), 5)], LEASE);
        assert_eq!(leases.acknowledged(1, &[(slot(), 5)], LEASE), vec![]);
        assert_eq!(leases.deadline(&slot(), 5), Some(at(15)));
    }

    #[test]
    fn a_lease_of_an_older_generation_is_none_of_a_newer() {
        let mut leases = leases_with_heartbeat(1, at(10), 5);
        leases.acknowledged(1, &[(slot(), 5)], LEASE);
        assert_eq!(leases.deadline(&slot(), 6), None);
        leases.sent(2, at(11), BTreeSet::from([(slot(), 6)]));
        leases.acknowledged(2, &[(slot(), 6)], LEASE);
        assert_eq!(leases.deadline(&slot(), 5), None);
        assert_eq!(leases.deadline(&slot(), 6), Some(at(15)));
    }

    #[test]
    fn heartbeats_never_answered_do_not_pile_up() {
        let mut leases = Leases::default();
        for sequence in 0..1000 {
            leases.sent(sequence, at(sequence), BTreeSet::new());
        }
        assert_eq!(leases.sent.len(), MOST_UNDER_WAY);
    }
}
