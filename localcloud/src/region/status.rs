//! The region as it is now: which services live, which instances the control API has, and whether a process stands behind each.

use std::path::Path;

use serde::Serialize;

use super::{Record, RegionError, services};
use crate::keeper::{disk::Disk, launcher};
use crate::process;

/// The region as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct RegionStatus {
    /// Name of the region.
    pub name: String,
    /// Its network, e.g. `127.20.0.0/16`.
    pub network: String,
    /// Every service, in the order of their start.
    pub services: Vec<ServiceStatus>,
    /// Instances the control API lists, terminated ones left out; empty when it does not answer.
    pub instances: Vec<InstanceStatus>,
}

impl RegionStatus {
    /// Every service was started and lives.
    pub fn healthy(&self) -> bool {
        self.services.iter().all(|service| service.alive)
    }
}

/// One service of the region.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// `control-api`, `lambda`, `s3`, `keeper`.
    pub name: String,
    /// Its process lives (the very process that was started, told by its start time).
    pub alive: bool,
    /// Its pid, when it was ever started.
    pub pid: Option<i32>,
}

/// One instance.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceStatus {
    /// Instance id.
    pub id: String,
    /// State by the control API: `pending`, `running`, `shutting-down`, ….
    pub state: String,
    /// Its PID 1 lives.
    pub alive: bool,
    /// Host pid of its PID 1, when it was booted.
    pub pid: Option<i32>,
    /// Availability zone.
    pub zone: String,
    /// Private address.
    pub address: String,
    /// Auto Scaling Group, when it is in one.
    pub group: Option<String>,
    /// Instance type.
    pub instance_type: String,
}

pub(super) async fn status(record: &Record, state: &Path) -> Result<RegionStatus, RegionError> {
    let services = services::SERVICES
        .iter()
        .filter(|name| **name != services::LAMBDA || record.services.contains_key(**name) || state.join("lambda.json").exists())
        .map(|name| {
            let process = record.services.get(*name);
            ServiceStatus { name: (*name).to_owned(), alive: process.is_some_and(process::alive), pid: process.map(|process| process.pid) }
        })
        .collect();
    let listed = launcher::Launcher::new(&record.endpoint_url).instances().await.unwrap_or_default();
    let instances = listed
        .into_iter()
        .filter(|instance| instance.state != "terminated")
        .map(|instance| {
            let init = Disk::of(state, &instance.id).init().ok().flatten();
            InstanceStatus {
                alive: init.as_ref().is_some_and(process::alive),
                pid: init.map(|init| init.pid),
                group: instance.tags.get("aws:autoscaling:groupName").cloned(),
                id: instance.id,
                state: instance.state,
                zone: instance.zone,
                address: instance.address,
                instance_type: instance.instance_type,
            }
        })
        .collect();
    Ok(RegionStatus { name: record.name.clone(), network: format!("127.{}.0.0/16", record.network), services, instances })
}
