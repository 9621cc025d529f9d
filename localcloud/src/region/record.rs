//! `region.json`: what was made, so that it can be found, repaired and taken away. Holds the S3 keys, hence mode 0600.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vp_cloud::Endpoints;

use super::RegionError;
use crate::keeper::config::Config;

/// The first file of a state folder, made before all others, and the last to go.
pub(super) const MARK: &str = "vp-region";

/// A process that can be told from another one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedProcess {
    /// Its pid on the host.
    pub pid: i32,
    /// Field 22 of its `/proc/PID/stat`, in clock ticks since the machine started.
    pub start_time: u64,
}

/// Everything that outlives the command that brought the region up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the region and of its cluster.
    pub name: String,
    /// N of 127.N.0.0/16.
    pub network: u8,
    /// Lease in milliseconds.
    pub lease_ms: u64,
    /// The AWS region.
    pub aws_region: String,
    /// Control API (EC2, Auto Scaling, STS, SQS).
    pub endpoint_url: String,
    /// S3.
    pub s3_endpoint_url: String,
    /// Lambda service.
    pub lambda_endpoint_url: String,
    /// Static credentials of this region, good on both endpoints.
    pub access_key_id: String,
    /// Secret of `access_key_id`.
    pub secret_access_key: String,
    /// `uploads`, `results`, `cluster` → name of the bucket.
    pub buckets: BTreeMap<String, String>,
    /// Addresses of the coordinators with their port, in the order of their ids.
    pub coordinators: Vec<String>,
    /// Ids made through the API, by what they are: `vpc`, `subnet-1`, `image`, `template-nodes`, ….
    pub made: BTreeMap<String, String>,
    /// Auto Scaling Group whose instances are nodes.
    pub nodes_group: String,
    /// Auto Scaling Groups of the coordinators, in the order of their ids.
    pub coordinator_groups: Vec<String>,
    /// Service → process.
    pub services: BTreeMap<String, RecordedProcess>,
    /// Folder of the components.
    pub components: PathBuf,
    /// Folder of the programs.
    pub programs: PathBuf,
}

impl Record {
    /// Path of the record in a state folder.
    pub fn path(state: &Path) -> PathBuf {
        state.join("region.json")
    }

    /// Whether a folder may be made a region's, or taken away as one: it carries [`MARK`] (or what regions of before had), or holds nothing.
    pub fn is_ours(state: &Path) -> bool {
        let empty = || std::fs::read_dir(state).is_ok_and(|mut entries| entries.next().is_none());
        state.join(MARK).is_file() || !state.exists() || empty() || Self::load(state).is_ok() || Config::load(state).is_ok()
    }

    /// How the AWS clients reach the region.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            region: Some(self.aws_region.clone()),
            endpoint_url: Some(self.endpoint_url.clone()),
            s3_endpoint_url: Some(self.s3_endpoint_url.clone()),
            credentials: Some((self.access_key_id.clone(), self.secret_access_key.clone())),
        }
    }

    /// Reads the record of the region in `state`.
    ///
    /// # Errors
    /// `Absent` when there is none, `Malformed` when it is not a record.
    pub fn load(state: &Path) -> Result<Self, RegionError> {
        let path = Self::path(state);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(RegionError::Absent(state.to_path_buf())),
            Err(source) => return Err(RegionError::File { path, doing: "reading the region's record", source }),
        };
        serde_json::from_slice(&text).map_err(|error| RegionError::Malformed { path, reason: error.to_string() })
    }

    /// Writes the record, durable before it returns, readable by its owner only.
    ///
    /// # Errors
    /// `File`.
    pub fn save(&self, state: &Path) -> Result<(), RegionError> {
        let path = Self::path(state);
        let fail = |source| RegionError::File { path: path.clone(), doing: "writing the region's record", source };
        let text = serde_json::to_vec_pretty(self).map_err(|e| RegionError::Malformed { path: path.clone(), reason: e.to_string() })?;
        let fresh = path.with_extension("json.new");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(fail)?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(fail)?;
        std::fs::rename(&fresh, &path).map_err(fail)
    }
}
