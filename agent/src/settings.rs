//! What this agent was told: environment first, then the user data and metadata of its instance. Parsed raw, validated
//! once; nothing else in the crate reads the environment or the user data.

use std::collections::BTreeMap;
use std::env;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vp_trust::RootHash;

use crate::imds::Metadata;
use crate::layout::Layout;
use crate::machine::{Size, size};

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The image's boot program sets these.
    #[error("the environment variable {0} is not set; the image's boot program sets it (docs/contracts.md, section 1)")]
    Environment(&'static str),
    /// Wrong YAML: the message names line and column.
    #[error("the user data is not as docs/contracts.md section 2 says: {0}")]
    UserData(String),
    /// Well formed and still wrong.
    #[error("user data: {key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

/// From the environment: where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The instance's disk.
    pub root: PathBuf,
    /// Attached volumes.
    pub volumes: PathBuf,
    /// The image this instance booted.
    pub image: PathBuf,
    /// Kafka, Spark and the others.
    pub components: PathBuf,
    /// `http://ADDRESS:PORT` of the instance metadata service.
    pub imds_endpoint: String,
}

impl Places {
    /// Reads the environment that `boot` set.
    ///
    /// # Errors
    /// Names the missing variable.
    pub fn from_environment() -> Result<Self, SettingsError> {
        let var = |name: &'static str| env::var(name).ok().filter(|v| !v.is_empty()).ok_or(SettingsError::Environment(name));
        Ok(Self {
            root: var("VP_INSTANCE_ROOT")?.into(),
            volumes: var("VP_VOLUMES")?.into(),
            image: var("VP_IMAGE")?.into(),
            components: var("VP_COMPONENTS")?.into(),
            imds_endpoint: var("AWS_EC2_METADATA_SERVICE_ENDPOINT")?.trim_end_matches('/').to_owned(),
        })
    }
}

/// The user data as written (docs/contracts.md §2).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserData {
    cluster: String,
    run: String,
    #[serde(default, rename = "group")]
    _group: serde::de::IgnoredAny,
    coordinators: Vec<Coordinator>,
    #[serde(default, rename = "coordinator")]
    _coordinator: serde::de::IgnoredAny,
    lease_ms: u64,
    aws: AwsData,
    buckets: Buckets,
    #[serde(default, rename = "identity_public_key")]
    _identity_public_key: serde::de::IgnoredAny,
    trust: Trust,
    /// The coordinators'.
    #[serde(default, rename = "spec")]
    _spec: serde::de::IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Coordinator {
    #[serde(rename = "id")]
    _id: u64,
    address: IpAddr,
    #[serde(rename = "zone")]
    _zone: String,
    #[serde(default, rename = "group")]
    _group: serde::de::IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trust {
    root_sha256: RootHash,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AwsData {
    region: String,
    endpoint_url: String,
    s3_endpoint_url: String,
}

/// The cluster's buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buckets {
    /// Where videos arrive.
    pub uploads: String,
    /// Where outputs and job records go.
    pub results: String,
    /// The coordinators' own.
    pub cluster: String,
}

/// Where AWS answers; what templates call `aws`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Aws {
    /// Control API.
    pub endpoint_url: String,
    /// Object store.
    pub s3_endpoint_url: String,
    /// Instance metadata.
    pub imds_endpoint: String,
}

/// Who this node is; what templates call `node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// EC2's id.
    pub instance_id: String,
    /// Its only address: every socket of ours and of the roles is bound to it.
    pub address: IpAddr,
    /// Availability zone.
    pub zone: String,
    /// E.g. `t3.small`.
    pub instance_type: String,
    /// Virtual processors of the type.
    pub vcpus: u32,
    /// Memory of the type, MiB.
    pub memory_mib: u32,
}

/// Everything validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// AWS region.
    pub region: String,
    /// Coordinators in the order of the user data.
    pub coordinators: Vec<SocketAddr>,
    /// Of the cluster's root certificate: whom to talk to at all.
    pub root: RootHash,
    /// The lease before a Welcome says otherwise.
    pub lease: Duration,
    /// AWS endpoints.
    pub aws: Aws,
    /// Buckets.
    pub buckets: Buckets,
    /// This node.
    pub node: Node,
    /// Folders.
    pub layout: Layout,
    /// The image this instance booted; `roles/` is in it.
    pub image: PathBuf,
    /// Kafka, Spark and the others.
    pub components: PathBuf,
    /// Identity document and signature, as IMDS serves them.
    pub identity: (String, String),
    /// What every role's process inherits, and nothing else.
    pub environment: BTreeMap<String, String>,
}

const INHERITED: [&str; 8] = ["PATH", "HOME", "LANG", "AWS_REGION", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "VP_INSTANCE_ROOT", "VP_IMAGE", "VP_COMPONENTS"];

impl Settings {
    /// Validates what the environment and the metadata service said.
    ///
    /// # Errors
    /// What is wrong, where, and what is allowed.
    pub fn new(places: Places, metadata: Metadata) -> Result<Self, SettingsError> {
        let data: UserData = serde_saphyr::from_str(&metadata.user_data).map_err(|error| SettingsError::UserData(error.to_string()))?;
        let value = |key, reason: &str| SettingsError::Value { key, reason: reason.to_owned() };
        if data.run != "agent" {
            return Err(value("run", &format!("{:?}, but this program is the agent", data.run)));
        }
        if data.cluster.is_empty() {
            return Err(value("cluster", "is empty"));
        }
        if data.coordinators.is_empty() {
            return Err(value("coordinators", "names none; at least one is needed"));
        }
        if !(500..=60_000).contains(&data.lease_ms) {
            return Err(value("lease_ms", &format!("{} is not between 500 and 60000", data.lease_ms)));
        }
        let Size { vcpus, memory_mib } = size(&metadata.instance_type);
        let inherited = INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)));
        Ok(Self {
            cluster: data.cluster,
            region: data.aws.region,
            coordinators: data.coordinators.iter().map(|c| SocketAddr::new(c.address, vp_proto::COORDINATOR_PORT)).collect(),
            root: data.trust.root_sha256,
            lease: Duration::from_millis(data.lease_ms),
            aws: Aws { endpoint_url: data.aws.endpoint_url, s3_endpoint_url: data.aws.s3_endpoint_url, imds_endpoint: places.imds_endpoint },
            buckets: data.buckets,
            node: Node {
                instance_id: metadata.instance_id,
                address: metadata.address,
                zone: metadata.zone,
                instance_type: metadata.instance_type,
                vcpus,
                memory_mib,
            },
            layout: Layout::new(places.root, places.volumes),
            image: places.image,
            components: places.components,
            identity: (metadata.identity_document, metadata.identity_signature),
            environment: inherited.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"cluster: dev
run: agent
group: dev-nodes
coordinators:
  - {id: 1, address: 127.35.1.10, zone: us-east-1a, group: dev-coordinator-1}
lease_ms: 4000
aws: {region: us-east-1, endpoint_url: "http://127.35.0.2:5000", s3_endpoint_url: "http://127.35.0.2:7070"}
buckets: {uploads: dev-uploads, results: dev-results, cluster: dev-cluster}
identity_public_key: QUJD
trust: {root_sha256: 0000000000000000000000000000000000000000000000000000000000000000}
spec:
  roles: {zookeeper: {min: 3, pref: 3, max: 5}}
  volume_wait_ms: 60000
"#;

    fn settings(user_data: &str) -> Result<Settings, SettingsError> {
        let places =
            Places { root: "/r".into(), volumes: "/v".into(), image: "/i".into(), components: "/c".into(), imds_endpoint: "http://127.35.1.20:1338".into() };
        let metadata = Metadata {
            instance_id: "i-1".into(),
            address: IpAddr::from([127, 35, 1, 20]),
            zone: "us-east-1a".into(),
            instance_type: "t3.small".into(),
            user_data: user_data.into(),
            identity_document: "{}".into(),
            identity_signature: "c2ln".into(),
        };
        Settings::new(places, metadata)
    }

    #[test]
    fn the_user_data_of_the_contract_is_accepted() {
        let settings = settings(GOOD).unwrap();
        assert_eq!(settings.coordinators[0].to_string(), "127.35.1.10:7400");
        assert_eq!(settings.node.memory_mib, 2048);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = settings(&GOOD.replace("lease_ms: 4000", "lease_ms: 4000\nleese_ms: 1")).unwrap_err().to_string();
        assert!(error.contains("leese_ms"), "{error}");
        assert!(error.contains('7'), "{error}");
    }

    #[test]
    fn an_absurd_lease_another_program_and_no_coordinator_are_refused() {
        for (from, to, key) in
            [("lease_ms: 4000", "lease_ms: 4", "lease_ms"), ("run: agent", "run: coordinator", "run"), ("cluster: dev", "cluster: ''", "cluster")]
        {
            let error = settings(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
