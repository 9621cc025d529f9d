//! Members that the test turns by hand: what is sent when in rounds of reads and in batches of proposals, how old a copy says it may be, what a proposer is told when
//! the lead is lost, and who does not stand.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]
mod ledger;

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use ledger::{Ledger, command, config, identity};
use raft::eraftpb::{Message, MessageType};
use vp_coordinator::raft::{Applied, Config, Node, Outbox, ProposeError, RaftHandle, Role, Task, open, start};
use vp_coordinator::storage::{DiskStore, StoreOptions};

#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Message>>>);

impl Outbox for Sent {
    fn send(&mut self, message: Message) -> bool {
        self.0.lock().unwrap().push(message);
        true
    }
}

impl Sent {
    /// What was said to `to`; what was said to others is lost.
    fn take(&self, to: u64) -> Vec<Message> {
        self.0.lock().unwrap().drain(..).filter(|message| message.to == to).collect()
    }
}

/// A member's own folder lies in `folder`.
fn opened(config: Config, folder: &std::path::Path) -> Node<DiskStore, Ledger> {
    open(&folder.join(config.id.to_string()), &identity(config.id), StoreOptions::default(), config, Ledger::default()).unwrap()
}

struct Member {
    handle: RaftHandle,
    task: Task<DiskStore, Ledger, Sent>,
    sent: Sent,
}

impl Member {
    fn new(id: u64, voters: &[u64], folder: &std::path::Path) -> Self {
        let sent = Sent::default();
        let (handle, task) = Task::new(opened(config(id, voters), folder), sent.clone());
        Self { handle, task, sent }
    }

    fn turn(&mut self, tick: bool) {
        assert!(self.task.turn(tick).unwrap());
    }

    /// What it has to say to `to`; what it says to others is lost.
    fn take(&self, to: u64) -> Vec<Message> {
        self.sent.take(to)
    }
}

/// Takes all messages from one to the other, each of which is then turned. How many there were.
fn deliver(members: &mut [Member], from: usize, to: usize) -> usize {
    let messages = members[from].take(to as u64 + 1);
    for message in &messages {
        members[to].handle.step(message.clone());
    }
    members[to].turn(false);
    messages.len()
}

/// The first two talk until neither has anything to say.
fn settle(members: &mut [Member]) {
    while deliver(members, 0, 1) + deliver(members, 1, 0) > 0 {}
}

/// Three members of whom the first leads.
fn three(folder: &std::path::Path) -> Vec<Member> {
    let mut members: Vec<_> = (1..=3).map(|id| Member::new(id, &[1, 2, 3], folder)).collect();
    // The first alone feels time pass, so it is the one that stands; what the third is told is lost.
    while !members[0].handle.status().leads() {
        members[0].turn(true);
        deliver(&mut members, 0, 1);
        deliver(&mut members, 1, 0);
    }
    settle(&mut members);
    members
}

#[tokio::test]
async fn a_read_that_came_during_a_round_is_sent_on_its_own_as_soon_as_the_round_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let leader = members[0].handle.clone();
    let (mut first, mut second) = (pin!(leader.read_index()), pin!(leader.read_index()));
    assert!((&mut first).now_or_never().is_none());
    members[0].turn(false);
    assert!((&mut second).now_or_never().is_none());
    members[0].turn(false);
    // The first round's question there and back, which is the last thing that happens: no tick, no other member.
    assert!(deliver(&mut members, 0, 1) > 0);
    assert!(deliver(&mut members, 1, 0) > 0);
    assert!((&mut first).now_or_never().unwrap().is_ok());
    assert!((&mut second).now_or_never().is_none(), "a round that began before it was asked proves nothing for it");
    assert!(deliver(&mut members, 0, 1) > 0, "the second round waits for something else to happen");
    assert!(deliver(&mut members, 1, 0) > 0);
    assert!((&mut second).now_or_never().unwrap().is_ok());
}

/// More than the queue to the thread has room for.
const CROWD: usize = 10_000;

#[tokio::test]
async fn all_who_ask_before_a_round_begins_ask_once_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let leader = members[0].handle.clone();
    let mut reads: Vec<_> = (0..CROWD).map(|_| Box::pin(leader.read_index())).collect();
    assert!(reads.iter_mut().all(|read| read.now_or_never().is_none()), "none is refused for want of room");
    members[0].turn(false);
    assert!(deliver(&mut members, 0, 1) > 0);
    assert!(deliver(&mut members, 1, 0) > 0);
    assert!(reads.iter_mut().all(|read| matches!(read.now_or_never(), Some(Ok(_)))));
}

#[tokio::test]
async fn a_read_that_is_refused_in_the_turn_in_which_its_member_wins_spoils_none_that_follows() {
    let folder = tempfile::tempdir().unwrap();
    let mut members: Vec<_> = (1..=3).map(|id| Member::new(id, &[1, 2, 3], folder.path())).collect();
    let one = members[0].handle.clone();
    let mut asked = Vec::new();
    while !one.status().leads() {
        members[0].turn(true);
        deliver(&mut members, 0, 1);
        // Asked before the votes come in, and taken with them.
        let mut read = Box::pin(one.read_index());
        assert!((&mut read).now_or_never().is_none_or(|read| read.is_ok()));
        asked.push(read);
        deliver(&mut members, 1, 0);
    }
    settle(&mut members);
    assert!(asked.iter_mut().any(|read| matches!(read.now_or_never(), Some(Err(_)))), "one was refused");
    let mut read = pin!(one.read_index());
    assert!((&mut read).now_or_never().is_none());
    members[0].turn(false);
    settle(&mut members);
    assert!(matches!((&mut read).now_or_never(), Some(Ok(_))));
}

/// How many entries its messages to the second carry.
fn appended(member: &Member) -> (usize, Vec<Message>) {
    let messages = member.take(2);
    (messages.iter().map(|message| message.entries.len()).sum(), messages)
}

fn propose(leader: &RaftHandle, number: u64) -> Pin<Box<impl Future<Output = Result<Applied, ProposeError>> + use<>>> {
    let leader = leader.clone();
    let mut proposal = Box::pin(async move { leader.propose(command(number, 10)).await });
    assert!((&mut proposal).now_or_never().is_none());
    proposal
}

#[tokio::test]
async fn what_is_proposed_beside_a_young_batch_goes_together_when_that_ends_or_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let leader = members[0].handle.clone();
    members[0].task.hold_batches(true);
    let first = propose(&leader, 1);
    members[0].turn(false);
    let (count, batch) = appended(&members[0]);
    assert_eq!(count, 1, "nothing is under way: it goes at once");
    let mut beside: Vec<_> = (2..=40).map(|number| propose(&leader, number)).collect();
    members[0].turn(false);
    assert_eq!(appended(&members[0]).0, 0, "they wait for it");
    batch.into_iter().for_each(|message| step(&mut members[1], message));
    assert!(deliver(&mut members, 1, 0) > 0);
    assert!(matches!(first.now_or_never(), Some(Ok(_))));
    let (count, _) = appended(&members[0]);
    assert_eq!(count, 39, "its end is their beginning");
    // That batch is lost on its way; a third waits for it until it is old.
    beside.push(propose(&leader, 41));
    members[0].turn(false);
    assert_eq!(appended(&members[0]).0, 0);
    members[0].task.hold_batches(false);
    members[0].turn(false);
    settle(&mut members);
    assert!(beside.into_iter().all(|proposal| matches!(proposal.now_or_never(), Some(Ok(_)))));
}

/// By the thread's own clock, whose ticks are an hour apart here.
#[tokio::test]
async fn a_batch_that_does_not_end_holds_the_next_for_its_pace_and_not_until_a_tick() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Config { tick: Duration::from_secs(3600), ..config(1, &[1, 2, 3]) };
    let sent = Sent::default();
    let (leader, ended) = start(opened(settings, folder.path()), sent.clone());
    let ended = tokio::spawn(ended);
    let begun = Instant::now();
    let looked = async || {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::task::yield_now().await;
    };
    let mut second = Member::new(2, &[1, 2, 3], folder.path());
    leader.stand();
    while !leader.status().leads() {
        sent.take(2).into_iter().for_each(|message| step(&mut second, message));
        assert!(second.take(1).into_iter().all(|message| leader.step(message)));
        looked().await;
    }
    // From here on nobody answers, and each is proposed as soon as the one before has left: most come too early.
    let mut under_way = Vec::new();
    for number in 1..=30 {
        under_way.push(propose(&leader, number));
        while sent.take(2).iter().all(|message| message.entries.is_empty()) {
            looked().await;
        }
    }
    leader.stop();
    ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_gathered_when_the_lead_is_lost_is_not_in_the_log_and_its_proposers_are_told_so() {
    for still_held in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut members = three(folder.path());
        let leader = members[0].handle.clone();
        members[0].task.hold_batches(true);
        let under_way = propose(&leader, 1);
        members[0].turn(false);
        assert_eq!(appended(&members[0]).0, 1);
        let last = members[0].task.node().raw().raft.raft_log.last_index();
        let gathered = propose(&leader, 2);
        members[0].turn(false);
        members[0].task.hold_batches(still_held);
        step(&mut members[0], heartbeat(2, 1, leader.status().term + 1, 0));
        assert!(matches!(under_way.now_or_never(), Some(Err(ProposeError::UnknownOutcome))));
        assert!(matches!(gathered.now_or_never(), Some(Err(ProposeError::NotLeader { hint: Some(2) }))));
        assert_eq!(members[0].task.node().raw().raft.raft_log.last_index(), last);
        assert_eq!(appended(&members[0]).0, 0, "nor was it passed on");
    }
}

/// One message, taken and turned.
fn step(member: &mut Member, message: Message) {
    member.handle.step(message);
    member.turn(false);
}

fn heartbeat(from: u64, to: u64, term: u64, commit: u64) -> Message {
    Message { msg_type: MessageType::MsgHeartbeat as i32, from, to, term, commit, ..Default::default() }
}

/// Waits until a word that makes a copy new would show in its age, and says how old it is at least.
fn grown_old(since: Instant) -> u64 {
    while since.elapsed().as_millis() < 20 {
        std::hint::spin_loop();
    }
    since.elapsed().as_millis() as u64
}

#[tokio::test]
async fn a_copy_is_as_old_as_the_last_word_of_its_terms_leader_that_left_nothing_to_apply() {
    let folder = tempfile::tempdir().unwrap();
    let members = three(folder.path());
    let (leader, follower, stranger) = (&members[0].handle, &members[1].handle, &members[2].handle);
    assert_eq!(leader.age_ms(), Some(0), "it leads");
    assert_eq!(stranger.age_ms(), None, "it has heard nobody");

    let known = follower.status();
    assert_eq!((known.leader, known.applied), (1, known.commit));
    follower.step(heartbeat(1, 2, known.term, known.commit));
    let least = grown_old(Instant::now());
    assert!(follower.age_ms().unwrap() >= least, "it is at least as old as that word");

    // None of these is turned: what they say of age, they say as they come in.
    for (what, word) in [
        ("a leader's of before, late", heartbeat(1, 2, known.term - 1, known.commit)),
        ("one's who leads nobody here", heartbeat(3, 2, known.term, known.commit)),
        ("a next term's, which nobody here has seen begin", heartbeat(3, 2, known.term + 1, known.commit)),
    ] {
        follower.step(word);
        assert!(follower.age_ms().unwrap() >= least, "{what}");
    }
    let again = Instant::now();
    follower.step(heartbeat(1, 2, known.term, known.commit));
    let age = follower.age_ms().unwrap();
    assert!(age <= again.elapsed().as_millis() as u64 + 2, "the leader's word makes it new again: {age}");

    let least = grown_old(Instant::now());
    for commit in [known.commit + 1, known.commit] {
        follower.step(heartbeat(1, 2, known.term, commit));
        assert!(follower.age_ms().unwrap() >= least, "something is committed that it has not applied");
    }
}

#[tokio::test]
async fn a_proposal_under_way_when_the_lead_is_lost_has_an_unknown_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let leader = members[0].handle.clone();
    let mut proposed = pin!(leader.propose(ledger::command(7, 8)));
    assert!((&mut proposed).now_or_never().is_none());
    members[0].turn(false);
    assert!((&mut proposed).now_or_never().is_none(), "nobody else has it yet");
    // Another leads meanwhile: whether the entry lives on there, nobody knows here.
    let term = leader.status().term + 1;
    leader.step(heartbeat(2, 1, term, 0));
    members[0].turn(false);
    let told = proposed.now_or_never();
    assert!(matches!(told, Some(Err(ProposeError::UnknownOutcome))), "{told:?}");
}

#[tokio::test]
async fn an_instance_without_a_vote_elects_nobody_not_even_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut member = Member::new(4, &[], folder.path());
    member.handle.stand();
    // More ticks than any member waits for a leader.
    for _ in 0..30 {
        member.turn(true);
    }
    let status = member.handle.status();
    assert_eq!((status.role, status.term), (Role::Follower, 0));
    assert!(member.sent.0.lock().unwrap().is_empty());
}
