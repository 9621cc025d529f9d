//! Faults on real processes: several clusters at once, each hurt again and again while clients work and observers look; at the end every history is judged.
//! Exits with 0 when all held, with what did not otherwise.

mod clients;
mod daemons;
mod damage;
mod dice;
mod disk;
mod faults;
mod hardware;
mod instances;
mod machines;
mod members;
mod points;
mod registers;
mod silence;
mod tally;
mod wires;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use tokio::task::JoinSet;
use vp_core_tests::history;

use crate::members::Programs;
use crate::tally::{Enough, Tally};

/// A run of no less than this is the whole: it must have seen [`WHOLE_BLOWS`].
const WHOLE_SECONDS: u64 = 3300;
const WHOLE_INJECTIONS: u64 = 2000;
const WHOLE_BLOWS: u64 = 500;

/// Words of the command.
#[derive(Parser)]
struct Arguments {
    /// Clusters of registers at a time.
    #[arg(long, default_value_t = 4)]
    clusters: u8,
    /// Real clusters at a time: coordinators, agents, roles.
    #[arg(long, default_value_t = 2)]
    real: u8,
    /// No injection begins after so long, seconds.
    #[arg(long, default_value_t = WHOLE_SECONDS)]
    seconds: u64,
    /// Injections that struck, of all clusters together, after which it ends; a whole run (3300 s, 2000 injections) fails with fewer.
    #[arg(long, default_value_t = WHOLE_INJECTIONS)]
    injections: u64,
    /// Partitions, pauses and kills on real clusters that must be among them: it goes on until there are so many, and fails with fewer. Else 500 of a whole
    /// run and none of a shorter one.
    #[arg(long)]
    blows: Option<u64>,
    /// Only these faults on the real clusters, by parts of their names.
    #[arg(long)]
    only: Vec<String>,
    /// The faults' seed; else the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of the programs; else beside this one.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The linearizability checker.
    #[arg(long)]
    checker: PathBuf,
    /// The library of faults.
    #[arg(long)]
    preload: PathBuf,
    /// Where everything is kept: logs, disks, histories.
    #[arg(long)]
    folder: PathBuf,
    /// A bug to plant: the run must then fail.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// First second octet of the clusters' addresses.
    #[arg(long, default_value_t = 120)]
    network: u8,
}

/// Bugs that the checks must catch.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Plant {
    /// Reads are answered without asking a quorum.
    StaleRead,
    /// Syncs do nothing: what is acknowledged may be lost with the power.
    NoSync,
    /// However many fall silent at once, all are believed dead. Needs coordinators with the feature `mutants`: `tests/core/chaos` builds them so.
    BrakeOff,
}

impl Arguments {
    /// A run of all kinds that is to be shown, not a slice of one.
    fn is_whole(&self) -> bool {
        self.seconds >= WHOLE_SECONDS && self.injections >= WHOLE_INJECTIONS && self.only.is_empty()
    }

    fn enough(&self) -> Enough {
        Enough { injections: self.injections, blows: self.blows.unwrap_or(if self.is_whole() { WHOLE_BLOWS } else { 0 }) }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    // Roles' processes are told by the full path of their folder.
    arguments.folder = std::path::absolute(&arguments.folder)?;
    let seed = arguments.seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs()));
    println!("chaos: seed {seed}, {} clusters, {} injections or {} s", arguments.clusters, arguments.injections, arguments.seconds);
    let beside = std::env::current_exe()?.parent().map(PathBuf::from).context("this program has no folder")?;
    let folder = arguments.programs.clone().unwrap_or(beside);
    let [register_server, coordinator, agent] = ["register-server", "vp-coordinator", "vp-agent"].map(|name| folder.join(name));
    for needed in [&register_server, &coordinator, &agent, &arguments.checker, &arguments.preload] {
        ensure!(needed.exists(), "{} is missing", needed.display());
    }
    let mut programs = Programs { register_server, preload: arguments.preload.clone(), arguments: Vec::new(), environment: Vec::new() };
    let mut of_coordinators = Vec::new();
    match arguments.plant {
        Some(Plant::StaleRead) => programs.arguments.push("--stale-reads".to_owned()),
        Some(Plant::NoSync) => {
            let lie = ("VP_LIE".to_owned(), "1".to_owned());
            programs.environment.push(lie.clone());
            of_coordinators.push(lie);
        }
        Some(Plant::BrakeOff) => of_coordinators.push(("VP_MUTANT".to_owned(), "brake-off".to_owned())),
        None => {}
    }
    let enough = arguments.enough();
    let tally = Arc::new(Tally::default());
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut clusters = JoinSet::new();
    for number in 0..arguments.clusters {
        let folder = arguments.folder.join(format!("registers-{number}"));
        std::fs::create_dir_all(&folder)?;
        let plan = registers::Plan {
            number: arguments.network + number,
            seed: seed.wrapping_mul(31).wrapping_add(u64::from(number)),
            until,
            injections: arguments.injections,
            folder,
            programs: programs.clone(),
        };
        clusters.spawn(registers::run(plan, tally.clone()));
    }
    let mut real = JoinSet::new();
    for number in 0..arguments.real {
        let folder = arguments.folder.join(format!("real-{number}"));
        std::fs::create_dir_all(&folder)?;
        let plan = daemons::Plan {
            network: arguments.network + arguments.clusters + number,
            seed: seed.wrapping_mul(37).wrapping_add(u64::from(number)),
            until,
            enough,
            only: arguments.only.clone(),
            folder,
            coordinator: coordinator.clone(),
            agent: agent.clone(),
            preload: arguments.preload.clone(),
            environment: of_coordinators.clone(),
        };
        real.spawn(Box::pin(daemons::run(plan, tally.clone())));
    }
    let mut histories = Vec::new();
    let mut wrong = Vec::new();
    while let Some(ended) = real.join_next().await {
        match ended? {
            Ok(seen) => println!("chaos: {} looks at the processes, {} holders one after another, {} effects in order", seen.looks, seen.holders, seen.effects),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    while let Some(ended) = clusters.join_next().await {
        match ended? {
            Ok(history) => histories.push(history),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    println!("\n{}\nchaos: {} injections that struck", tally.table(), tally.total());
    if arguments.is_whole() {
        if tally.total() < enough.injections {
            wrong.push(format!("{} injections that struck are fewer than {}: the time is too short for this machine", tally.total(), enough.injections));
        }
        wrong.extend(tally.vain().into_iter().map(|kind| format!("{kind}: tried, and never struck")));
    }
    println!("chaos: {} of them partitions, pauses and kills of instances, agents and coordinators", tally.blows());
    if tally.blows() < enough.blows {
        wrong.push(format!("{} partitions, pauses and kills on real clusters are fewer than {}", tally.blows(), enough.blows));
    }
    match history::check(&arguments.checker, &histories, &arguments.folder.join("not-linearizable.html")) {
        Ok(said) => println!("chaos: {said}"),
        Err(said) => wrong.push(format!("{said:#}")),
    }
    if !wrong.is_empty() {
        bail!("{} (seed {seed}; everything is in {})", wrong.join("\n"), arguments.folder.display());
    }
    println!("chaos: everything held");
    Ok(())
}
