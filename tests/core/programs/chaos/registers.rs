//! One cluster of registers under faults: inject, hold, heal, see that it goes on; again until the time is over. The history is judged afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::Signal;
use tokio::time::sleep;
use vp_core_tests::group::MEMBERS;
use vp_core_tests::proxy::Flow;

use crate::clients::{self, Shared};
use crate::damage;
use crate::dice::Dice;
use crate::disk;
use crate::members::{Members, Programs};
use crate::points;
use crate::tally::Tally;

/// After a fault is over, some client must succeed within this.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
/// Room for a log that is compacted all the time, its snapshot and the cache.
const DISK_MIB: u32 = 24;

/// What can be done to a cluster of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillTwo,
    PowerCut,
    PowerCutAll,
    Pause,
    PauseTwo,
    Isolate,
    OneWay,
    Ring,
    Slow,
    Reset,
    Clock,
    FailPoint,
    FullDisk,
    BitFlip,
}

/// How often, relative to each other.
const FAULTS: [(Fault, usize); 15] = [
    (Fault::Kill, 3),
    (Fault::KillTwo, 1),
    (Fault::PowerCut, 2),
    (Fault::PowerCutAll, 2),
    (Fault::Pause, 3),
    (Fault::PauseTwo, 1),
    (Fault::Isolate, 3),
    (Fault::OneWay, 3),
    (Fault::Ring, 2),
    (Fault::Slow, 2),
    (Fault::Reset, 2),
    (Fault::Clock, 2),
    (Fault::FailPoint, 10),
    (Fault::FullDisk, 1),
    (Fault::BitFlip, 2),
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "member killed",
            Self::KillTwo => "two members killed",
            Self::PowerCut => "member loses power: unsynced writes gone",
            Self::PowerCutAll => "all lose power at once",
            Self::Pause => "member paused (SIGSTOP)",
            Self::PauseTwo => "two members paused",
            Self::Isolate => "member cut off",
            Self::OneWay => "one-way cut",
            Self::Ring => "each member cut off from its neighbour",
            Self::Slow => "slow links",
            Self::Reset => "connections reset",
            Self::Clock => "wall clock jumps",
            Self::FailPoint => "fail point",
            Self::FullDisk => "disk full",
            Self::BitFlip => "bit flipped in the log of a member that is down",
        }
    }
}

/// What one cluster is to go through.
pub struct Plan {
    pub number: u8,
    pub seed: u64,
    pub until: Instant,
    /// Stop when so many injections were made by all clusters together; blows are the real clusters' to add.
    pub injections: u64,
    pub folder: PathBuf,
    pub programs: Programs,
}

/// Runs one cluster to its end; gives the file with its history.
///
/// # Errors
/// The cluster does not recover, or serves from a damaged disk.
pub async fn run(plan: Plan, tally: Arc<Tally>) -> anyhow::Result<PathBuf> {
    let history = plan.folder.join("history.jsonl");
    let disks = disk::Disks::mount((0..MEMBERS).map(|member| Members::disk_below(&plan.folder, member)), DISK_MIB);
    let members = Members::start(plan.programs.clone(), &plan.folder, plan.number).await?;
    let shared = Arc::new(Shared::default());
    let addresses: Vec<_> = (0..MEMBERS).map(|member| members.address(member)).collect();
    let mut clients = clients::start(&addresses, &members.tls()?, &shared, plan.seed);
    let mut trial = Trial { members, shared: shared.clone(), dice: Dice::new(plan.seed), disks, tally, number: plan.number };
    trial.recovers().await?;
    let mut outcome = Ok(());
    while outcome.is_ok() && Instant::now() < plan.until && trial.tally.total() < plan.injections {
        outcome = trial.round().await;
    }
    shared.stop.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    shared.history.save(&history)?;
    outcome.map(|()| history)
}

struct Trial {
    members: Members,
    shared: Arc<Shared>,
    dice: Dice,
    disks: disk::Disks,
    tally: Arc<Tally>,
    number: u8,
}

impl Trial {
    async fn round(&mut self) -> anyhow::Result<()> {
        let all: Vec<Fault> = FAULTS.iter().flat_map(|(fault, weight)| std::iter::repeat_n(*fault, *weight)).collect();
        let fault = *self.dice.pick(&all);
        let struck = self.inject(fault).await.map_err(|error| error.context(format!("cluster {}: {}", self.number, fault.name())))?;
        let healed = self.recovers().await.map_err(|error| error.context(format!("cluster {}: after: {}", self.number, fault.name())))?;
        self.tally.add(fault.name(), struck, healed);
        sleep(self.dice.between_ms(100, 600)).await;
        Ok(())
    }

    /// Does it, holds it, undoes it. True: it had its effect.
    async fn inject(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let member = self.dice.below(MEMBERS);
        let other = (member + 1 + self.dice.below(MEMBERS - 1)) % MEMBERS;
        match fault {
            Fault::Kill => self.down(&[member], false).await?,
            Fault::KillTwo => self.down(&[member, other], false).await?,
            Fault::PowerCut => return Ok(self.down(&[member], true).await? > 0),
            Fault::PowerCutAll => return Ok(self.down(&[0, 1, 2], true).await? > 0),
            Fault::Pause => self.pause(&[member]).await,
            Fault::PauseTwo => self.pause(&[member, other]).await,
            Fault::Isolate => self.cut(&[(member, other), (member, 3 - member - other)], Flow::Cut, true).await,
            Fault::OneWay => self.cut(&[(member, other)], Flow::Cut, false).await,
            Fault::Ring => self.cut(&[(0, 1), (1, 2), (2, 0)], Flow::Cut, false).await,
            Fault::Slow => {
                let late = self.dice.between_ms(20, 400);
                self.cut(&[(0, 1), (1, 2), (2, 0)], Flow::Slow(late), true).await
            }
            Fault::Reset => {
                self.members.heal_links(true);
                0
            }
            Fault::Clock => {
                let seconds = *self.dice.pick(&[-86_400, -3600, -1, 1, 3600, 86_400, 315_360_000]);
                self.members.set_clock(member, seconds)?;
                sleep(self.dice.between_ms(200, 1500)).await;
                0
            }
            Fault::FailPoint => return self.fail_point(member).await,
            Fault::FullDisk => return self.full_disk(member).await,
            Fault::BitFlip => return damage::flip_a_bit(&mut self.members, member, &mut self.dice).await,
        };
        Ok(true)
    }

    async fn down(&mut self, which: &[usize], power: bool) -> anyhow::Result<usize> {
        let mut lost = 0;
        for member in which {
            if power {
                lost += self.members.lose_power(*member)?;
            } else {
                self.members.kill(*member);
            }
        }
        sleep(self.dice.between_ms(0, 1500)).await;
        for member in which {
            self.members.start_member(*member, None)?;
        }
        Ok(lost)
    }

    async fn pause(&mut self, which: &[usize]) -> usize {
        for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
            for member in which {
                if let Some(process) = self.members.process(*member) {
                    process.signal(signal);
                }
            }
            if signal == Signal::SIGSTOP {
                sleep(self.dice.between_ms(100, 3500)).await;
            }
        }
        0
    }

    /// What `pairs` send each other, in the first's calls; with `both`, in the second's calls too.
    async fn cut(&mut self, pairs: &[(usize, usize)], flow: Flow, both: bool) -> usize {
        for (from, to) in pairs {
            if let Some(link) = self.members.link(*from, *to) {
                link.set(flow, if both { flow } else { Flow::Open });
            }
            if let Some(link) = self.members.link(*to, *from).filter(|_| both) {
                link.set(flow, flow);
            }
        }
        sleep(self.dice.between_ms(200, 4000)).await;
        let reset = self.dice.below(2) == 0;
        self.members.heal_links(reset);
        0
    }

    /// A member with a fail point armed: it ends by it, or goes on through it. False: it never came to it.
    async fn fail_point(&mut self, member: usize) -> anyhow::Result<bool> {
        let armed = points::arm(&mut self.dice);
        self.members.kill(member);
        self.members.start_member(member, Some(&armed.text))?;
        sleep(self.dice.between_ms(500, 3000)).await;
        let ended = self.members.process(member).is_none_or(|process| !process.runs());
        self.members.kill(member);
        self.members.start_member(member, None)?;
        Ok(armed.struck(ended, self.members.slept(member)))
    }

    /// A full disk ends the member or is lived through; with room again it comes back.
    async fn full_disk(&mut self, member: usize) -> anyhow::Result<bool> {
        if !self.disks.fill(member)? {
            return Ok(false);
        }
        sleep(self.dice.between_ms(1500, 4000)).await;
        let ended = self.members.process(member).is_none_or(|process| !process.runs());
        self.disks.empty(member)?;
        self.members.kill(member);
        self.members.start_member(member, None)?;
        Ok(ended)
    }

    /// Waits for the next success; from now.
    async fn recovers(&mut self) -> anyhow::Result<Duration> {
        let (begun, before) = (Instant::now(), self.shared.succeeded.load(Ordering::Relaxed));
        while self.shared.succeeded.load(Ordering::Relaxed) == before {
            if begun.elapsed() > RECOVERS_WITHIN {
                bail!("nobody succeeded for {} s", RECOVERS_WITHIN.as_secs());
            }
            sleep(Duration::from_millis(10)).await;
            // A member that ended by what was done to it is started again, as its machine would.
            for member in 0..MEMBERS {
                if self.members.process(member).is_some_and(|process| !process.runs()) {
                    self.members.start_member(member, None)?;
                }
            }
        }
        Ok(begun.elapsed())
    }
}
