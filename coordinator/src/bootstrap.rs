//! May this instance vote as coordinator N? An identity belongs to the instance that claimed it with its first disk; a replacement with an empty disk waits,
//! since a voter that has forgotten what it promised could undo an acknowledged command.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use vp_cloud::s3::{ObjectStore, StoreError};

use crate::{
    settings::Settings,
    storage::{self, DiskStore, StorageError, StoreOptions, disk},
};

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
    #[error("the disk of this coordinator cannot be made")]
    Disk(#[from] StorageError),
    /// It may have voted: without its log it could vote again, differently.
    #[error(
        "coordinator {coordinator} was this instance's, but its log in {folder} is gone: it does not vote any more; \
         terminate the instance and remove the claim only when the cluster is made anew"
    )]
    Emptied { coordinator: u64, folder: PathBuf },
}

/// Claims the identity, or waits for ever because another instance has it. An unknown outcome is settled by reading back.
///
/// # Errors
/// The disk on which the identity was claimed is gone, or cannot be made.
pub async fn claim(store: &ObjectStore, settings: &Settings) -> Result<(), BootstrapError> {
    let mut told = false;
    loop {
        let found = match read(store, &settings.user_data.buckets.cluster, settings.me.id).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "the claim on this coordinator's identity is not readable yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        match decide(disk::exists(&settings.data), found.as_deref(), &settings.instance_id) {
            Step::MakeDisk => drop(DiskStore::open(&settings.data, &identity(settings), StoreOptions::default())?),
            Step::Claim => {
                if let Err(error) = put(store, settings).await {
                    warn!(error = &error as &dyn std::error::Error, "identity not claimed yet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Step::Serve => {
                info!(coordinator = settings.me.id, "identity is this instance's");
                return Ok(());
            }
            Step::Wait { holder } => {
                if !told {
                    warn!(coordinator = settings.me.id, %holder, "identity belongs to an earlier instance; waiting to be made a member under a new one");
                    told = true;
                }
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            Step::Refuse => return Err(BootstrapError::Emptied { coordinator: settings.me.id, folder: settings.data.clone() }),
        }
    }
}

/// Whose disk a coordinator's is.
pub fn identity(settings: &Settings) -> storage::Identity {
    storage::Identity { cluster: settings.user_data.cluster.clone(), member: settings.me.id }
}

#[derive(Debug, PartialEq)]
enum Step {
    MakeDisk,
    Claim,
    Serve,
    Wait { holder: String },
    Refuse,
}

/// The next step on the way to serving. The disk is made before the identity is claimed: so a claim of its own without a disk can
/// only be a disk that was lost, wherever an earlier start was interrupted; and a disk without a claim has never voted.
fn decide(disk: bool, claimed_by: Option<&str>, me: &str) -> Step {
    match claimed_by {
        None if disk => Step::Claim,
        None => Step::MakeDisk,
        Some(holder) if holder != me => Step::Wait { holder: holder.to_owned() },
        Some(_) if disk => Step::Serve,
        Some(_) => Step::Refuse,
    }
}

/// The instance that has claimed a coordinator's identity; None: nobody yet, or not readable now.
pub async fn holder(store: &ObjectStore, bucket: &str, coordinator: u64) -> Option<String> {
    read(store, bucket, coordinator).await.ok().flatten()
}

fn key(coordinator: u64) -> String {
    format!("coordinators/{coordinator}.json")
}

/// Who has claimed the identity: None only when the store answers that nobody has.
async fn read(store: &ObjectStore, bucket: &str, coordinator: u64) -> Result<Option<String>, BootstrapError> {
    match store.get(bucket, &key(coordinator)).await {
        Ok((kept, _)) => Ok(Some(serde_json::from_slice::<Claim>(&kept)?.instance_id)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts the claim if nobody has; whoever came first is seen by reading.
async fn put(store: &ObjectStore, settings: &Settings) -> Result<(), BootstrapError> {
    let bucket = &settings.user_data.buckets.cluster;
    let mine = serde_json::to_vec(&Claim { instance_id: settings.instance_id.clone() })?;
    match store.put_if_absent(bucket, &key(settings.me.id), mine.into(), "application/json").await {
        Ok(_) => Ok(()),
        Err(error) if error.is_precondition_failed() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_serves_only_with_its_own_claim_and_the_disk_it_was_made_on() {
        let wait = Step::Wait { holder: "i-other".to_owned() };
        for (disk, claimed_by, wanted) in [
            (false, None, Step::MakeDisk),
            (true, None, Step::Claim),
            (true, Some("i-me"), Step::Serve),
            (false, Some("i-me"), Step::Refuse),
            (false, Some("i-other"), wait),
            (true, Some("i-other"), Step::Wait { holder: "i-other".to_owned() }),
        ] {
            assert_eq!(decide(disk, claimed_by, "i-me"), wanted, "disk {disk}, claimed by {claimed_by:?}");
        }
    }

    #[test]
    fn a_first_start_interrupted_anywhere_comes_to_serve_and_an_emptied_disk_never_does() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("coordinator");
        let make = || drop(DiskStore::open(&log, &storage::Identity { cluster: "c".to_owned(), member: 1 }, StoreOptions::default()).unwrap());
        let mut claim = None;
        // Each step is taken twice, as a crash right after it has it taken again.
        for wanted in [Step::MakeDisk, Step::Claim, Step::Serve] {
            let step = || decide(disk::exists(&log), claim, "i-me");
            assert_eq!(step(), wanted);
            assert_eq!(step(), wanted);
            match wanted {
                Step::MakeDisk => make(),
                Step::Claim => claim = Some("i-me"),
                _ => {}
            }
        }
        std::fs::remove_dir_all(&log).unwrap();
        std::fs::create_dir_all(log.join("log")).unwrap();
        assert_eq!(decide(disk::exists(&log), claim, "i-me"), Step::Refuse);
    }
}
