//! `vp-localcloud`: the programs of a local region: the instance keeper, the birth of an instance, the Lambda service.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Programs of a local region; `vpctl dev up` starts them.
#[derive(Parser)]
#[command(name = "vp-localcloud", version)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Boots and takes away instances as the control API wants.
    Keeper {
        /// State folder of the region.
        #[arg(long)]
        state: PathBuf,
    },
    /// Invokes functions on S3 events.
    Lambda {
        /// Configuration of the service.
        #[arg(long)]
        config: PathBuf,
    },
    /// Starts one instance in namespaces of its own (the keeper calls this).
    #[command(hide = true)]
    InstanceInit {
        /// The instance's folder.
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Before any thread exists: it forks.
    if let Program::InstanceInit { folder } = &arguments.program {
        let code = vp_localcloud::keeper::init::give_birth(folder).context("instance not started")?;
        std::process::exit(code);
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    rustls::crypto::ring::default_provider().install_default().map_err(|_| anyhow::anyhow!("a crypto provider was installed before"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments.program {
            Program::Keeper { state } => vp_localcloud::keeper::run(&state).await.context("keeper ended"),
            Program::Lambda { config } => vp_localcloud::lambda::run(config).await,
            Program::InstanceInit { .. } => Ok(()),
        }
    })
}
