//! The instance keeper: makes the machine agree with the control API. Boots what is pending or running, once; takes away what is shutting
//! down and says so only when nothing of it is left. Knows nothing of what runs on an instance nor (`mode`) of how one is made, and keeps
//! no state but the disks.
//!
//! ```text
//! control API --list, once a second--> keeper --> disk, volume links, IMDS; mode: cgroup --> instance-init (PID 1) --> the image's boot
//!             <--------"terminated"---- keeper <-- mode: pidfd of PID 1: no process of the namespace is left
//! ```

pub mod cgroup;
pub mod config;
pub mod disk;
pub mod imds;
pub mod init;
pub mod instance_types;
pub mod launcher;
pub mod mode;
pub mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tracing::{info, warn};

use config::Config;
use disk::Disk;
use imds::Imds;
use launcher::{Launcher, Listed};
use mode::{Mode, Standing};
use processes::Processes;

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
        mode: Processes::new(state.to_path_buf(), config),
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

struct Keeper<M> {
    launcher: Launcher,
    state: PathBuf,
    region: imds::Region,
    mode: M,
    /// Metadata services, by instance.
    services: BTreeMap<String, Imds>,
    /// Instances whose silent end was logged.
    told: BTreeSet<String>,
}

impl<M: Mode> Keeper<M> {
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
                let service = Imds::serve(self.region.clone(), disk.clone(), instance.clone(), &self.mode.metadata(instance)).await?;
                self.services.insert(instance.id.clone(), service);
            }
        }
        match self.mode.standing(&disk)? {
            Standing::NeverBooted => {
                self.mode.boot(&disk, instance).await?;
                info!(instance = instance.id, address = instance.address, zone = instance.zone, "instance booted");
            }
            Standing::Living => {}
            Standing::Ended => {
                if self.told.insert(instance.id.clone()) {
                    info!(instance = instance.id, "instance ended by itself, it stays as ec2 sees it");
                }
            }
        }
        Ok(())
    }

    /// Nothing of it is left, its volumes are free, and only then the control API is told.
    async fn take_away(&self, instance: &Listed) -> Result<(), KeeperError> {
        let disk = Disk::of(&self.state, &instance.id);
        disk.prepare()?;
        // An instance that was never booted must not be booted later by anybody.
        if self.mode.standing(&disk)? == Standing::NeverBooted {
            disk.never_boot()?;
        }
        self.mode.take_away(&disk, instance).await?;
        disk.link_volumes(&self.state, &[])?;
        self.launcher.confirm_terminated(&instance.id).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::extract::{Path as UrlPath, State};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::region::RecordedProcess;

    type Words = Arc<Mutex<Vec<String>>>;

    /// A mode without instances: it notes what is asked of it.
    #[derive(Default)]
    struct Noting {
        words: Words,
        /// Something of an instance does not end.
        stuck: AtomicBool,
    }

    impl Mode for Noting {
        fn metadata(&self, _: &Listed) -> String {
            "127.0.0.1:0".to_owned()
        }

        async fn boot(&self, disk: &Disk, instance: &Listed) -> Result<(), KeeperError> {
            self.words.lock().unwrap().push(format!("boot {}", instance.id));
            disk.mark_booted(RecordedProcess { pid: 1, start_time: 0 }).map(|_| ())
        }

        fn standing(&self, disk: &Disk) -> Result<Standing, KeeperError> {
            Ok(if disk.init()?.is_some() { Standing::Living } else { Standing::NeverBooted })
        }

        async fn take_away(&self, disk: &Disk, instance: &Listed) -> Result<(), KeeperError> {
            let marked = disk.init()?.is_some();
            self.words.lock().unwrap().push(format!("take away {}, marked: {marked}", instance.id));
            if self.stuck.load(Ordering::SeqCst) {
                return Err(KeeperError::Kill { instance: instance.id.clone(), source: std::io::ErrorKind::PermissionDenied.into() });
            }
            Ok(())
        }
    }

    /// A control API that only notes which terminations are confirmed, among the mode's words.
    async fn control_api(words: Words) -> String {
        async fn confirmed(State(words): State<Words>, UrlPath(instance): UrlPath<String>) {
            words.lock().unwrap().push(format!("confirmed {instance}"));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/_keeper/instances/{id}/terminated", axum::routing::post(confirmed)).with_state(words);
        tokio::spawn(async move { axum::serve(listener, router).await });
        endpoint
    }

    async fn keeper(state: &Path) -> Keeper<Noting> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mode = Noting::default();
        let config = Config {
            name: "test".to_owned(),
            region: "eu-central-1".to_owned(),
            endpoint_url: control_api(mode.words.clone()).await,
            components: state.join("components"),
            role: "test".to_owned(),
            access_key_id: "test".to_owned(),
            secret_access_key: "test".to_owned(),
        };
        let key: String = include_str!("../../../coordinator/tests/data/identity-test-key.pk8.base64").split_whitespace().collect();
        std::fs::create_dir_all(state.join("identity")).unwrap();
        std::fs::write(state.join("identity/private.pk8"), STANDARD.decode(key).unwrap()).unwrap();
        Keeper {
            launcher: Launcher::new(&config.endpoint_url),
            state: state.to_path_buf(),
            region: imds::Region::load(&config, state).unwrap(),
            mode,
            services: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    fn listed(state: &str) -> Vec<Listed> {
        vec![Listed {
            id: "i-1".to_owned(),
            state: state.to_owned(),
            image: "ami-1".to_owned(),
            instance_type: "t3.small".to_owned(),
            zone: "eu-central-1a".to_owned(),
            address: "127.0.0.1".to_owned(),
            account: "123456789012".to_owned(),
            user_data: String::new(),
            tags: BTreeMap::new(),
            volumes: Vec::new(),
            launched: "2026-01-01T00:00:00.000Z".to_owned(),
            lifecycle: "InService".to_owned(),
        }]
    }

    #[tokio::test]
    async fn an_instance_is_booted_once_however_often_it_is_listed_and_by_no_second_keeper() {
        let state = tempfile::tempdir().unwrap();
        let mut first = keeper(state.path()).await;
        first.settle(listed("pending")).await;
        first.settle(listed("running")).await;
        assert_eq!(*first.mode.words.lock().unwrap(), ["boot i-1"]);
        let mut second = keeper(state.path()).await;
        second.settle(listed("running")).await;
        assert!(second.mode.words.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_termination_is_confirmed_only_when_nothing_of_the_instance_is_left() {
        let state = tempfile::tempdir().unwrap();
        let mut keeper = keeper(state.path()).await;
        keeper.settle(listed("running")).await;
        keeper.mode.stuck.store(true, Ordering::SeqCst);
        keeper.settle(listed("shutting-down")).await;
        assert_eq!(*keeper.mode.words.lock().unwrap(), ["boot i-1", "take away i-1, marked: true"]);
        keeper.mode.stuck.store(false, Ordering::SeqCst);
        keeper.settle(listed("shutting-down")).await;
        assert_eq!(keeper.mode.words.lock().unwrap()[2..], ["take away i-1, marked: true", "confirmed i-1"]);
    }

    #[tokio::test]
    async fn an_instance_that_ends_before_its_boot_is_ruled_out_from_booting_before_it_is_taken_away() {
        let state = tempfile::tempdir().unwrap();
        let mut keeper = keeper(state.path()).await;
        keeper.settle(listed("shutting-down")).await;
        keeper.settle(listed("running")).await;
        assert_eq!(*keeper.mode.words.lock().unwrap(), ["take away i-1, marked: true", "confirmed i-1"]);
    }
}
