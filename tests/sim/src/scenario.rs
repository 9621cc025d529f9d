//! What a seed decides before its run begins: the cluster, and which faults come when.

use std::time::Duration;

use vp_cluster::liveness;
use vp_coordinator::raft::Config;

use crate::{
    clock::{MS, SECOND, Time},
    random::Random,
};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A coordinator's process is killed, or its machine loses power.
    KillCoordinator {
        power: bool,
    },
    PauseCoordinator,
    FailDisk,
    KillAgent,
    PauseAgent,
    FillAgentDisk,
    /// A machine is gone and nobody is told.
    KillHost,
    /// EC2 takes an instance back.
    TerminateHost,
    KillRole,
    /// Some machines are cut off from the others; one way only, sometimes.
    Partition,
    /// One agent is not heard, or does not hear.
    OneWay,
    Drift,
    WallJump,
    SilentRegion,
    StaleRegion,
    ZoneLost,
    /// The holder of an exclusive slot gets its answers late, and then is cut off.
    LateAnswers,
    /// The leader is cut off from the other coordinators together with the holder of an exclusive slot.
    LeaderWithHolder,
    /// The holder of an exclusive slot is cut off until about the moment at which it is given up.
    Edge,
    /// Most of the nodes fall silent at once.
    Mass,
    Drain,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::KillCoordinator { power: false } => "coordinator killed",
            Self::KillCoordinator { power: true } => "coordinator without power",
            Self::PauseCoordinator => "coordinator stopped",
            Self::FailDisk => "disk error",
            Self::KillAgent => "agent killed",
            Self::PauseAgent => "agent stopped",
            Self::FillAgentDisk => "agent's disk full",
            Self::KillHost => "machine dead, nobody told",
            Self::TerminateHost => "instance terminated",
            Self::KillRole => "role killed",
            Self::Partition => "partition",
            Self::OneWay => "one-way cut",
            Self::Drift => "clock drift",
            Self::WallJump => "wall clock jump",
            Self::SilentRegion => "region silent",
            Self::StaleRegion => "region stale",
            Self::ZoneLost => "zone lost",
            Self::LateAnswers => "late answers, then cut off",
            Self::LeaderWithHolder => "leader cut off with a holder",
            Self::Edge => "cut off to the edge of a lease",
            Self::Mass => "most nodes silent",
            Self::Drain => "drain",
        }
    }
}

impl Fault {
    /// Nothing of it goes on that could be mended.
    pub fn is_a_moment(self) -> bool {
        matches!(self, Self::FailDisk | Self::KillHost | Self::TerminateHost | Self::KillRole | Self::Drift | Self::WallJump)
    }
}

/// What kind of run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything, at random.
    Storm,
    /// Only leaders and agents end, and come back soon: nothing may stop or move.
    Gentle,
    /// The brake must close.
    Mass,
    /// A zone is lost.
    Zone,
    /// The holder of an exclusive slot, its lease and the leader, at the worst moments.
    Leases,
    /// Operators drain nodes; little else happens.
    Drains,
}

/// What a seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub lease_ms: u64,
    pub nodes: usize,
    pub volume_wait_ms: u64,
    pub raft: Config,
    /// When after the rise, what, and for how long.
    pub faults: Vec<(Time, Fault, Time)>,
    pub random: Random,
}

/// Each with how often it is drawn.
const STORM: &[(Fault, u64)] = &[
    (Fault::KillCoordinator { power: false }, 6),
    (Fault::KillCoordinator { power: true }, 10),
    (Fault::PauseCoordinator, 6),
    (Fault::FailDisk, 4),
    (Fault::KillAgent, 8),
    (Fault::PauseAgent, 8),
    (Fault::FillAgentDisk, 3),
    (Fault::KillHost, 6),
    (Fault::TerminateHost, 6),
    (Fault::KillRole, 6),
    (Fault::Partition, 12),
    (Fault::OneWay, 12),
    (Fault::Drift, 4),
    (Fault::WallJump, 4),
    (Fault::SilentRegion, 3),
    (Fault::StaleRegion, 4),
    (Fault::Drain, 3),
];

impl Plan {
    pub fn of(random: &mut Random) -> Self {
        let kind = match random.below(100) {
            0..52 => Kind::Storm,
            52..64 => Kind::Gentle,
            64..74 => Kind::Mass,
            74..82 => Kind::Zone,
            82..92 => Kind::Leases,
            _ => Kind::Drains,
        };
        let lease_ms = match kind {
            // T covers a heartbeat, an election (a split vote too) and the way back.
            Kind::Leases => *random.pick(&[2000, 4000]).unwrap_or(&4000),
            Kind::Gentle => *random.pick(&[8000, 10_000]).unwrap_or(&8000),
            _ => *random.pick(&[2000, 4000, 4000, 10_000]).unwrap_or(&4000),
        };
        let nodes = if kind == Kind::Storm { random.range(4, 8) } else { random.range(6, 10) } as usize;
        let ticks = *random.pick(&[(100, 10, 2), (50, 10, 2), (100, 5, 1)]).unwrap_or(&(100, 10, 2));
        let snapshot_every = *random.pick(&[8, 25, 10_000]).unwrap_or(&10_000);
        let raft = Config {
            tick: Duration::from_millis(ticks.0),
            election_ticks: ticks.1,
            heartbeat_ticks: ticks.2,
            snapshot_every,
            keep_entries: snapshot_every / 4,
            cache_every: *random.pick(&[5, 1000]).unwrap_or(&1000),
            ..Config::default()
        };
        let faults = Self::faults(kind, lease_ms, random);
        Self { kind, lease_ms, nodes, volume_wait_ms: random.range(5, 20) * 1000, raft, faults, random: random.fork(9) }
    }

    fn faults(kind: Kind, lease_ms: u64, random: &mut Random) -> Vec<(Time, Fault, Time)> {
        let lease = lease_ms * MS;
        let mut faults = Vec::new();
        let mut at = SECOND;
        match kind {
            Kind::Storm => {
                let total: u64 = STORM.iter().map(|(_, weight)| weight).sum();
                let gap = *random.pick(&[2 * SECOND, 4 * SECOND, 8 * SECOND]).unwrap_or(&(4 * SECOND));
                while at < 35 * SECOND {
                    let mut drawn = random.below(total);
                    let fault = STORM.iter().find(|(_, weight)| drawn.checked_sub(*weight).map(|rest| drawn = rest).is_none());
                    let Some((fault, _)) = fault else { continue };
                    let lasts = *random.pick(&[lease / 4, lease, lease * 2, lease * 4]).unwrap_or(&lease);
                    faults.push((at, *fault, random.range(lasts / 2, lasts + 200 * MS)));
                    at += random.range(100 * MS, gap);
                }
            }
            Kind::Gentle => {
                while at < 40 * SECOND {
                    let fault = *random
                        .pick(&[Fault::KillCoordinator { power: true }, Fault::KillCoordinator { power: false }, Fault::KillAgent])
                        .unwrap_or(&Fault::KillAgent);
                    faults.push((at, fault, random.range(10 * MS, lease / 8)));
                    at += 2 * lease;
                }
            }
            Kind::Mass => {
                let (from, lasts) = (random.range(SECOND, 5 * SECOND), random.range(lease / 2, 3 * lease + 5 * SECOND));
                faults.push((from, Fault::Mass, lasts));
                // Whoever leads next finds them silent, and has not heard any of them yet.
                if random.below(2) == 0 {
                    faults.push((from + random.range(0, lasts), Fault::KillCoordinator { power: false }, random.range(SECOND, 5 * SECOND)));
                }
            }
            Kind::Zone => faults.push((random.range(SECOND, 5 * SECOND), Fault::ZoneLost, random.range(2 * lease, 30 * SECOND))),
            Kind::Leases => {
                while at < 50 * SECOND {
                    let fault = *random.pick(&[Fault::LateAnswers, Fault::LeaderWithHolder, Fault::Edge, Fault::Edge]).unwrap_or(&Fault::Edge);
                    let given_up = liveness::lost_after_ms(lease_ms) * MS;
                    let lasts = if fault == Fault::Edge { random.range(given_up - 300 * MS, given_up + 300 * MS) } else { 3 * lease };
                    faults.push((at, fault, lasts));
                    at += lasts + random.range(4 * SECOND, 8 * SECOND);
                }
            }
            Kind::Drains => {
                while at < 40 * SECOND {
                    let fault = *random.pick(&[Fault::Drain, Fault::Drain, Fault::KillCoordinator { power: true }, Fault::KillRole]).unwrap_or(&Fault::Drain);
                    faults.push((at, fault, random.range(5 * SECOND, 25 * SECOND)));
                    at += random.range(SECOND, 15 * SECOND);
                }
            }
        }
        faults
    }
}
