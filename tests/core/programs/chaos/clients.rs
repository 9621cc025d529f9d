//! Clients of one cluster of registers: each writes values never written before and reads, follows the leader, and notes what it asked and was told.
//! Some reads go back to registers that nobody writes any more: what an outage has taken shows there alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use vp_core_tests::channel::{self, Tls};
use vp_core_tests::history::{History, Operation};
use vp_core_tests::wire::registers::{ReadRequest, WriteRequest, registers_client::RegistersClient};

use crate::dice::Dice;

const CLIENTS: usize = 4;
/// Registers in use at a time, and for how long: a short history a register is what a checker can decide.
const REGISTERS: u64 = 3;
const EPOCH_NS: u64 = 1_500_000_000;
/// One read in so many is of a register of an earlier epoch, up to so many back: longer than an outage and the election after it. A register gains by them
/// about as many reads as it loses in its own epoch, so its history is as short as without.
const READS_BACK: usize = 5;
const EPOCHS_BACK: u64 = 10;
const PATIENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(15);

/// What clients and injector share.
#[derive(Default)]
pub struct Shared {
    pub history: History,
    /// Operations that were answered with success.
    pub succeeded: AtomicU64,
    pub stop: AtomicBool,
}

/// Starts the clients; they end when `stop` is set.
pub fn start(members: &[SocketAddr], tls: &Tls, shared: &Arc<Shared>, seed: u64) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client {
            number,
            sequence: 0,
            members: members.to_vec(),
            tls: tls.clone(),
            shared: shared.clone(),
            dice: Dice::new(seed ^ (number as u64 + 1) << 32),
        };
        clients.spawn(client.run());
    }
    clients
}

/// This epoch, or for one read in [`READS_BACK`] an earlier one: what an outage has taken is the last write of its register, and nobody writes there again.
fn epoch_to_read(now: u64, dice: &mut Dice) -> u64 {
    if dice.below(READS_BACK) == 0 { now.saturating_sub(1 + dice.next() % EPOCHS_BACK) } else { now }
}

struct Client {
    number: usize,
    sequence: u64,
    members: Vec<SocketAddr>,
    tls: Tls,
    shared: Arc<Shared>,
    dice: Dice,
}

impl Client {
    async fn run(mut self) {
        let channels: Vec<_> = self.members.iter().filter_map(|member| channel::lazy(*member, self.tls.clone()).ok()).map(RegistersClient::new).collect();
        let mut target = self.number % channels.len();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let mut client = channels[target].clone();
            let writes = self.dice.below(2) == 0;
            let now = self.shared.history.now_ns() / EPOCH_NS;
            let epoch = if writes { now } else { epoch_to_read(now, &mut self.dice) };
            let key = format!("{epoch}-{}", self.dice.next() % REGISTERS);
            let well = if writes { self.write(&mut client, key).await } else { self.read(&mut client, key).await };
            if well {
                self.shared.succeeded.fetch_add(1, Ordering::Relaxed);
            } else {
                target = self.dice.below(channels.len());
            }
            sleep(PAUSE).await;
        }
    }

    async fn write(&mut self, client: &mut RegistersClient<tonic::transport::Channel>, key: String) -> bool {
        self.sequence += 1;
        let value = format!("{}.{}", self.number, self.sequence);
        let call_ns = self.shared.history.now_ns();
        let answer = timeout(PATIENCE, client.write(WriteRequest { key: key.clone(), value: value.clone() })).await;
        let return_ns = match &answer {
            Ok(Ok(_)) => Some(self.shared.history.now_ns()),
            // It never reached the log.
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => return false,
            _ => None,
        };
        self.shared.history.add(Operation { client: self.number, key, write: true, value, call_ns, return_ns });
        if return_ns.is_none() {
            // For ever under way: what this client does next is another's.
            self.number += CLIENTS;
        }
        return_ns.is_some()
    }

    async fn read(&mut self, client: &mut RegistersClient<tonic::transport::Channel>, key: String) -> bool {
        let call_ns = self.shared.history.now_ns();
        let answer: Result<_, Status> =
            timeout(PATIENCE, client.read(ReadRequest { key: key.clone() })).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
        let Ok(read) = answer else { return false };
        let return_ns = Some(self.shared.history.now_ns());
        self.shared.history.add(Operation { client: self.number, key, write: false, value: read.into_inner().value, call_ns, return_ns });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_read_in_five_goes_back_to_each_of_the_ten_epochs_before_and_no_further() {
        let mut dice = Dice::new(1);
        let epochs: Vec<u64> = (0..5000).map(|_| epoch_to_read(100, &mut dice)).collect();
        assert!((90..100).all(|earlier| epochs.contains(&earlier)));
        assert!(epochs.iter().all(|epoch| (90..=100).contains(epoch)));
        let back = epochs.iter().filter(|epoch| **epoch < 100).count();
        assert!((900..=1100).contains(&back), "{back} of 5000");
        assert!((0..100).all(|_| epoch_to_read(0, &mut dice) == 0));
    }
}
