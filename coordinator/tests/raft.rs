//! The replicated log on real disks and real gRPC: kill -9 durability, elections, snapshot catch-up, damaged and full disks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vp_coordinator::peers::Network;
use vp_coordinator::raft::{Config, Machine, RaftHandle, open, start};
use vp_coordinator::storage::{DiskStore, Identity, StorageError, StoreOptions};

/// Counts commands and remembers the last: enough to see what was applied.
#[derive(Default)]
struct Counter {
    count: u64,
    last: u64,
}

impl Machine for Counter {
    type Error = std::array::TryFromSliceError;
    fn apply(&mut self, index: u64, _: &[u8]) -> Vec<u8> {
        (self.count, self.last) = (self.count + 1, index);
        self.count.to_le_bytes().to_vec()
    }
    fn snapshot(&self) -> Vec<u8> {
        self.count.to_le_bytes().to_vec()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.count = u64::from_le_bytes(bytes.try_into()?);
        Ok(())
    }
}

struct Nobody;
impl vp_coordinator::raft::Outbox for Nobody {
    fn send(&mut self, _: raft::eraftpb::Message) {}
}

fn identity(member: u64) -> Identity {
    Identity { cluster: "test".to_owned(), member }
}

fn config(id: u64, voters: &[u64]) -> Config {
    Config { id, voters: voters.to_vec(), tick: Duration::from_millis(20), ..Config::default() }
}

fn count(reply: &[u8]) -> u64 {
    u64::from_le_bytes(reply.try_into().unwrap())
}

async fn until(what: &str, handle: &RaftHandle, wanted: impl FnMut(&vp_coordinator::raft::Status) -> bool) {
    let mut status = handle.watch();
    let waited = tokio::time::timeout(Duration::from_secs(60), status.wait_for(wanted)).await;
    assert!(waited.is_ok_and(|w| w.is_ok()), "{what}: {:?}", handle.status());
}

/// Proposes `commands` on a one-member log in `directory` and stops in order; the last reply.
async fn fill(directory: &Path, commands: u64) -> u64 {
    let node = open(directory, &identity(1), config(1, &[1]), Counter::default()).unwrap();
    let (handle, ended) = start(node, Nobody);
    let ended = tokio::spawn(ended);
    until("lead", &handle, |s| s.leads()).await;
    let mut last = 0;
    for _ in 0..commands {
        last = count(&handle.propose(vec![7; 100]).await.unwrap().reply);
    }
    handle.stop();
    ended.await.unwrap().unwrap();
    last
}

fn segment(directory: &Path) -> PathBuf {
    directory.join("log/0000000000000001.seg")
}

/// Where the synced frames of a segment end.
fn end_of(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

#[tokio::test]
async fn a_log_survives_a_restart_and_a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fill(dir.path(), 50).await, 50);
    assert_eq!(fill(dir.path(), 1).await, 51);
    let _open = DiskStore::open(dir.path(), &identity(1), StoreOptions::default()).unwrap();
    let second = DiskStore::open(dir.path(), &identity(1), StoreOptions::default()).err();
    assert!(matches!(second, Some(StorageError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn a_flipped_bit_another_members_disk_and_an_emptied_disk_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 20).await;
    let wrong = DiskStore::open(dir.path(), &identity(2), StoreOptions::default()).err();
    assert!(matches!(wrong, Some(StorageError::WrongIdentity { .. })), "{wrong:?}");
    let path = segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let middle = end_of(&bytes) / 2;
    bytes[middle] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let flipped = DiskStore::open(dir.path(), &identity(1), StoreOptions::default()).err();
    assert!(matches!(flipped, Some(StorageError::Damaged { .. })), "{flipped:?}");
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let emptied = DiskStore::open(dir.path(), &identity(1), StoreOptions::default()).err();
    assert!(matches!(emptied, Some(StorageError::Emptied { .. })), "{emptied:?}");
    let fresh = tempfile::tempdir().unwrap();
    let known = StoreOptions { must_exist: true, ..StoreOptions::default() };
    let lost = DiskStore::open(fresh.path(), &identity(1), known).err();
    assert!(matches!(lost, Some(StorageError::Emptied { .. })), "{lost:?}");
}

#[tokio::test]
async fn a_write_cut_short_is_dropped_and_everything_before_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 20).await;
    let path = segment(dir.path());
    let end = end_of(&fs::read(&path).unwrap());
    // The beginning of a frame that never got further.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x31, 0x4C, 0x50, 0x56, 0, 16, 0, 0], end as u64).unwrap();
    drop(file);
    let opened = DiskStore::open(dir.path(), &identity(1), StoreOptions::default());
    drop(opened);
    assert_eq!(fill(dir.path(), 1).await, 21);
}

/// Child of the kill test: proposes for ever, prints each acknowledged count.
#[tokio::test]
async fn child_proposes_until_killed() {
    let Ok(directory) = std::env::var("VP_TEST_CHILD") else { return };
    let node =
        open(Path::new(&directory), &identity(1), Config { snapshot_every: 500, keep_entries: 50, cache_every: 70, ..config(1, &[1]) }, Counter::default())
            .unwrap();
    let (handle, _ended) = start(node, Nobody);
    until("lead", &handle, |s| s.leads()).await;
    loop {
        let applied = handle.propose(vec![1; 300]).await.unwrap();
        eprintln!("acknowledged {}", count(&applied.reply));
    }
}

#[test]
fn process_nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_proposes_until_killed", "--nocapture"])
            .env("VP_TEST_CHILD", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut first, mut seen, wanted) = (None, 0, 1 + round * 37 % 400);
        for line in lines {
            let line = line.unwrap();
            if let Some(number) = line.strip_prefix("acknowledged ") {
                let number: u64 = number.parse().unwrap();
                first.get_or_insert(number);
                acknowledged = acknowledged.max(if first == Some(number) { 0 } else { number });
                seen += 1;
                if seen == 1 {
                    // The first new command counts everything acknowledged before it.
                    assert!(number > acknowledged, "round {round}: {number} after {acknowledged}");
                    acknowledged = number;
                }
                if seen == wanted {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(first.is_some(), "round {round}: the child did not start");
    }
    assert!(acknowledged > 1000);
}

struct Member {
    handle: RaftHandle,
    ended: tokio::task::JoinHandle<Result<(), vp_coordinator::raft::NodeError>>,
    server: tokio::task::JoinHandle<()>,
}

async fn member(root: &Path, id: u64, port: u16) -> Member {
    let voters = [1, 2, 3];
    let address = |id| SocketAddr::from(([127, 37, 0, id as u8], port));
    let members: BTreeMap<u64, SocketAddr> = voters.iter().map(|id| (*id, address(*id))).collect();
    let settings = Config { tick: Duration::from_millis(50), ..config(id, &voters) };
    let node = open(&root.join(id.to_string()), &identity(id), settings, Counter::default()).unwrap();
    let network = Network::new("test".to_owned(), id, address(id).ip(), members);
    let (handle, ended) = start(node, network.outgoing());
    let service = network.service(handle.clone());
    let server = tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve(address(id)).await.unwrap();
    });
    Member { handle, ended: tokio::spawn(ended), server }
}

async fn leader(members: &[Member]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut watches: Vec<_> = members.iter().map(|m| m.handle.watch()).collect();
    loop {
        if let Some(found) = watches.iter().position(|w| w.borrow().leads()) {
            return found;
        }
        assert!(Instant::now() < deadline, "no leader");
        let changes = watches.iter_mut().map(|w| Box::pin(w.changed()));
        let _ = tokio::time::timeout(Duration::from_secs(1), futures::future::select_all(changes)).await;
    }
}

async fn stop(member: Member) {
    member.server.abort();
    let _ = member.server.await;
    member.handle.stop();
    member.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn process_three_members_elect_fail_over_and_catch_up_100_000_entries_by_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = Vec::new();
    for id in 1..=3 {
        members.push(member(dir.path(), id, 7461).await);
    }
    let first = leader(&members).await;
    let index = members[first].handle.propose(vec![1]).await.unwrap().index;
    assert!(members[first].handle.read_index().await.unwrap() >= index);
    let gone = members[first].handle.status().id;
    stop(members.remove(first)).await;
    let second = leader(&members).await;
    let handle = members[second].handle.clone();
    let mut sum = 0;
    for _ in 0..100 {
        let proposals = (0..1000).map(|_| handle.propose(vec![2; 64]));
        for reply in futures::future::join_all(proposals).await {
            sum = sum.max(count(&reply.unwrap().reply));
        }
    }
    assert_eq!(sum, 100_001);
    let back = member(dir.path(), gone, 7461).await;
    let applied = handle.status().applied;
    until("catch up", &back.handle, |s| s.applied >= applied).await;
    stop(back).await;
    let store = DiskStore::open(&dir.path().join(gone.to_string()), &identity(gone), StoreOptions::default()).unwrap();
    assert!(store.log().first_index() > 50_000, "not by snapshot: {}", store.log().first_index());
    for member in members {
        stop(member).await;
    }
}
