//! The bugs that can be planted (`mutant!("name")` in the crates that ship), and the hunt for each: by seeds first; what is no matter of timing is left to
//! the crates' own tests (`tests/mutants` runs those).

use crate::runs::{Order, all};

/// A planted bug.
pub struct Mutant {
    pub name: &'static str,
    /// What the planted code does.
    pub does: &'static str,
    /// The crate whose own tests must notice it when no seed does.
    pub home: &'static str,
}

const fn mutant(home: &'static str, name: &'static str, does: &'static str) -> Mutant {
    Mutant { name, does, home }
}

/// Every one of them.
pub const ALL: &[Mutant] = &[
    // Consensus and the disk.
    mutant("vp-coordinator", "no-sync-before-send", "messages that promise an entry leave before it is synced"),
    mutant("vp-coordinator", "hard-state-forgotten", "term and vote are not kept: a member votes twice"),
    mutant("vp-coordinator", "commit-before-quorum", "a leader commits what only it has"),
    mutant("vp-coordinator", "snapshot-without-term", "a snapshot does not say the term of its last entry"),
    mutant("vp-coordinator", "events-lost-in-snapshot", "a snapshot leaves the event ring out"),
    mutant("vp-coordinator", "applied-twice-after-restart", "a restart applies the last command again"),
    // Leases as the leader counts them.
    mutant("vp-cluster", "half-a-lease", "a node is lost after half a lease"),
    mutant("vp-cluster", "margin-forgotten", "a node is lost at the lease's end, without drift and margin"),
    mutant("vp-cluster", "no-window-for-a-new-leader", "a new leader counts silence from before its election"),
    mutant("vp-coordinator", "detached-off-anybody", "a volume is taken off whoever holds it when the call arrives"),
    mutant("vp-coordinator", "registered-unheard", "a node counts as silent from its registration until its stream is open"),
    mutant("vp-coordinator", "newcomers-untold", "whoever opens a stream is told what to run only when something has moved"),
    mutant("vp-coordinator", "reports-tell-nobody", "what agents report of their slots opens no gate for others until something else moves"),
    mutant("vp-coordinator", "old-terms-memory", "a new term begins with the memory of an earlier one"),
    mutant("vp-coordinator", "not-condemned", "a session whose loss is being proposed is still acknowledged"),
    mutant("vp-coordinator", "ack-without-read-index", "an acknowledgement does not wait for a quorum"),
    mutant("vp-coordinator", "ack-names-everything", "an acknowledgement names pairs that the state does not grant"),
    mutant("vp-cluster", "other-sessions-loss", "the loss of an earlier session is taken for the live one's"),
    // Leases as the agent counts them.
    mutant("vp-agent", "wall-clock", "leases run on the wall clock"),
    mutant("vp-agent", "lease-from-receipt", "a lease runs from when its answer came"),
    mutant("vp-agent", "lease-from-newest-heartbeat", "a lease runs from the newest heartbeat sent, not from the one answered"),
    mutant("vp-agent", "unnamed-pairs-renewed", "an answer renews all pairs of its heartbeat"),
    mutant("vp-agent", "exclusive-without-lease", "an exclusive role starts without a lease, and so without a guard"),
    mutant("vp-agent", "guard-forgives", "a guard lets a second pass after its deadline"),
    mutant("vp-agent", "restart-kills", "a lease that is not known counts as over: an agent's restart kills"),
    mutant("vp-agent", "quorum-killed-with-lease", "a quorum role is killed when its lease is over"),
    // Fencing and proof.
    mutant("vp-cluster", "silence-moves-a-quorum-role", "an expired lease is proof for a quorum role"),
    mutant("vp-cluster", "silence-moves-an-unfenced-role", "an expired lease is proof although the sinks are not fenced"),
    mutant("vp-cluster", "unknown-is-terminated", "an instance that EC2 does not know counts as terminated"),
    mutant("vp-cluster", "shutting-down-is-terminated", "an instance that shuts down counts as terminated"),
    mutant("vp-cluster", "gone-though-heard", "an operator's word fences a node that is not lost"),
    mutant("vp-cluster", "held-slot-granted", "a slot is granted although it has a holder"),
    mutant("vp-cluster", "generation-not-raised", "a grant keeps the generation of the one before"),
    mutant("vp-agent", "word-before-the-end", "an agent gives a slot back while its process still ends"),
    mutant("vp-agent", "generations-forgotten", "an agent's restart forgets what it has accepted and given back"),
    mutant("vp-agent", "lower-generation-taken", "an agent starts a generation lower than it has accepted"),
    mutant("vp-agent", "released-started-again", "an agent starts again what it has given back"),
    mutant("vp-agent", "older-set-taken", "an agent takes a desired set older than its last"),
    mutant("vp-coordinator", "volume-detached-from-holder", "a volume is taken off the node that holds its slot"),
    mutant("vp-coordinator", "detached-in-sight", "a volume that is being taken away still opens the start gate"),
    mutant("vp-coordinator", "deposed-leader-detaches", "a leader that stood still takes a volume away on its old state"),
    mutant("vp-coordinator", "unanswered-slice-counts", "a slice of the nodes that EC2 did not answer for counts as looked at"),
    mutant("vp-coordinator", "ticks-ignore-the-lease", "an election takes up to two seconds whatever the lease"),
    mutant("vp-coordinator", "newest-segment-not-missed", "a log whose newest segment is gone is opened"),
    // The brake.
    mutant("vp-cluster", "brake-off", "the brake never closes"),
    mutant("vp-cluster", "brake-counts-late", "the brake counts a node only once it is given up: the first of many go one by one"),
    mutant("vp-cluster", "brake-opens-at-once", "the brake opens with the first return and gives up the others"),
    mutant("vp-cluster", "brake-forgets-the-unheard", "a new leader's brake does not remember those it has not heard yet"),
    mutant("vp-cluster", "terminates-unlooked", "a new leader terminates the lost before it knows how many are silent"),
    mutant("vp-cluster", "brake-stops-no-termination", "the closed brake lets terminations through"),
    // Plans.
    mutant("vp-cluster", "stale-plan", "a plan is applied although its ground has moved"),
    mutant("vp-cluster", "two-voters-at-once", "a drain releases two members of a quorum together"),
    mutant("vp-cluster", "drain-of-a-weak-quorum", "a drain takes a member while another is not well"),
    mutant("vp-cluster", "joiners-wait-for-each-other", "two ZooKeepers that are no longer wanted and never started wait for each other"),
    mutant("vp-cluster", "zones-not-spread", "placement does not look at zones"),
    mutant("vp-cluster", "old-member-on-an-empty-disk", "a ZooKeeper member keeps its id without its disk"),
    mutant("vp-cluster", "grow-to-replace", "a replacement is added without removing the old member"),
    mutant("vp-cluster", "joiner-not-in-sync", "a joiner votes before it is in sync"),
    mutant("vp-cluster", "old-broker-session", "a moved broker starts while its old session lives"),
];

/// Plants each bug in turn and prints which seed noticed it; true when none was left over.
pub fn hunt(order: &Order, names: &[String]) -> bool {
    let chosen = ALL.iter().filter(|mutant| names.is_empty() || names.iter().any(|name| name == mutant.name));
    let mut survived = 0;
    for mutant in chosen {
        let total = all(&Order { mutant: Some(mutant.name), ..order.clone() });
        match total.violations.first() {
            Some((_, rule, _)) => println!("{}\t{}\tsimulation\t{rule}\t{}\t{:.1}", mutant.name, mutant.home, total.seeds, total.took.as_secs_f64()),
            None => {
                survived += 1;
                println!("{}\t{}\t-\t-\t{}\t{:.1}", mutant.name, mutant.home, total.seeds, total.took.as_secs_f64());
            }
        }
    }
    survived == 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_bug_has_a_name_of_its_own_and_there_are_more_than_thirty() {
        let names: BTreeSet<&str> = ALL.iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.len() > 30);
    }
}
