//! What the coordinators write outside their log, and only by conditional writes: which incarnation of the cluster there is, and which instance
//! fills each coordinator's place. An answer that was lost is settled by reading back.

use std::{collections::BTreeMap, future::Future};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vp_cloud::s3::{ObjectStore, StoreError};
use vp_cluster::coordinators::CoordinatorSlot;

/// The cluster as it was founded, or founded anew on a snapshot. Put once; replaced only by `vpctl snapshot restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Random: members of another incarnation are strangers, though name and addresses are the same.
    pub incarnation: String,
    /// The first voters' places: their Raft ids are these numbers. All founders begin with exactly this.
    pub founders: BTreeMap<u32, CoordinatorSlot>,
    /// The rules of `apply` that the founders begin with.
    pub apply_version: u32,
    /// The snapshot it was founded on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The snapshot's key in the same bucket.
    pub key: String,
    pub sha256: String,
    pub unix_ms: u64,
    /// How often the cluster was restored, this time included: each carries index and term further than the one before.
    #[serde(default = "once")]
    pub times: u64,
}

/// Which instance fills a coordinator's place, as which member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub incarnation: String,
    pub instance_id: String,
    pub member: u64,
}

fn once() -> u64 {
    1
}

pub const RECORD: &str = "coordinators/cluster.json";

/// The claim's key.
pub fn claim_key(coordinator: u32) -> String {
    format!("coordinators/{coordinator}.json")
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The store did not answer, or not to the point: what was asked may have been done.
    #[error("the claims cannot be read or written now")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{key} is not as agreed: {source}")]
    Unreadable { key: String, source: serde_json::Error },
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// A store with conditional writes. Whoever lost a race sees it by reading: a refused condition is no error.
pub trait Claims: Sync {
    /// The bytes and their entity tag; None only when the store answers that there is nothing.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<(Vec<u8>, String)>, ClaimError>> + Send;
    /// Writes unless something is there (`etag` None), or only over what has that tag.
    fn put(&self, key: &str, body: Vec<u8>, etag: Option<&str>) -> impl Future<Output = Result<(), ClaimError>> + Send;
}

/// The cluster's bucket.
pub struct Bucket {
    pub store: ObjectStore,
    pub name: String,
}

impl Claims for Bucket {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, String)>, ClaimError> {
        match self.store.get(&self.name, key).await {
            Ok((bytes, etag)) => Ok(Some((bytes.to_vec(), etag))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&self, key: &str, body: Vec<u8>, etag: Option<&str>) -> Result<(), ClaimError> {
        let put = match etag {
            None => self.store.put_if_absent(&self.name, key, body.into(), "application/json").await,
            Some(etag) => self.store.put_if_match(&self.name, key, body.into(), "application/json", etag).await,
        };
        match put {
            Ok(_) => Ok(()),
            Err(error) if error.is_precondition_failed() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is kept under a key, with its entity tag.
///
/// # Errors
/// [`ClaimError`].
pub async fn read<T: DeserializeOwned>(claims: &impl Claims, key: &str) -> Result<Option<(T, String)>, ClaimError> {
    let Some((bytes, etag)) = claims.get(key).await? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(kept) => Ok(Some((kept, etag))),
        Err(source) => Err(ClaimError::Unreadable { key: key.to_owned(), source }),
    }
}

/// Writes under the condition of [`Claims::put`].
///
/// # Errors
/// [`ClaimError`]: it may have been written all the same.
pub async fn write(claims: &impl Claims, key: &str, value: &impl Serialize, etag: Option<&str>) -> Result<(), ClaimError> {
    let body = serde_json::to_vec(value).map_err(|source| ClaimError::Unreadable { key: key.to_owned(), source })?;
    claims.put(key, body, etag).await
}
