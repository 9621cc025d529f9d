//! A2: ten thousand agents send a heartbeat a second to a real leading coordinator; beside it, as many etcd leases are kept alive at the same pace.
//! Each has a connection of its own, since a certificate names one agent; etcd's clients have as many, in the clear and then under TLS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use vp_core_tests::coordinators::{Coordinators, Wanted};
use vp_core_tests::figures::{Better, Row, Target, filled, quantile};
use vp_core_tests::group::Kind;
use vp_core_tests::region::Region;
use vp_core_tests::sessions::{self, Tally};

use crate::{Arguments, leases, say};

const NETWORK: u8 = 112;
const LEASE_MS: u64 = 4000;
/// Hellos under way at once.
const JOINING: usize = 64;
const WORKER: &str =
    "summary: Stands for any role.\nfencing: disposable\nspread: zone\nresources: {memory_mib: 500}\ncommand: [sleep, \"1\"]\nprobe: {tcp: {port: 1}}\n";

/// What one side used and gave.
pub struct Taken {
    pub latencies_us: Vec<u32>,
    pub seconds: f64,
    /// Cores that the leader used.
    pub leader_cores: f64,
    /// Cores that all three members used.
    pub all_cores: f64,
}

impl Taken {
    /// In the order of the table.
    fn figures(&self) -> [f64; 6] {
        let per_second = self.latencies_us.len() as f64 / self.seconds;
        let ms = |q| quantile(&self.latencies_us, q) / 1000.0;
        [per_second, ms(0.5), ms(0.99), self.leader_cores, self.all_cores, per_second / self.leader_cores]
    }
}

pub async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let name = format!("{} heartbeats a second over as many connections", arguments.agents);
    // Fewer agents than the targets speak of are held against none.
    let full = arguments.agents >= 10_000;
    let row = |what: &str, unit, better, target| Row::new("A2", format!("{name}: {what}"), unit, better, if full { target } else { Target::Shown });
    let told = |who: &str, taken: Vec<Taken>| -> Vec<[f64; 6]> {
        let figures = taken.iter().map(Taken::figures);
        figures.inspect(|figures| say(&format!("{name}, {who}: {figures:.2?}"))).collect()
    };
    let vp = told("vp", coordinators(arguments).await?);
    let mut rows = Vec::new();
    for kind in [Kind::Etcd, Kind::SecureEtcd] {
        let peer = told(kind.name(), leases::keep_alive(arguments, kind).await?);
        // Targets are of vp alone, but for the last, which speaks of etcd as it comes.
        let asked = |target| if kind == Kind::Etcd { target } else { Target::Shown };
        let lines = [
            row("acknowledged", "1/s", Better::Higher, Target::Shown),
            row("p50", "ms", Better::Lower, Target::Shown),
            row("p99", "ms", Better::Lower, asked(Target::AtMost(20.0))),
            row("leader", "cores", Better::Lower, asked(Target::AtMost(1.0))),
            row("all three", "cores", Better::Lower, Target::Shown),
            row("renewals per core of the leader", "1/s", Better::Higher, asked(Target::RatioAtLeast(5.0))),
        ];
        rows.extend(filled(lines.map(|row| row.beside(kind.name())), &vp, &peer));
    }
    Ok(rows)
}

async fn coordinators(arguments: &Arguments) -> anyhow::Result<Vec<Taken>> {
    let folder = tempfile::Builder::new().prefix("a2-").tempdir_in(&arguments.folder)?;
    let mut region = Region::start(NETWORK).await?;
    let wanted = Wanted {
        lease_ms: LEASE_MS,
        roles: vec![("worker", WORKER.to_owned())],
        slots: BTreeMap::from([("worker", arguments.slots)]),
        environment: Vec::new(),
    };
    let coordinators = Coordinators::start(&arguments.program("vp-coordinator")?, &mut region, wanted, folder.path()).await?;
    let leader = coordinators.leader(Duration::from_secs(10)).await?;
    let (leading, root) = (coordinators.address(leader), coordinators.root());
    let tally = Arc::new(Tally::default());
    let mut running = JoinSet::new();
    let begun = Instant::now();
    let mut opened = stream::iter(0..arguments.agents)
        .map(|number| {
            let (hello, root) = (sessions::hello(&region, number, 2048), root.clone());
            async move { anyhow::Ok((number, sessions::open(leading, &root, hello?).await?)) }
        })
        .buffer_unordered(JOINING);
    while let Some((number, session)) = opened.try_next().await? {
        let phase = Duration::from_micros(1_000_000 * number as u64 / arguments.agents as u64);
        running.spawn(session.run(phase, tally.clone()));
    }
    drop(opened);
    say(&format!("{} sessions open after {:.1} s", arguments.agents, begun.elapsed().as_secs_f64()));
    let mut taken = Vec::new();
    for _ in 0..arguments.repeats {
        sleep(Duration::from_secs(2)).await;
        let cpu = || (0..3).map(|member| coordinators.process(member).map_or(Duration::ZERO, |process| process.cpu())).collect::<Vec<_>>();
        let (before, begun) = (cpu(), Instant::now());
        tally.begin();
        sleep(Duration::from_secs(arguments.seconds)).await;
        let latencies_us = tally.end();
        let seconds = begun.elapsed().as_secs_f64();
        let cores: Vec<f64> = cpu().iter().zip(before).map(|(after, before)| (*after - before).as_secs_f64() / seconds).collect();
        taken.push(Taken { latencies_us, seconds, leader_cores: cores[leader], all_cores: cores.iter().sum() });
    }
    let ended = tally.ended.load(Ordering::SeqCst);
    say(&format!("{ended} of {} sessions ended by themselves", arguments.agents));
    Ok(taken)
}
