//! The instance keeper: makes the machine agree with the control API. Boots what is pending or running, once; takes away what is shutting
//! down and says so only when nothing of it is left. Knows nothing of what runs on an instance, and keeps no state but the disks.
//!
//! ```text
//! control API --list, once a second--> keeper --> disk, volume links, IMDS, cgroup --> instance-init (PID 1) --> the image's boot
//!             <--------"terminated"---- keeper <-- pidfd of PID 1: no process of the namespace is left
//! ```

pub mod cgroup;
pub mod config;
pub mod disk;
pub mod imds;
pub mod init;
pub mod instance_types;
pub mod launcher;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tracing::{info, warn};

use crate::process::Held;
use cgroup::Cgroup;
use config::Config;
use disk::Disk;
use imds::Imds;
use launcher::{Launcher, Listed};

/// How often the control API is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Why the keeper cannot run, or could not do something for one instance (which it then tries again).
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper holds this state folder.
    #[error("another keeper runs on {}", .0.display())]
    Taken(PathBuf),
    /// The configuration is missing or cannot be understood.
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    /// A file, link or folder.
    #[error("{}: {doing}", path.display())]
    File { path: PathBuf, doing: &'static str, source: std::io::Error },
    /// The control API.
    #[error("asking the control API to {doing}")]
    ControlApi { doing: &'static str, source: reqwest::Error },
    /// The instance could not be booted; its console says more.
    #[error("booting {instance}: {reason}")]
    Boot { instance: String, reason: String },
    /// The instance's metadata service could not listen.
    #[error("metadata service of {instance} on {address}")]
    Imds { instance: String, address: String, source: std::io::Error },
    /// Signalling or waiting for the instance's processes.
    #[error("taking away {instance}")]
    Kill { instance: String, source: std::io::Error },
}

/// Runs the keeper of the region whose state is in `state` until the process is ended.
///
/// # Errors
/// `Taken`, `Config`. Troubles with single instances are logged and tried again a second later.
pub async fn run(state: &Path) -> Result<(), KeeperError> {
    let config = Config::load(state)?;
    let _lock = lock(state)?;
    let mut keeper = Keeper {
        launcher: Launcher::new(&config.endpoint_url),
        state: state.to_path_buf(),
        region: imds::Region::load(&config, state)?,
        config,
        services: BTreeMap::new(),
        told: BTreeSet::new(),
    };
    info!(state = %state.display(), "keeper started");
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reachable = true;
    loop {
        tick.tick().await;
        match keeper.launcher.instances().await {
            Ok(listed) => {
                if !reachable {
                    info!("control api answers again");
                }
                reachable = true;
                keeper.settle(listed).await;
            }
            Err(error) => {
                if reachable {
                    warn!(error = &error as &dyn std::error::Error, "control api does not answer");
                }
                reachable = false;
            }
        }
    }
}

/// One keeper a state folder; the lock goes with the process.
fn lock(state: &Path) -> Result<Flock<std::fs::File>, KeeperError> {
    let path = state.join("keeper.lock");
    let file = std::fs::File::create(&path).map_err(|source| KeeperError::File { path: path.clone(), doing: "opening the keeper's lock", source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| KeeperError::Taken(state.to_path_buf()))
}

struct Keeper {
    launcher: Launcher,
    state: PathBuf,
    config: Config,
    region: imds::Region,
    /// Metadata services, by instance.
    services: BTreeMap<String, Imds>,
    /// Instances whose silent end was logged.
    told: BTreeSet<String>,
}

impl Keeper {
    async fn settle(&mut self, listed: Vec<Listed>) {
        let mut ending = Vec::new();
        for instance in listed {
            match instance.state.as_str() {
                "pending" | "running" => {
                    if let Err(error) = self.keep(&instance).await {
                        warn!(instance = instance.id, error = &error as &dyn std::error::Error, "instance could not be kept");
                    }
                }
                "shutting-down" => {
                    self.services.remove(&instance.id);
                    ending.push(instance);
                }
                _ => {
                    self.services.remove(&instance.id);
                }
            }
        }
        let work = ending.iter().map(|instance| self.take_away(instance));
        for (instance, result) in ending.iter().zip(futures::future::join_all(work).await) {
            match result {
                Ok(()) => info!(instance = instance.id, "instance terminated"),
                Err(error) => warn!(instance = instance.id, error = &error as &dyn std::error::Error, "instance could not be taken away"),
            }
        }
    }

    /// Volumes, metadata service, and (once in its life) boot.
    async fn keep(&mut self, instance: &Listed) -> Result<(), KeeperError> {
        let disk = Disk::of(&self.state, &instance.id);
        disk.prepare()?;
        disk.link_volumes(&self.state, &instance.volumes)?;
        match self.services.get(&instance.id) {
            Some(service) => service.update(instance.clone()),
            None => {
                let service = Imds::serve(self.region.clone(), disk.clone(), instance.clone()).await?;
                self.services.insert(instance.id.clone(), service);
            }
        }
        match disk.init()? {
            None => {
                let cgroup = Cgroup::create(&self.config.name, &instance.id, &instance.instance_type);
                init::boot(&self.state, &self.config, &disk, instance, &cgroup).await?;
                info!(instance = instance.id, address = instance.address, zone = instance.zone, "instance booted");
            }
            Some(process) => {
                if !crate::process::alive(&process) && self.told.insert(instance.id.clone()) {
                    info!(instance = instance.id, "instance ended by itself, it stays as ec2 sees it");
                }
            }
        }
        Ok(())
    }

    /// SIGKILL to PID 1, wait for the whole namespace, clear up, and only then tell the control API.
    async fn take_away(&self, instance: &Listed) -> Result<(), KeeperError> {
        let disk = Disk::of(&self.state, &instance.id);
        disk.prepare()?;
        // An instance that was never booted must not be booted later by anybody.
        let process = match disk.init()? {
            Some(process) => Some(process),
            None => {
                disk.never_boot()?;
                disk.init()?
            }
        };
        if let Some(process) = process {
            let fail = |source| KeeperError::Kill { instance: instance.id.clone(), source };
            if let Some(held) = Held::adopt(&process).map_err(fail)? {
                held.kill().map_err(fail)?;
                held.ended().await.map_err(fail)?;
            }
        }
        disk.link_volumes(&self.state, &[])?;
        Cgroup::of(&self.config.name, &instance.id).remove();
        self.launcher.confirm_terminated(&instance.id).await
    }
}
