//! `keeper.json`: what the keeper of one region is told.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::KeeperError;

/// The keeper's configuration; all that it knows of its region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the region: names its cgroups.
    pub name: String,
    /// AWS region shown by the metadata services.
    pub region: String,
    /// Control API.
    pub endpoint_url: String,
    /// Folder handed to instances as `VP_COMPONENTS`.
    pub components: PathBuf,
    /// Role whose credentials the metadata services hand out.
    pub role: String,
    /// Static credentials of that role.
    pub access_key_id: String,
    /// Secret of `access_key_id`.
    pub secret_access_key: String,
}

impl Config {
    /// Path of the configuration in a state folder.
    pub fn path(state: &Path) -> PathBuf {
        state.join("keeper.json")
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Config` with the reason.
    pub fn load(state: &Path) -> Result<Self, KeeperError> {
        let path = Self::path(state);
        let text = std::fs::read(&path).map_err(|error| KeeperError::Config { path: path.clone(), reason: error.to_string() })?;
        serde_json::from_slice(&text).map_err(|error| KeeperError::Config { path, reason: error.to_string() })
    }
}
