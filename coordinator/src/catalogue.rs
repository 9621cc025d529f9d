//! The role catalogue as far as judgement needs it: fencing, volume, membership, order, placement. The agent reads the rest of the same files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use vp_cluster::{
    RoleName,
    state::{Fencing, Membership, RoleSpec, Spec},
};

use crate::settings::{Count, SpecFile};

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Bad { path: PathBuf, reason: String },
    #[error("the spec wants the role '{role}', which the catalogue in {folder} does not have; it has: {known}")]
    Unknown { role: String, folder: PathBuf, known: String },
}

#[derive(Debug, Deserialize)]
struct RoleFile {
    fencing: Fencing,
    #[serde(default)]
    fenced_sinks: bool,
    #[serde(default)]
    volume: bool,
    #[serde(default, deserialize_with = "membership")]
    membership: Membership,
    #[serde(default)]
    after: Vec<String>,
    #[serde(default)]
    spread: Spread,
    resources: Resources,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spread {
    Zone,
    #[default]
    None,
}

#[derive(Debug, Deserialize)]
struct Resources {
    memory_mib: u32,
}

fn membership<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Membership, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "none" => Ok(Membership::None),
        "zookeeper" => Ok(Membership::ZooKeeper),
        "kafka" => Ok(Membership::Kafka),
        other => Err(serde::de::Error::custom(format!("membership is '{other}'; allowed are none, zookeeper, kafka"))),
    }
}

/// Joins what people wrote with the catalogue into the replicated spec.
///
/// # Errors
/// An unreadable or wrong role.yaml, or a role that the catalogue does not have.
pub fn spec(folder: &Path, wanted: &SpecFile) -> Result<Spec, CatalogueError> {
    let known = read(folder)?;
    let mut counts: BTreeMap<String, Count> = wanted.roles.clone();
    let flat = (wanted.zookeeper_min_nodes, wanted.zookeeper_pref_nodes, wanted.zookeeper_max_nodes);
    if flat != (None, None, None) {
        let count = counts.entry("zookeeper".to_owned()).or_insert(Count { min: None, pref: 3, max: None });
        count.min = flat.0.or(count.min);
        count.pref = flat.1.unwrap_or(count.pref);
        count.max = flat.2.or(count.max);
    }
    let mut roles = BTreeMap::new();
    for (name, count) in counts {
        let Some(file) = known.get(&name) else {
            let known = known.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(CatalogueError::Unknown { role: name, folder: folder.to_owned(), known });
        };
        let role = RoleSpec {
            min: count.min.unwrap_or(count.pref.min(1)),
            pref: count.pref,
            max: count.max.unwrap_or(count.pref),
            fencing: file.fencing,
            fenced_sinks: file.fenced_sinks,
            volume: file.volume,
            membership: file.membership,
            // A role that is not wanted here gates nothing.
            after: file.after.iter().filter(|needed| wanted.roles.contains_key(*needed)).map(|needed| needed.as_str().into()).collect(),
            spread_zones: file.spread == Spread::Zone,
            memory_mib: file.resources.memory_mib,
        };
        roles.insert(RoleName(name), role);
    }
    Ok(Spec { roles, volume_wait_ms: wanted.volume_wait_ms })
}

fn read(folder: &Path) -> Result<BTreeMap<String, RoleFile>, CatalogueError> {
    let failed = |source| CatalogueError::Read { path: folder.to_owned(), source };
    let mut roles = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path().join("role.yaml");
        let Some(name) = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()) else { continue };
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|source| CatalogueError::Read { path: path.clone(), source })?;
        let file: RoleFile = serde_saphyr::from_str(&text).map_err(|error| CatalogueError::Bad { path: path.clone(), reason: error.to_string() })?;
        roles.insert(name.to_owned(), file);
    }
    Ok(roles)
}
