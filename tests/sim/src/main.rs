//! `vp-sim`: many seeds and a table, or one seed with its trace and its picture.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use vp_sim::{
    Watch, mutants, run,
    runs::{Order, all, guarded},
};

/// As in the coordinator: a fifth of a run was in the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs whole clusters that a seed decides, and checks every step.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Replays one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: prints everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// With --seed: draws the run, as SVG.
    #[arg(long, requires = "seed", value_name = "FILE")]
    picture: Option<PathBuf>,
    /// How many seeds.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// No seed is begun after so many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Threads; 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Plants each bug in turn and says which seed notices it (a build with the feature `mutants`); names choose some.
    #[arg(long, num_args = 0.., value_name = "NAME")]
    mutants: Option<Vec<String>>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return one(seed, &arguments);
    }
    // Panics are results here, told in the table.
    std::panic::set_hook(Box::new(|_| {}));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let order = Order {
        first: arguments.first,
        seeds: arguments.seeds,
        within: Duration::from_secs(arguments.seconds),
        threads: if arguments.threads == 0 { cores } else { arguments.threads },
        mutant: None,
    };
    if let Some(names) = &arguments.mutants {
        return Ok(if mutants::hunt(&order, names) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let total = all(&order);
    print!("{total}");
    if total.seeds < order.seeds {
        println!("stopped by the time: {} of {} seeds; more with --seconds (make: SECONDS=N)", total.seeds, order.seeds);
    }
    Ok(if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn one(seed: u64, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let watched = arguments.trace || arguments.picture.is_some();
    let outcome = if watched {
        let (outcome, trace, history) = run(seed, Watch::Everything);
        let mut out = std::io::stdout().lock();
        if arguments.trace {
            trace.iter().flatten().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        if let Some(path) = &arguments.picture {
            std::fs::write(path, history.svg(&outcome)).with_context(|| format!("writing {}", path.display()))?;
            write!(out, "{}", history.text())?;
        }
        outcome
    } else {
        guarded(seed)
    };
    println!("seed {seed}: {:.1} s simulated, {} events, hash {:016x}", outcome.simulated as f64 / 1e6, outcome.events, outcome.hash);
    match outcome.violation {
        None => Ok(ExitCode::SUCCESS),
        Some((rule, how, at)) => {
            println!("VIOLATION at {:.3} s: {rule}: {how}", at as f64 / 1e6);
            Ok(ExitCode::FAILURE)
        }
    }
}
