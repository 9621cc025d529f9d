//! Measures the coordinators beside etcd and ZooKeeper and writes docs/benchmarks-core.md. Figures, not a test: it ends with 0 when all was measured.
//!
//! One piece alone: `--only a1,a4`. What was measured is kept (`--kept`), so that a piece measured again joins the other figures.

mod failover;
mod heartbeats;
mod leases;
mod planner;
mod report;
mod writes;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use vp_core_tests::figures::Row;
use vp_core_tests::group::Setting;

/// What the load costs is taken from those who are measured: they share its cores.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Words of the command.
#[derive(Parser)]
#[command(about = "Measures the coordinators beside etcd and ZooKeeper.")]
pub struct Arguments {
    /// Pieces to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Piece::ALL)]
    only: Vec<Piece>,
    /// Times each figure is taken, vp and its peers in turn.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Length of one taking, seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Leaders killed, of each kind.
    #[arg(long, default_value_t = 25)]
    kills: usize,
    /// Agents (and leases) that send heartbeats.
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Slots that the agents' cluster has.
    #[arg(long, default_value_t = 600)]
    slots: u32,
    /// Folder of the programs; else beside this one.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The etcd program.
    #[arg(long)]
    etcd: PathBuf,
    /// Folder of ZooKeeper's jars.
    #[arg(long)]
    zookeeper: PathBuf,
    /// Folder for disks: on the disk that is measured.
    #[arg(long)]
    folder: PathBuf,
    /// Where figures are kept between calls.
    #[arg(long)]
    kept: PathBuf,
    /// The page to write; none: the table is printed only.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Said on the page beside the figures.
    #[arg(long, default_value = "")]
    note: String,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Piece {
    /// Durable writes.
    A1,
    /// Heartbeats.
    A2,
    /// Leader killed.
    A4,
    /// Planning.
    A5,
}

impl Piece {
    const ALL: [Self; 4] = [Self::A1, Self::A2, Self::A4, Self::A5];

    fn id(self) -> &'static str {
        match self {
            Self::A1 => "A1",
            Self::A2 => "A2",
            Self::A4 => "A4",
            Self::A5 => "A5",
        }
    }
}

impl Arguments {
    fn setting(&self) -> anyhow::Result<Setting> {
        let register_server = self.program("register-server")?;
        for peer in [&self.etcd, &self.zookeeper] {
            ensure!(peer.exists(), "{} is missing: make setup SETUP_FOR=bench-core", peer.display());
        }
        Ok(Setting { register_server, etcd: self.etcd.clone(), zookeeper: self.zookeeper.clone(), arguments: Vec::new(), network: (110, 10) })
    }

    fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let beside = std::env::current_exe()?;
        let folder = self.programs.clone().or_else(|| beside.parent().map(PathBuf::from)).context("no folder of programs")?;
        let program = folder.join(name);
        ensure!(program.exists(), "{} is missing", program.display());
        Ok(program)
    }
}

fn say(text: &str) {
    println!("bench-core: {text}");
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.folder)?;
    let mut kept = report::kept(&arguments.kept)?;
    for piece in &arguments.only {
        say(&format!("{} begins, load {}", piece.id(), report::load()));
        let loaded = report::load();
        let rows: Vec<Row> = match piece {
            Piece::A1 => writes::measure(&arguments).await?,
            Piece::A2 => Box::pin(heartbeats::measure(&arguments)).await?,
            Piece::A4 => failover::measure(&arguments).await?,
            Piece::A5 => planner::measure(&arguments)?,
        };
        kept.insert(piece.id().to_owned(), report::Taken { when: report::now(), load: loaded, repeats: arguments.repeats, note: arguments.note.clone(), rows });
        std::fs::write(&arguments.kept, serde_json::to_vec_pretty(&kept)?)?;
    }
    let text = report::page(&kept);
    println!("{text}");
    if let Some(output) = &arguments.output {
        report::replace(output, &text)?;
        say(&format!("written to {}", output.display()));
    }
    Ok(())
}
