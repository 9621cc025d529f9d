//! A local region as a whole: brought up step by step, looked at, and taken away again without a trace.
//! Leaves out what an instance is (`keeper`) and what runs on it (the image).
//!
//! ```text
//! up: checks → state folder → control API → Lambda service → S3 → keeper → buckets → trust → network → image → templates → groups
//! ```

mod aws;
mod checks;
mod down;
mod env;
mod lock;
mod options;
mod record;
mod roles;
mod services;
mod status;
mod trust;
mod up;

pub use down::down;
pub use options::{DownOptions, UpOptions, network_of, state_of};
pub use record::{Record, RecordedProcess};
pub use status::{InstanceStatus, RegionStatus, ServiceStatus};

use std::path::{Path, PathBuf};
use std::time::Duration;

use vp_trust::Rank;

/// The AWS region that every local region plays.
pub const AWS_REGION: &str = "us-east-1";
/// Its zones; zone Z (from 1) has the subnet 127.N.Z.0/24.
pub const ZONES: [&str; 3] = ["us-east-1a", "us-east-1b", "us-east-1c"];
/// The port on which coordinators serve agents, peers and operators.
pub const COORDINATOR_PORT: u16 = 7400;
/// The port on which they serve instances that have no certificate yet.
pub const ENROLMENT_PORT: u16 = 7401;

/// What `up` and `down` tell while they work; names of steps are stable words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A step begins.
    Started { step: &'static str },
    /// A step ended well. `changed` is false where everything was already as wanted.
    Done { step: &'static str, took: Duration, changed: bool },
}

/// Why a region could not be brought up, looked at or taken down. The text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Something on the machine must change first: a busy port, a missing tool, too little disk or memory.
    #[error("{}", .0.join("\n"))]
    Unready(Vec<String>),
    /// No region has its state in that folder.
    #[error("no region in {}: bring one up first (vpctl dev up)", .0.display())]
    Absent(PathBuf),
    /// The folder holds something, and nothing says that it is a region's.
    #[error("{} is not a region's folder and not empty: nothing in it is touched (--state names another)", .0.display())]
    Foreign(PathBuf),
    /// An option that cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The wanted spec, in one line that does not name the file it came from.
    #[error("{0}")]
    Spec(String),
    /// A service ended or did not answer in time; its log is named.
    #[error("{service} {what}; see {}", log.display())]
    Service { service: &'static str, what: String, log: PathBuf },
    /// The control API is gone, and its memory was all that knew the instances.
    #[error("control-api ended, and with it the memory of every instance; see {}", log.display())]
    Forgotten { log: PathBuf },
    /// The control API or S3 answered with an error.
    #[error("{doing}")]
    Aws { doing: String, source: vp_cloud::provision::ProvisionError },
    /// S3 refused, or did not answer.
    #[error("{doing}")]
    Store { doing: String, source: vp_cloud::s3::StoreError },
    /// A file or folder of the region could not be read or written.
    #[error("{}: {doing}", path.display())]
    File { path: PathBuf, doing: &'static str, source: std::io::Error },
    /// A file of the region cannot be understood.
    #[error("{}: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// A region that has been brought up; cheap to open, holds no connection.
#[derive(Debug, Clone)]
pub struct Region {
    record: Record,
    state: PathBuf,
}

impl Region {
    /// Brings a region up, or repairs one: steps whose result already stands change nothing.
    ///
    /// # Errors
    /// `Unready`, `Invalid` and `Spec` before anything is started; otherwise the step that failed. Running it again goes on from there.
    pub async fn up(options: &UpOptions, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Self, RegionError> {
        up::up(options, progress).await
    }

    /// Opens the region whose state is in `state`.
    ///
    /// # Errors
    /// `Absent` when there is none, `Malformed` when its record cannot be read.
    pub fn open(state: &Path) -> Result<Self, RegionError> {
        Ok(Self { record: Record::load(state)?, state: state.to_path_buf() })
    }

    /// Takes the region away: processes, cgroups, mounts, links and (unless `keep`) the state folder. See [`down`] for a region whose record is lost.
    ///
    /// # Errors
    /// `File` when something cannot be removed.
    pub async fn down(self, options: &DownOptions, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<(), RegionError> {
        down(&self.state, options, progress).await
    }

    /// Services and instances as they are now.
    ///
    /// # Errors
    /// Never for a service that is down (that is part of the answer), only for an unreadable state folder.
    pub async fn status(&self) -> Result<RegionStatus, RegionError> {
        status::status(&self.record, &self.state).await
    }

    /// The exports with which AWS CLI, kcat, zkCli, spark-submit and vpctl reach the region: name and value, in a fixed order.
    ///
    /// # Errors
    /// None today; kept for values that need asking.
    pub async fn env(&self) -> Result<Vec<(String, String)>, RegionError> {
        Ok(env::exports(&self.record, &self.state).await)
    }

    /// What was recorded at `up`: name, network, endpoints, buckets, keys.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Folder of an operator's certificate: `certificate.pem` and `key.pem`.
    pub fn operator(&self, rank: Rank) -> PathBuf {
        trust::operator(&self.state, rank)
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The log files of the services (name, path), whether or not they exist yet; instances' consoles are `instances/ID/console.log`.
    pub fn logs(&self) -> Vec<(String, PathBuf)> {
        services::SERVICES.iter().map(|name| ((*name).to_owned(), self.state.join("logs").join(format!("{name}.log")))).collect()
    }
}
