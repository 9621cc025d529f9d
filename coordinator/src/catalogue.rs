//! The role catalogue as far as judgement needs it: fencing, volume, membership, order, placement. The agent reads the rest of the same files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use vp_cluster::{
    ClusterState, Command, Rejection, RoleName,
    state::{Fencing, Membership, Policy, RoleSpec, Spec},
};

use crate::{
    api::limits::ROLE_BYTES,
    settings::{Count, SpecFile, one_line},
};

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Bad { path: PathBuf, reason: String },
    #[error("the spec wants the role '{role}', which the catalogue in {folder} does not have; it has: {known}")]
    Unknown { role: String, folder: PathBuf, known: String },
    /// A cluster would be founded on its first spec again and again.
    #[error("the spec wants no role; name at least one, for example roles: {{zookeeper: {{pref: 3}}}}")]
    Empty,
    #[error("the role name '{role}' has {bytes} bytes; allowed are at most {most}: what agents report of a longer one is dropped")]
    LongName { role: String, bytes: usize, most: usize },
    #[error(transparent)]
    Unusable(#[from] Rejection),
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
/// An unreadable or wrong role.yaml, a role that the catalogue does not have, or one whose name is too long.
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
    if counts.is_empty() {
        return Err(CatalogueError::Empty);
    }
    let mut roles = BTreeMap::new();
    for (name, count) in &counts {
        if name.len() > ROLE_BYTES {
            return Err(CatalogueError::LongName { role: name.clone(), bytes: name.len(), most: ROLE_BYTES });
        }
        let Some(file) = known.get(name) else {
            let known = known.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(CatalogueError::Unknown { role: name.clone(), folder: folder.to_owned(), known });
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
            after: file.after.iter().filter(|needed| counts.contains_key(*needed)).map(|needed| needed.as_str().into()).collect(),
            spread_zones: file.spread == Spread::Zone,
            memory_mib: file.resources.memory_mib,
        };
        roles.insert(RoleName(name.clone()), role);
    }
    let policy = wanted.sources_per_minute.map_or_else(Policy::default, |sources_per_minute| Policy { sources_per_minute });
    Ok(Spec { roles, volume_wait_ms: wanted.volume_wait_ms, policy })
}

/// Whether a new cluster can begin with that: the catalogue knows it all, and the rules of what is wanted hold.
///
/// # Errors
/// As [`spec`], and what the rules say against it.
pub fn check(folder: &Path, wanted: &SpecFile) -> Result<(), CatalogueError> {
    let spec = spec(folder, wanted)?;
    vp_cluster::apply(&mut ClusterState::default(), 1, 0, &Command::SetSpec { spec })?;
    Ok(())
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
        let file: RoleFile = serde_saphyr::from_str(&text).map_err(|error| CatalogueError::Bad { path: path.clone(), reason: one_line(&error) })?;
        roles.insert(name.to_owned(), file);
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA: &str = "fencing: quorum\nvolume: true\nmembership: kafka\nafter: [zookeeper]\nspread: zone\nresources: {memory_mib: 700}\n";
    const ZOOKEEPER: &str = "fencing: quorum\nmembership: zookeeper\nresources: {memory_mib: 200}\n";

    fn catalogue(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("role.yaml"), text).unwrap();
        }
        folder
    }

    fn wanted(names: &[&str]) -> SpecFile {
        SpecFile { roles: names.iter().map(|name| ((*name).to_owned(), Count { min: None, pref: 3, max: None })).collect(), ..SpecFile::default() }
    }

    #[test]
    fn a_role_is_what_its_folder_and_the_wish_say_together() {
        let folder = catalogue(&[("kafka", KAFKA), ("zookeeper", ZOOKEEPER)]);
        let spec = spec(folder.path(), &wanted(&["kafka", "zookeeper"])).unwrap();
        let kafka = &spec.roles[&RoleName("kafka".to_owned())];
        assert_eq!((kafka.min, kafka.pref, kafka.max), (1, 3, 3));
        assert_eq!((kafka.fencing, kafka.membership, kafka.volume, kafka.spread_zones), (Fencing::Quorum, Membership::Kafka, true, true));
        assert_eq!((&kafka.after[..], kafka.memory_mib), (&["zookeeper".into()][..], 700));
    }

    #[test]
    fn a_role_that_is_not_wanted_gates_nothing() {
        let folder = catalogue(&[("kafka", KAFKA), ("zookeeper", ZOOKEEPER)]);
        assert_eq!(spec(folder.path(), &wanted(&["kafka"])).unwrap().roles[&RoleName("kafka".to_owned())].after, []);
    }

    #[test]
    fn a_role_that_only_the_flat_keys_want_is_waited_for_too() {
        let folder = catalogue(&[("kafka", KAFKA), ("zookeeper", ZOOKEEPER)]);
        let flat = SpecFile { zookeeper_pref_nodes: Some(3), ..wanted(&["kafka"]) };
        assert_eq!(spec(folder.path(), &flat).unwrap().roles[&RoleName("kafka".to_owned())].after, [RoleName("zookeeper".to_owned())]);
    }

    #[test]
    fn a_role_name_that_reports_could_not_carry_is_refused() {
        let (longest, longer) = ("a".repeat(ROLE_BYTES), "a".repeat(ROLE_BYTES + 1));
        let folder = catalogue(&[(longest.as_str(), ZOOKEEPER), (longer.as_str(), ZOOKEEPER)]);
        assert!(spec(folder.path(), &wanted(&[longest.as_str()])).is_ok());
        let refused = spec(folder.path(), &wanted(&[longer.as_str()])).unwrap_err().to_string();
        assert!(refused.contains("has 65 bytes; allowed are at most 64"), "{refused}");
    }

    #[test]
    fn a_spec_against_the_rules_is_refused_before_any_cluster_has_it() {
        let folder = catalogue(&[("kafka", KAFKA), ("zookeeper", ZOOKEEPER)]);
        assert!(check(folder.path(), &wanted(&["kafka", "zookeeper"])).is_ok());
        let even = SpecFile { zookeeper_pref_nodes: Some(4), ..wanted(&["kafka"]) };
        let refused = check(folder.path(), &even).unwrap_err().to_string();
        assert!(refused.contains("zookeeper: an even number of voters (4)"), "{refused}");
    }

    #[test]
    fn the_flat_zookeeper_keys_win_over_the_roles_own() {
        let folder = catalogue(&[("zookeeper", ZOOKEEPER)]);
        let flat = SpecFile { zookeeper_min_nodes: Some(3), zookeeper_pref_nodes: Some(5), zookeeper_max_nodes: Some(7), ..wanted(&["zookeeper"]) };
        let role = spec(folder.path(), &flat).unwrap().roles[&RoleName("zookeeper".to_owned())].clone();
        assert_eq!((role.min, role.pref, role.max), (3, 5, 7));
    }

    #[test]
    fn a_wrong_file_is_refused_by_its_path_and_an_unknown_role_with_what_there_is() {
        for (text, said) in [
            ("fencing: gentle\nresources: {memory_mib: 1}\n", "gentle"),
            ("fencing: quorum\nmembership: etcd\nresources: {memory_mib: 1}\n", "allowed are none, zookeeper, kafka"),
            ("fencing: quorum\n", "resources"),
            ("fencing: [", "role.yaml"),
        ] {
            let refused = spec(catalogue(&[("odd", text)]).path(), &wanted(&["odd"])).unwrap_err().to_string();
            assert!(refused.contains(said) && refused.contains("odd/role.yaml"), "{text}: {refused}");
        }
        let folder = catalogue(&[("kafka", KAFKA)]);
        let refused = spec(folder.path(), &wanted(&["kafak"])).unwrap_err().to_string();
        assert!(refused.contains("'kafak'") && refused.contains("it has: kafka"), "{refused}");
    }

    #[test]
    fn the_catalogue_of_this_repository_is_usable() {
        let roles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../roles");
        let spec = spec(&roles, &wanted(&["zookeeper", "kafka", "spark-master", "spark-worker", "stream"])).unwrap();
        let mut state = vp_cluster::ClusterState::default();
        vp_cluster::apply(&mut state, 1, 0, &vp_cluster::Command::SetSpec { spec }).unwrap();
        assert_eq!(state.slots.len(), 15);
    }
}
