//! Process mode: an instance is namespaces of its own under a PID 1 (`init`), an address in 127.0.0.0/8 and, with root, a control group.
//! Network and root file system are the host's.

use std::path::PathBuf;

use super::cgroup::Cgroup;
use super::config::Config;
use super::disk::Disk;
use super::launcher::Listed;
use super::mode::{Mode, Standing};
use super::{KeeperError, imds, init};
use crate::process;

/// The instances of one region, as processes.
#[derive(Debug)]
pub struct Processes {
    state: PathBuf,
    config: Config,
}

impl Processes {
    /// For the region whose state is in `state`.
    pub fn new(state: PathBuf, config: Config) -> Self {
        Self { state, config }
    }
}

impl Mode for Processes {
    fn metadata(&self, instance: &Listed) -> String {
        format!("{}:{}", instance.address, imds::PORT)
    }

    async fn boot(&self, disk: &Disk, instance: &Listed) -> Result<(), KeeperError> {
        let cgroup = Cgroup::create(&self.config.name, &instance.id, &instance.instance_type);
        init::boot(&self.state, &self.config, disk, instance, &self.metadata(instance), &cgroup).await
    }

    fn standing(&self, disk: &Disk) -> Result<Standing, KeeperError> {
        Ok(match disk.init()? {
            None => Standing::NeverBooted,
            Some(init) if process::alive(&init) => Standing::Living,
            Some(_) => Standing::Ended,
        })
    }

    async fn take_away(&self, disk: &Disk, instance: &Listed) -> Result<(), KeeperError> {
        if let Some(init) = disk.init()? {
            // PID 1 is seen to end only after every process of its namespace.
            process::kill(&init).await.map_err(|source| KeeperError::Kill { instance: instance.id.clone(), source })?;
        }
        Cgroup::of(&self.config.name, &instance.id).remove();
        Ok(())
    }
}
