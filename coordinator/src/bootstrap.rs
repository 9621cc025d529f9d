//! May this instance vote as coordinator N? An identity belongs to the instance that claimed it with its first disk; a replacement with an empty disk waits,
//! since a voter that has forgotten what it promised could undo an acknowledged command.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use vp_cloud::s3::{ObjectStore, StoreError};

use crate::settings::Settings;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Claim {
    instance_id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the claim on this coordinator's identity cannot be read or written")]
    Store(#[from] StoreError),
    #[error("the claim on this coordinator's identity is not readable: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Claims the identity, or waits for ever because another instance has it. An unknown outcome is settled by reading back.
pub async fn claim(store: &ObjectStore, settings: &Settings) {
    let mut told = false;
    loop {
        match try_claim(store, settings).await {
            Ok(holder) if holder == settings.instance_id => {
                info!(coordinator = settings.me.id, "identity claimed");
                return;
            }
            Ok(holder) => {
                if !told {
                    warn!(coordinator = settings.me.id, %holder, "identity belongs to an earlier instance and this disk is empty; waiting to be made a member under a new one");
                    told = true;
                }
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "identity not claimed yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// The instance that has claimed a coordinator's identity; None: nobody yet, or not readable now.
pub async fn holder(store: &ObjectStore, bucket: &str, coordinator: u64) -> Option<String> {
    let (kept, _) = store.get(bucket, &key(coordinator)).await.ok()?;
    Some(serde_json::from_slice::<Claim>(&kept).ok()?.instance_id)
}

fn key(coordinator: u64) -> String {
    format!("coordinators/{coordinator}.json")
}

async fn try_claim(store: &ObjectStore, settings: &Settings) -> Result<String, BootstrapError> {
    let bucket = &settings.user_data.buckets.cluster;
    let key = key(settings.me.id);
    let mine = serde_json::to_vec(&Claim { instance_id: settings.instance_id.clone() })?;
    match store.put_if_absent(bucket, &key, mine.into(), "application/json").await {
        Ok(_) => Ok(settings.instance_id.clone()),
        Err(error) if error.is_precondition_failed() => {
            let (kept, _) = store.get(bucket, &key).await?;
            Ok(serde_json::from_slice::<Claim>(&kept)?.instance_id)
        }
        Err(error) => Err(error.into()),
    }
}
