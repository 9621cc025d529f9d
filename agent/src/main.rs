//! `vp-agent`: the daemon; `vp-agent guard`, the watchdog of one exclusive slot; and `vp-agent deputy`, the guard's own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};
use vp_agent::clock::Instant;
use vp_agent::durable::{make_folder, read_if_there, replace};
use vp_agent::guard::{self, Order};
use vp_agent::session::Identity;
use vp_agent::settings::{Places, Settings};
use vp_agent::shared::Shared;
use vp_agent::{control, imds, machine, session};

/// The daemon on every instance of a vp cluster. Settings come from the environment, the instance metadata and the user data.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Watch over one exclusive slot's process and kill it at its lease's end (the agent starts this itself).
    Guard {
        /// The slot, for a person who looks at the process list.
        #[arg(long)]
        slot: String,
        /// Only renewals of this generation count.
        #[arg(long)]
        generation: u64,
        /// First deadline, nanoseconds on CLOCK_BOOTTIME.
        #[arg(long)]
        deadline: u64,
        /// Niceness of the role.
        #[arg(long, default_value_t = 10)]
        nice: i32,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Watch over a guard and kill its slot's processes when it dies (the guard starts this itself).
    Deputy {
        /// The slot, for a person who looks at the process list.
        #[arg(long)]
        slot: String,
        /// Pid of the guard.
        #[arg(long)]
        guard: i32,
        /// When the guard started, ticks since boot.
        #[arg(long)]
        since: u64,
    },
}

fn main() -> Result<()> {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    match Arguments::parse().command {
        Some(Command::Guard { slot, generation, deadline, nice, command }) => {
            let code = guard::run(&Order { slot, generation, deadline: Instant(deadline), nice, command })?;
            std::process::exit(code);
        }
        Some(Command::Deputy { guard, since, slot: _ }) => return Ok(guard::deputy::run(guard, since)?),
        None => {}
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("VP_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(agent())
}

async fn agent() -> Result<()> {
    machine::outrank_roles();
    let places = Places::from_environment()?;
    let metadata = imds::read_patiently(&places.imds_endpoint, Duration::from_secs(30)).await?;
    let settings = Arc::new(Settings::new(places, metadata)?);
    let folder = settings.layout.agent();
    make_folder(&folder)?;
    let identity = Identity { boot_id: boot_id(&folder.join("boot_id"))? };
    tracing::info!(instance = settings.node.instance_id, address = %settings.node.address, kind = settings.node.instance_type, "agent started");

    let shared = Arc::new(Shared::new());
    let (over, session_over) = tokio::sync::oneshot::channel::<()>();
    let (for_session, session_shared) = (settings.clone(), shared.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("session".into()).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _over = over;
        runtime.block_on(session::run(for_session, identity, session_shared));
    })?;
    tokio::select! {
        ended = control::run(settings, shared) => ended.context("the control loop ended"),
        _ = session_over => Err(anyhow!("the session thread ended")),
        asked = asked_to_end() => asked,
    }
}

/// SIGTERM and SIGINT end the agent; its roles run on and the next agent adopts them.
async fn asked_to_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        asked = tokio::signal::ctrl_c() => asked?,
    }
    tracing::info!("agent ends, its roles run on");
    Ok(())
}

fn boot_id(path: &std::path::Path) -> Result<String> {
    if let Some(bytes) = read_if_there(path)? {
        return Ok(String::from_utf8_lossy(&bytes).trim().to_owned());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("the kernel gives no random id")?;
    replace(path, id.trim().as_bytes())?;
    Ok(id.trim().to_owned())
}
