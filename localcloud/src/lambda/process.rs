//! Function processes: each worker slot of a function has one running process, started again when it ends.
//!
//! A process is a session of its own, dies with this service, and is killed with all its children when an invocation outlives its
//! deadline. Its priority is an instance's (each has a control group, this has none): a function does not run on the instances' cores
//! in the cloud, and at nice 10 they starved it where the kernel does not group by session.

use std::{os::unix::process::CommandExt, process::Stdio, sync::Arc, time::Duration};

use anyhow::Context as _;
use nix::{
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::{Pid, getppid, setsid},
};
use tokio::process::{Child, Command};

use super::{config::Config, delivery::Delivery};

/// A process that ends at once is started again after this, doubled each time up to 5 s.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where a function finds its service, in its environment.
pub(crate) const RUNTIME_API: &str = "AWS_LAMBDA_RUNTIME_API";

/// What [`RUNTIME_API`] begins with. With a path after it, the Rust runtime wants the scheme too (plain Lambda gives host and port only).
pub(crate) fn service_url(address: impl std::fmt::Display, port: u16) -> String {
    format!("http://{address}:{port}")
}

/// The session of a running function; dropped, it is gone with everything in it.
struct Session(Option<Pid>);

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The leader may have gone already; its children may not.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Keeps one worker of a function running, for ever.
///
/// # Errors
/// Never by itself: a program that cannot be started is tried again, because the build may bring it.
pub async fn keep(config: Arc<Config>, function: usize, worker: usize, delivery: Arc<Delivery>) -> anyhow::Result<()> {
    let function = config.functions.get(function).context("no such function")?;
    let mut wait = FIRST_WAIT;
    loop {
        let begun = std::time::Instant::now();
        match start(&config, function, worker, &delivery) {
            Err(error) => tracing::warn!(function = function.name, worker, error = format!("{error:#}"), "function program cannot be started"),
            Ok(mut child) => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
                let session = Session(pid);
                let (kind, message) = tokio::select! {
                    ended = child.wait() => {
                        let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                        ("Runtime.ExitError", format!("the function's process ended: {status}"))
                    }
                    () = delivery.overdue(&function.name, worker) => {
                        ("Sandbox.Timedout", format!("Task timed out after {}.{:03} seconds", function.timeout_ms / 1000, function.timeout_ms % 1000))
                    }
                };
                drop(session);
                // Reaps it; after SIGKILL that is a matter of moments.
                let _ = child.wait().await;
                tracing::warn!(function = function.name, worker, message, "function process is gone");
                delivery.fail_worker(&function.name, worker, kind, &message).await;
            }
        }
        wait = if begun.elapsed() > LONGEST_WAIT { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

fn start(config: &Config, function: &super::config::Function, worker: usize, delivery: &Delivery) -> anyhow::Result<Child> {
    let log = delivery.journal.logs().join(format!("{}.log", function.name));
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
    // As an execution environment's /tmp: its own, and empty.
    let temporary = config.state_dir.join("tmp").join(format!("{}-{worker}", function.name));
    let _ = std::fs::remove_dir_all(&temporary);
    std::fs::create_dir_all(&temporary).with_context(|| format!("make {}", temporary.display()))?;
    let mut command = std::process::Command::new(&function.program);
    command
        .env_clear()
        .envs(&function.environment)
        .env("TMPDIR", &temporary)
        .env(RUNTIME_API, format!("{}/{}/{worker}", service_url(&config.address, config.port), function.name))
        .env("AWS_LAMBDA_FUNCTION_NAME", &function.name)
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
        .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", function.name))
        .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("local/{worker}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let service = nix::unistd::getpid();
    // SAFETY: between fork and exec only system calls that are safe there are made (setsid, prctl, getppid), and
    // nothing is allocated on the way that succeeds.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != service {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
    let child = Command::from(command).kill_on_drop(true).spawn().with_context(|| format!("start {}", function.program.display()))?;
    tracing::info!(function = function.name, worker, pid = child.id(), "function process is started");
    Ok(child)
}
