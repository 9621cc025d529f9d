//! A machine whose state is the list of every number it was given: what was applied, in which order, can be asked afterwards.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use vp_coordinator::raft::{Config, Machine, NodeError, Outbox, RaftHandle, open, start};
use vp_coordinator::storage::{Identity, StoreOptions};

/// Shared with the test, which reads it while the log's thread writes.
#[derive(Clone, Default)]
pub struct Ledger(pub Arc<Mutex<Vec<u64>>>);

impl Ledger {
    pub fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not a ledger")]
pub struct NotALedger;

impl Machine for Ledger {
    type Error = NotALedger;
    fn apply(&mut self, _: u64, command: &[u8]) -> Vec<u8> {
        let mut numbers = self.0.lock().unwrap();
        numbers.push(u64::from_le_bytes(command[..8].try_into().unwrap()));
        (numbers.len() as u64).to_le_bytes().to_vec()
    }
    fn snapshot(&self) -> Vec<u8> {
        self.0.lock().unwrap().iter().flat_map(|number| number.to_le_bytes()).collect()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), NotALedger> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(NotALedger);
        }
        *self.0.lock().unwrap() = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        Ok(())
    }
}

/// A command of `size` bytes that adds `number`.
pub fn command(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(size, 7);
    bytes
}

pub struct Nobody;
impl Outbox for Nobody {
    fn send(&mut self, _: raft::eraftpb::Message) -> bool {
        false
    }
}

pub fn identity(member: u64) -> Identity {
    Identity { cluster: "test".to_owned(), member }
}

pub fn config(id: u64, voters: &[u64]) -> Config {
    Config { id, voters: voters.to_vec(), tick: Duration::from_millis(20), ..Config::default() }
}

pub async fn until(what: &str, handle: &RaftHandle, wanted: impl FnMut(&vp_coordinator::raft::Status) -> bool) {
    let mut status = handle.watch();
    let waited = tokio::time::timeout(Duration::from_secs(60), status.wait_for(wanted)).await;
    assert!(waited.is_ok_and(|w| w.is_ok()), "{what}: {:?}", handle.status());
}

/// A log with one member, which leads.
pub struct Alone {
    pub handle: RaftHandle,
    pub ledger: Ledger,
    pub ended: JoinHandle<Result<(), NodeError>>,
}

impl Alone {
    pub async fn open(directory: &Path, settings: Config) -> Alone {
        let ledger = Ledger::default();
        let node = open(directory, &identity(1), StoreOptions::default(), settings, ledger.clone()).unwrap();
        let (handle, ended) = start(node, Nobody);
        let ended = tokio::spawn(ended);
        until("lead", &handle, vp_coordinator::raft::Status::leads).await;
        Alone { handle, ledger, ended }
    }

    pub async fn stop(self) -> Vec<u64> {
        self.handle.stop();
        self.ended.await.unwrap().unwrap();
        self.ledger.numbers()
    }
}

/// Adds `numbers` to the one-member log in `directory` and stops in order; everything it then holds.
pub async fn fill(directory: &Path, numbers: std::ops::Range<u64>) -> Vec<u64> {
    let alone = Alone::open(directory, config(1, &[1])).await;
    for number in numbers {
        alone.handle.propose(command(number, 100)).await.unwrap();
    }
    alone.stop().await
}
