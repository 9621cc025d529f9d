//! `snapshot`: the replicated state in a file, and the cluster founded anew on it when most coordinators are lost for good. The file is one line of JSON
//! that describes it, then the state (JSON too): `tail -1 FILE | jq .nodes` reads it. docs/runbooks/lost-quorum.md walks through it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vp_proto::v1::{ClusterStatus, SavedSnapshot};

use crate::arguments::{Format, SnapshotCommand};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::place::Place;
use crate::terminal::Screen;
use crate::view;
use crate::view::units::moment;

const FORMAT: u32 = 1;
/// One restore carries the index so many bits on (`vp_cluster::restore::INDEX_STEP`).
const INDEX_STEP_BITS: u32 = 40;
/// The record of the cluster's incarnation (docs/contracts.md §5).
const RECORD: &str = "coordinators/cluster.json";

/// The first line. The coordinators read the same keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    format: u32,
    cluster: String,
    cluster_id: String,
    index: u64,
    term: u64,
    saved_unix_ms: u64,
    /// Of the second line, hex.
    sha256: String,
}

/// What a restore has begun.
#[derive(Debug, Clone, Serialize)]
struct Incarnation {
    cluster: String,
    cluster_id: String,
    revision: u64,
}

/// A file that is whole.
struct Saved {
    header: Header,
    state: Value,
    bytes: Vec<u8>,
}

/// Saves, shows or restores one.
pub async fn snapshot(
    place: &Place,
    cluster: impl FnOnce() -> Result<Cluster, Failure>,
    screen: &Screen,
    format: Format,
    command: SnapshotCommand,
) -> Result<u8, Failure> {
    match command {
        SnapshotCommand::Save { file } => save(&cluster()?, screen, format, &file).await,
        SnapshotCommand::Inspect { file } => inspect(screen, format, &file),
        SnapshotCommand::Restore { file, confirm, all_gone } => {
            let incarnation = restore(place, &cluster()?, &file, &confirm, all_gone).await?;
            view::show(screen, format, &incarnation, |begun| {
                format!("{} begins again as {}, from revision {}\n", begun.cluster, begun.cluster_id, begun.revision)
            })?;
            screen.note("coordinators that run start again within seconds, lost ones through their groups; follow with `vpctl status --watch`");
            Ok(0)
        }
    }
}

async fn save(cluster: &Cluster, screen: &Screen, format: Format, file: &Path) -> Result<u8, Failure> {
    let SavedSnapshot { cluster, cluster_id, index, term, state } = cluster.save_snapshot().await?;
    let header = Header { format: FORMAT, cluster, cluster_id, index, term, saved_unix_ms: unix_ms(), sha256: hex::encode(Sha256::digest(&state)) };
    let mut bytes = serde_json::to_vec(&header).map_err(|error| malformed(file, &error.to_string()))?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&state);
    bytes.push(b'\n');
    replace(file, &bytes)?;
    let answer = json!({"file": file, "cluster": header.cluster, "cluster_id": header.cluster_id, "revision": index, "bytes": bytes.len()});
    view::show(screen, format, &answer, |_| format!("{}: {} at revision {index}, {} bytes\n", file.display(), header.cluster_id, bytes.len()))?;
    Ok(0)
}

/// Whole or not at all: an interrupted save leaves the one before. For its owner only, since whoever has it can found a cluster on it.
fn replace(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if let Ok(there) = std::fs::symlink_metadata(file)
        && !there.is_file()
    {
        return Err(Failure::file(file)(std::io::Error::other("is there, and no plain file: name another")));
    }
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = Path::new(&temporary);
    // What an interrupted save left; whoever may have put it there keeps no hold on what is written now.
    let _ = std::fs::remove_file(temporary);
    let mut part = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary).map_err(Failure::file(file))?;
    part.write_all(bytes).and_then(|()| part.sync_all()).map_err(Failure::file(temporary))?;
    std::fs::rename(temporary, file).map_err(Failure::file(file))
}

fn inspect(screen: &Screen, format: Format, file: &Path) -> Result<u8, Failure> {
    let saved = read(file)?;
    let count = |key: &str| saved.state[key].as_object().map_or(0, serde_json::Map::len);
    let answer = json!({
        "cluster": saved.header.cluster,
        "cluster_id": saved.header.cluster_id,
        "revision": saved.header.index,
        "saved_unix_ms": saved.header.saved_unix_ms,
        "apply_version": saved.state["apply_version"],
        "coordinators": saved.state["coordinators"]["slots"].as_object().map_or(0, serde_json::Map::len),
        "nodes": count("nodes"),
        "slots": count("slots"),
        "bytes": saved.bytes.len(),
    });
    view::show(screen, format, &answer, |answer| {
        let line = |key: &str| match key {
            "saved" => format!("{key:<14} {}\n", moment(saved.header.saved_unix_ms)),
            _ => format!("{key:<14} {}\n", answer[key].to_string().trim_matches('"')),
        };
        ["cluster_id", "revision", "saved", "apply_version", "coordinators", "nodes", "slots", "bytes"].map(line).concat()
    })?;
    Ok(0)
}

/// Founds the cluster anew: the snapshot is put beside the claims, then one conditional write makes it the beginning of another incarnation. Members of
/// the old one are strangers to it, whatever their disks hold.
async fn restore(place: &Place, cluster: &Cluster, file: &Path, confirm: &str, all_gone: bool) -> Result<Incarnation, Failure> {
    let saved = read(file)?;
    if saved.header.cluster != confirm {
        return Err(Failure::Usage(format!("the snapshot is of cluster '{}', confirmed was '{confirm}'", saved.header.cluster)));
    }
    match cluster.status().await {
        Ok(status) => nobody_else(&status, &saved.state)?,
        Err(Failure::Unreachable { .. }) if all_gone => {}
        Err(Failure::Unreachable { tried }) => {
            return Err(Failure::NotNow {
                what: format!("no coordinator answers ({tried}), so nobody can say that none leads"),
                next: "ask from where they can be reached; if every one of them is gone for good, add --all-gone".to_owned(),
            });
        }
        // Somebody is there and does not say who leads, because of who asks.
        Err(untold) => return Err(untold),
    }
    let (store, bucket) = place.cluster_bucket().await?;
    let before = match store.get(&bucket, RECORD).await {
        Ok((record, etag)) => Some((serde_json::from_slice(&record).unwrap_or(Value::Null), etag)),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    // Each restore carries index and term a step further than the last, also one of the same file; an index tells how many it has behind it.
    let restored = before.as_ref().and_then(|(record, _)| record["restored"]["times"].as_u64().or(record["restored"].is_object().then_some(1)));
    let times = restored.unwrap_or(0).max(saved.header.index >> INDEX_STEP_BITS) + 1;
    let sha256 = hex::encode(Sha256::digest(&saved.bytes));
    let key = format!("coordinators/snapshots/{sha256}");
    store.put(&bucket, &key, saved.bytes.into(), "application/x-ndjson").await?;
    let incarnation = hex::encode(&uuid::Uuid::new_v4().as_bytes()[..8]);
    let record = json!({
        "incarnation": incarnation,
        "founders": saved.state["coordinators"]["slots"],
        "apply_version": saved.state["apply_version"],
        "restored": {"key": key, "sha256": sha256, "unix_ms": unix_ms(), "times": times},
    });
    let body = record.to_string().into();
    let put = match &before {
        Some((_, etag)) => store.put_if_match(&bucket, RECORD, body, "application/json", etag).await,
        None => store.put_if_absent(&bucket, RECORD, body, "application/json").await,
    };
    match put {
        Ok(_) => {}
        Err(error) if error.is_precondition_failed() => {
            return Err(Failure::NotNow { what: "somebody else restored the cluster just now".to_owned(), next: "look with `vpctl status`".to_owned() });
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Incarnation { cluster: confirm.to_owned(), cluster_id: format!("{confirm}#{incarnation}"), revision: saved.header.index })
}

/// A leader would lose what it has acknowledged; coordinators that the snapshot does not know could go on beside the restored ones.
fn nobody_else(status: &ClusterStatus, saved: &Value) -> Result<(), Failure> {
    if status.leader_id != 0 {
        return Err(Failure::NotNow {
            what: format!("coordinator {} leads: a restore would give up what it has acknowledged", status.leader_id),
            next: "`vpctl status` shows what is wrong; a restore is for the day on which no majority can come back".to_owned(),
        });
    }
    let unknown = status.coordinators.iter().find(|one| saved["coordinators"]["slots"].get(one.id.to_string()).is_none());
    match unknown {
        Some(one) => Err(Failure::NotNow {
            what: format!("coordinator {} is wanted now, and the snapshot does not know it: it could go on beside the restored ones", one.id),
            next: "take a newer snapshot, or terminate that coordinator's instance first and name the others with --coordinators".to_owned(),
        }),
        None => Ok(()),
    }
}

fn read(file: &Path) -> Result<Saved, Failure> {
    let bytes = std::fs::read(file).map_err(Failure::file(file))?;
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| malformed(file, "it has one line only"))?;
    let header: Header = serde_json::from_slice(&bytes[..end]).map_err(|error| malformed(file, &error.to_string()))?;
    if header.format != FORMAT {
        return Err(malformed(file, &format!("its format is {}, this vpctl knows {FORMAT}", header.format)));
    }
    let body = bytes[end + 1..].strip_suffix(b"\n").unwrap_or(&bytes[end + 1..]);
    if hex::encode(Sha256::digest(body)) != header.sha256 {
        return Err(malformed(file, "its state is not what was saved: the hash differs"));
    }
    let state = serde_json::from_slice(body).map_err(|error| malformed(file, &error.to_string()))?;
    Ok(Saved { header, state, bytes })
}

fn malformed(file: &Path, reason: &str) -> Failure {
    Failure::Malformed { what: format!("the snapshot {}", file.display()), reason: reason.to_owned() }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}
