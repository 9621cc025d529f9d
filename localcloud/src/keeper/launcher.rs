//! The two questions the keeper asks the control API beside AWS's own calls (contracts §1).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::KeeperError;

/// An instance as the control API lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Listed {
    /// Instance id.
    pub id: String,
    /// `pending`, `running`, `shutting-down`, `terminated`, `stopped`.
    pub state: String,
    /// Image id.
    pub image: String,
    /// Instance type.
    #[serde(rename = "type")]
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// Private address.
    pub address: String,
    /// Owner's account.
    pub account: String,
    /// User data, base64.
    pub user_data: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Attached volumes, the root device left out.
    pub volumes: Vec<Attached>,
    /// Launch time, ISO 8601.
    pub launched: String,
    /// Auto Scaling lifecycle state.
    pub lifecycle: String,
}

/// A volume attached to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attached {
    /// Volume id.
    pub volume: String,
    /// Device name it was attached as.
    pub device: String,
}

#[derive(Deserialize)]
struct Answer {
    instances: Vec<Listed>,
}

/// A client of the launcher's own endpoints.
#[derive(Debug, Clone)]
pub struct Launcher {
    client: reqwest::Client,
    endpoint: String,
}

impl Launcher {
    /// For the control API at `endpoint`, e.g. `http://127.20.0.2:5000`.
    pub fn new(endpoint: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap_or_default();
        Self { client, endpoint: endpoint.to_owned() }
    }

    /// Every instance that the control API remembers.
    ///
    /// # Errors
    /// `ControlApi`.
    pub async fn instances(&self) -> Result<Vec<Listed>, KeeperError> {
        let fail = |source| KeeperError::ControlApi { doing: "list instances", source };
        let answer =
            self.client.get(format!("{}/_keeper/instances", self.endpoint)).send().await.and_then(reqwest::Response::error_for_status).map_err(fail)?;
        Ok(answer.json::<Answer>().await.map_err(fail)?.instances)
    }

    /// "No process of it is left": the control API shows it as terminated from now on.
    ///
    /// # Errors
    /// `ControlApi`; also when its termination was never asked for.
    pub async fn confirm_terminated(&self, instance: &str) -> Result<(), KeeperError> {
        let url = format!("{}/_keeper/instances/{instance}/terminated", self.endpoint);
        let answer = self.client.post(url).send().await.and_then(reqwest::Response::error_for_status);
        answer.map(|_| ()).map_err(|source| KeeperError::ControlApi { doing: "note a termination", source })
    }
}
