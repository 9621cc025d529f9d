//! A saved snapshot, as `vpctl snapshot save` writes it, and what a founder makes of it on the lost-quorum day. One line of JSON that describes it, then
//! the state's bytes: `head -1` reads the one, `tail -1 | jq` the other.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfState, Snapshot, SnapshotMetadata};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use vp_cluster::{
    ClusterState,
    coordinators::{self, CoordinatorSlot},
    restore::{self, INDEX_STEP, TERM_STEP},
};

use crate::{
    claims::{ClaimError, Claims, Record, Restored},
    machine::encode,
};

/// The first line. (`vpctl` writes it and knows the same keys.)
#[derive(Debug, Deserialize)]
struct Header {
    format: u32,
    cluster: String,
    index: u64,
    term: u64,
    /// Of the second line, hex.
    sha256: String,
}

const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error(transparent)]
    Claims(#[from] ClaimError),
    #[error("there is no snapshot {0}")]
    Missing(String),
    #[error("the snapshot {key} is not as it was saved: {reason}")]
    Damaged { key: String, reason: String },
    #[error("the snapshot is of cluster '{found}', this is '{wanted}'")]
    OtherCluster { found: String, wanted: String },
}

/// What every founder of an incarnation begins with: equal records give equal bytes.
///
/// # Errors
/// The snapshot that it is founded on cannot be had, or is not what was saved.
pub async fn first(claims: &impl Claims, cluster: &str, record: &Record) -> Result<Snapshot, SavedError> {
    let slots: BTreeMap<u32, CoordinatorSlot> = record.founders.clone();
    let (index, term, state) = match &record.restored {
        None => (1, 1, coordinators::founded(slots, record.apply_version)),
        Some(restored) => load(claims, cluster, restored, slots).await?,
    };
    let voters = record.founders.keys().map(|number| u64::from(*number)).collect();
    let mut snapshot = Snapshot { data: encode(&state), ..Snapshot::default() };
    snapshot.set_metadata(SnapshotMetadata { conf_state: Some(ConfState { voters, ..ConfState::default() }), index, term });
    Ok(snapshot)
}

async fn load(claims: &impl Claims, cluster: &str, restored: &Restored, slots: BTreeMap<u32, CoordinatorSlot>) -> Result<(u64, u64, ClusterState), SavedError> {
    let key = &restored.key;
    let (bytes, _) = claims.get(key).await?.ok_or_else(|| SavedError::Missing(key.clone()))?;
    let damaged = |reason: &str| SavedError::Damaged { key: key.clone(), reason: reason.to_owned() };
    if hex(&bytes) != restored.sha256 {
        return Err(damaged("its hash is not the one that the restore named"));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has one line only"))?;
    let header: Header = serde_json::from_slice(&bytes[..end]).map_err(|error| damaged(&error.to_string()))?;
    let body = bytes[end + 1..].strip_suffix(b"\n").unwrap_or(&bytes[end + 1..]);
    if header.format != FORMAT || hex(body) != header.sha256 {
        return Err(damaged("format or hash of its state do not fit"));
    }
    if header.cluster != cluster {
        return Err(SavedError::OtherCluster { found: header.cluster, wanted: cluster.to_owned() });
    }
    let state: ClusterState = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    let index = header.index.saturating_add(INDEX_STEP.saturating_mul(restored.times));
    Ok((index, header.term.saturating_add(TERM_STEP.saturating_mul(restored.times)), restore::restored(state, index, slots, restored.unix_ms)))
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
