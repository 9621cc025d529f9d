//! Faults of the machines under real coordinators and agents: power, clock, room and bits. The same preload, small disks and flipped bits as the registers'.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;
use vp_core_tests::coordinators::Coordinators;
use vp_core_tests::program::Program;
use vp_core_tests::proxy::Flow;

use crate::daemons::Trial;
use crate::damage::Keeper;
use crate::hardware::Hardware;

/// Seconds by which a coordinator's clock jumps, and whether it stays there. Nodes' certificates are good from five minutes before their issue: a clock that
/// is further off rightly takes none, so it is put right again.
const COORDINATOR_JUMPS: [(i64, bool); 6] = [(-86_400, false), (-200, true), (-1, true), (1, true), (3600, true), (315_360_000, false)];
/// Of an agent's: put right in the end, since to a clock ahead of the files' own every file looks old.
const AGENT_JUMPS: [i64; 6] = [-86_400, -3600, -1, 1, 3600, 86_400];
const JOURNAL_LOOK: Duration = Duration::from_millis(1);

fn remove_folder(at: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(at) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Keeper for Coordinators {
    fn log_folder(&self, member: usize) -> PathBuf {
        self.disk(member).join("coordinator/log")
    }

    fn said(&self, member: usize) -> PathBuf {
        Coordinators::said(self, member)
    }

    fn start(&mut self, member: usize) -> anyhow::Result<()> {
        self.start_member(member)
    }

    fn kill(&mut self, member: usize) {
        Coordinators::kill(self, member);
    }

    fn runs(&mut self, member: usize) -> bool {
        self.process_mut(member).is_some_and(Program::runs)
    }
}

impl Trial {
    /// A coordinator's wall clock jumps; small jumps stay, for the faults that follow.
    pub async fn coordinator_clock(&mut self, member: usize) -> anyhow::Result<()> {
        let (seconds, stays) = *self.dice.pick(&COORDINATOR_JUMPS);
        self.hardware[member].set_clock(seconds)?;
        let held = self.dice.between_ms(300, 3000);
        self.hold(held).await?;
        if stays { Ok(()) } else { self.hardware[member].set_clock(0) }
    }

    /// An agent's wall clock jumps, in half of the cases while nobody renews its leases.
    pub async fn agent_clock(&mut self, id: &str) -> anyhow::Result<()> {
        let seconds = *self.dice.pick(&AGENT_JUMPS);
        let flow = if self.dice.below(2) == 0 { Flow::Cut } else { Flow::Open };
        let held = self.dice.between_ms(300, 6000);
        self.set_agent(id, seconds, flow)?;
        self.hold(held).await?;
        self.set_agent(id, 0, Flow::Open)
    }

    /// An instance that was terminated meanwhile has neither.
    fn set_agent(&self, id: &str, seconds: i64, flow: Flow) -> anyhow::Result<()> {
        let Some(node) = self.instances.nodes.get(id) else { return Ok(()) };
        node.set_links(flow, flow);
        node.set_clock(seconds)
    }

    /// A coordinator without room goes on in what it has, ends, or does not start; with room again it serves. True: it ended or did not start.
    pub async fn coordinator_full_disk(&mut self, member: usize) -> anyhow::Result<bool> {
        if !self.disks.fill(member)? {
            return Ok(false);
        }
        let outcome = self.without_room(member).await;
        self.disks.empty(member)?;
        self.restart(member, 0, 200).await?;
        outcome
    }

    async fn without_room(&mut self, member: usize) -> anyhow::Result<bool> {
        let (going_on, starting) = (self.dice.between_ms(500, 2500), self.dice.between_ms(500, 2500));
        self.hold(going_on).await?;
        let ended = !self.coordinators.runs(member);
        // Both going on and a start write where there is room already; one that has lost what can be made anew has no room to make it.
        self.coordinators.kill(member);
        remove_folder(&self.coordinators.disk(member).join("coordinator/applied"))?;
        self.disks.fill(member)?;
        self.coordinators.start_member(member)?;
        self.hold(starting).await?;
        Ok(ended || !self.coordinators.runs(member))
    }

    /// Coordinators lose their power, if it can be in the middle of a write. What was acknowledged before must be there afterwards (`Trial::remember`).
    /// True: a write was lost.
    pub async fn lose_power(&mut self, which: &[usize], id: &str) -> anyhow::Result<bool> {
        self.order_drain(id, false, self.new_order()).await?;
        tokio::select! {
            biased;
            () = writing(&self.hardware, which) => {}
            ordered = self.order_drain(id, true, self.new_order()) => {
                ordered?;
            }
        }
        let lost = self.power_off(which)?;
        let down = self.dice.between_ms(0, 1500);
        self.hold(down).await?;
        for member in which {
            self.coordinators.start_member(*member)?;
        }
        self.take_back(id).await?;
        Ok(lost > 0)
    }

    fn power_off(&mut self, which: &[usize]) -> anyhow::Result<usize> {
        // All at the same moment, before any of them is waited for.
        for process in which.iter().filter_map(|member| self.coordinators.process(*member)) {
            process.signal(Signal::SIGKILL);
        }
        let mut lost = 0;
        for member in which {
            self.coordinators.kill(*member);
            lost += self.hardware[*member].forget_unsynced(&self.coordinators.log_folder(*member))?;
        }
        Ok(lost)
    }
}

/// Until one of them is in the middle of a write.
async fn writing(hardware: &[Hardware], which: &[usize]) {
    while !which.iter().any(|member| hardware[*member].has_unsynced()) {
        sleep(JOURNAL_LOOK).await;
    }
}
