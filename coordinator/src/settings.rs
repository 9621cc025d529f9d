//! Where this coordinator learns who it is: the instance's metadata and user data, validated once.
//! Left out: what is wanted of the cluster beyond the bootstrap spec; that lives in the replicated state.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::Deserialize;
use vp_trust::{RootHash, SealingKey};

/// Shortest lease that heartbeat interval, election, reconnect and stop time fit into, ms: a quarter until the next heartbeat, half at most for the longest election
/// (`raft::Config::for_lease`), and the last quarter to dial the new leader and to end processes, 500 ms at least.
pub const SHORTEST_LEASE_MS: u64 = 2000;
const LONGEST_LEASE_MS: u64 = 60_000;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("the environment has no {0}: the image's boot program sets it")]
    Missing(&'static str),
    #[error("instance metadata at {url} did not answer")]
    Metadata { url: String, source: reqwest::Error },
    #[error("user data: {0}")]
    UserData(String),
    #[error("{0}")]
    Spec(String),
}

/// The user data, as written by `vpctl dev up` or CloudFormation (docs/contracts.md §2).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserData {
    pub cluster: String,
    #[serde(rename = "run")]
    _run: String,
    pub group: String,
    pub coordinators: Vec<Peer>,
    pub coordinator: u32,
    pub lease_ms: u64,
    pub aws: Aws,
    pub buckets: Buckets,
    pub identity_public_key: String,
    pub trust: Trust,
    pub spec: SpecFile,
}

/// Whom to trust.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Of the cluster's root certificate.
    pub root_sha256: RootHash,
    /// Opens the root's key; only coordinators are given it.
    pub sealing_key: SealingKey,
    /// How long a node's certificate is good; it gets another at half of it.
    #[serde(default = "default_lifetime_s")]
    pub certificate_lifetime_s: u64,
}

fn default_lifetime_s() -> u64 {
    3600
}

/// Shorter ones would be renewed without end; longer ones are what a thief hopes for.
const LIFETIMES_S: std::ops::RangeInclusive<u64> = 10..=7 * 24 * 3600;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub id: u32,
    pub address: Ipv4Addr,
    pub zone: String,
    pub group: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    pub region: String,
    pub endpoint_url: Option<String>,
    pub s3_endpoint_url: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buckets {
    #[serde(rename = "uploads")]
    _uploads: String,
    #[serde(rename = "results")]
    _results: String,
    pub cluster: String,
}

/// What is wanted, as people write it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    #[serde(default)]
    pub roles: BTreeMap<String, Count>,
    #[serde(default = "default_volume_wait_ms")]
    pub volume_wait_ms: u64,
    /// Nodes given up for their silence within a minute, at most.
    pub sources_per_minute: Option<u32>,
    pub zookeeper_min_nodes: Option<u32>,
    pub zookeeper_pref_nodes: Option<u32>,
    pub zookeeper_max_nodes: Option<u32>,
    /// Accepted for configurations that have it; nothing here uses ssh.
    #[serde(rename = "ssh_path")]
    pub _ssh_path: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    pub min: Option<u32>,
    pub pref: u32,
    pub max: Option<u32>,
}

fn default_volume_wait_ms() -> u64 {
    60_000
}

/// Everything validated.
#[derive(Clone, Debug)]
pub struct Settings {
    pub user_data: UserData,
    pub me: Peer,
    pub instance_id: String,
    /// The instance's own address; it serves at the coordinator's.
    pub instance_address: String,
    /// The region's word on who this instance is, and its signature.
    pub identity_document: String,
    pub identity_signature: String,
    /// Where the log and the applied state live.
    pub data: PathBuf,
    /// The role catalogue of the image.
    pub roles: PathBuf,
}

impl Settings {
    /// Reads environment, metadata and user data.
    ///
    /// # Errors
    /// What is missing or wrong, and where.
    pub async fn load() -> Result<Self, SettingsError> {
        let root = PathBuf::from(variable("VP_INSTANCE_ROOT")?);
        let image = PathBuf::from(variable("VP_IMAGE")?);
        let endpoint = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT")?;
        let metadata = Metadata::open(&endpoint).await?;
        let instance_id = metadata.get("meta-data/instance-id").await?;
        let user_data = parse(&metadata.get("user-data").await?)?;
        let me = user_data.coordinators.iter().find(|peer| peer.id == user_data.coordinator).cloned();
        let me = me.ok_or_else(|| SettingsError::UserData(format!("coordinator {} is not in the list of coordinators", user_data.coordinator)))?;
        let instance_address = metadata.get("meta-data/local-ipv4").await?;
        let identity_document = metadata.get("dynamic/instance-identity/document").await?;
        let identity_signature = metadata.get("dynamic/instance-identity/signature").await?;
        let data = root.join("coordinator");
        Ok(Self { user_data, me, instance_id, instance_address, identity_document, identity_signature, data, roles: image.join("roles") })
    }
}

/// Parses and validates user data; errors name line and column.
///
/// # Errors
/// [`SettingsError::UserData`].
pub fn parse(text: &str) -> Result<UserData, SettingsError> {
    let user_data: UserData = serde_saphyr::from_str(text).map_err(|error| SettingsError::UserData(error.to_string()))?;
    let refuse = |reason: String| Err(SettingsError::UserData(reason));
    if let Some(reason) = lease_fault(user_data.lease_ms) {
        return refuse(reason);
    }
    if !LIFETIMES_S.contains(&user_data.trust.certificate_lifetime_s) {
        let (least, most) = LIFETIMES_S.into_inner();
        return refuse(format!("trust.certificate_lifetime_s is {}; allowed are {least} to {most}", user_data.trust.certificate_lifetime_s));
    }
    let mut ids: Vec<u32> = user_data.coordinators.iter().map(|peer| peer.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != user_data.coordinators.len() || ids.first() == Some(&0) {
        return refuse("coordinators need different ids from 1 on".to_owned());
    }
    if ids.len().is_multiple_of(2) {
        return refuse(format!("{} coordinators: use 1, 3 or 5, an even number tolerates no more than one fewer", ids.len()));
    }
    Ok(user_data)
}

/// Why that lease, in milliseconds, cannot be kept; `None` when it can.
pub fn lease_fault(lease_ms: u64) -> Option<String> {
    let kept = (SHORTEST_LEASE_MS..=LONGEST_LEASE_MS).contains(&lease_ms);
    (!kept).then(|| format!("lease_ms is {lease_ms}; allowed are {SHORTEST_LEASE_MS} to {LONGEST_LEASE_MS}"))
}

/// Parses a spec by itself, as people write it into a file.
///
/// # Errors
/// [`SettingsError::Spec`]: one line that begins with where it is wrong.
pub fn spec(text: &str) -> Result<SpecFile, SettingsError> {
    serde_saphyr::from_str(text).map_err(|error| SettingsError::Spec(one_line(&error)))
}

/// What is wrong with a YAML text, place first, without the picture of the lines around it.
pub(crate) fn one_line(error: &serde_saphyr::Error) -> String {
    let told = error.without_snippet().to_string().replace('\n', " ");
    let Some(at) = error.location() else { return told };
    let place = format!("line {}, column {}", at.line(), at.column());
    let reason = told.strip_suffix(&format!(" at {place}")).unwrap_or(&told);
    format!("{place}: {reason}")
}

fn variable(name: &'static str) -> Result<String, SettingsError> {
    std::env::var(name).map_err(|_| SettingsError::Missing(name))
}

/// IMDSv2: a token first, then the values.
struct Metadata {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Metadata {
    async fn open(endpoint: &str) -> Result<Self, SettingsError> {
        let base = format!("{}/latest", endpoint.trim_end_matches('/'));
        let failed = |source| SettingsError::Metadata { url: base.clone(), source };
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().map_err(failed)?;
        let asked = client.put(format!("{base}/api/token")).header("X-aws-ec2-metadata-token-ttl-seconds", "300").send().await;
        let answer = asked.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let token = answer.text().await.map_err(failed)?;
        Ok(Self { client, base, token })
    }

    async fn get(&self, path: &str) -> Result<String, SettingsError> {
        let url = format!("{}/{path}", self.base);
        let failed = |source| SettingsError::Metadata { url: url.clone(), source };
        let asked = self.client.get(&url).header("X-aws-ec2-metadata-token", &self.token).send().await;
        asked.and_then(reqwest::Response::error_for_status).map_err(failed)?.text().await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Config;

    const GOOD: &str = "\
cluster: dev
run: coordinator
group: dev-nodes
coordinators:
  - {id: 1, address: 127.37.1.10, zone: us-east-1a, group: dev-coordinator-1}
  - {id: 2, address: 127.37.2.10, zone: us-east-1b, group: dev-coordinator-2}
  - {id: 3, address: 127.37.3.10, zone: us-east-1c, group: dev-coordinator-3}
coordinator: 1
lease_ms: 4000
aws: {region: us-east-1, endpoint_url: \"http://127.37.0.2:5000\", s3_endpoint_url: null}
buckets: {uploads: dev-uploads, results: dev-results, cluster: dev-cluster}
identity_public_key: AAAA
trust: {root_sha256: 0000000000000000000000000000000000000000000000000000000000000000, sealing_key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}
spec:
  roles:
    kafka: {pref: 3}
  zookeeper_pref_nodes: 5
  ssh_path: /usr/bin/ssh
";

    #[test]
    fn user_data_as_it_is_written_is_understood() {
        let data = parse(GOOD).unwrap();
        assert_eq!((data.coordinators.len(), data.lease_ms, data.spec.volume_wait_ms), (3, 4000, 60_000));
        assert_eq!((data.spec.roles["kafka"].pref, data.spec.zookeeper_pref_nodes), (3, Some(5)));
    }

    #[test]
    fn a_lease_that_is_allowed_covers_a_heartbeat_the_longest_election_and_half_a_second_more() {
        let covered = |lease_ms: u64| {
            let election_ms = Config::for_lease(lease_ms).longest_election().as_millis() as u64;
            lease_ms / 4 + election_ms + 500 <= lease_ms
        };
        for lease_ms in (SHORTEST_LEASE_MS..=LONGEST_LEASE_MS).step_by(250) {
            assert!(covered(lease_ms) && lease_fault(lease_ms).is_none(), "{lease_ms}");
        }
        assert!(!covered(SHORTEST_LEASE_MS - 100) && lease_fault(SHORTEST_LEASE_MS - 1).is_some());
        assert_eq!(Config::for_lease(4000).longest_election(), Duration::from_secs(2), "as by default from 4 s on");
    }

    #[test]
    fn wrong_user_data_is_refused_with_what_is_wrong() {
        for (from, to, said) in [
            ("lease_ms: 4000", "lease_ms: 1999", "allowed are 2000 to 60000"),
            ("lease_ms: 4000", "lease_ms: 60001", "allowed are 2000 to 60000"),
            ("lease_ms: 4000", "lease_ms: soon", "lease_ms"),
            ("lease_ms: 4000", "leese_ms: 4000", "leese_ms"),
            ("{id: 2,", "{id: 1,", "different ids"),
            ("{id: 1,", "{id: 0,", "different ids"),
            ("  - {id: 3, address: 127.37.3.10, zone: us-east-1c, group: dev-coordinator-3}\n", "", "use 1, 3 or 5"),
            ("127.37.2.10", "somewhere", "address"),
            ("kafka: {pref: 3}", "kafka: {perf: 3}", "perf"),
            ("kafka: {pref: 3}", "kafka: {min: 3}", "pref"),
            ("cluster: dev\n", "", "cluster"),
            ("root_sha256: 00", "root_sha256: 0", "no SHA-256"),
            ("sealing_key: AA", "sealing_key: A", "sealing key"),
            ("trust: {", "trust: {certificate_lifetime_s: 5, ", "allowed are 10 to"),
        ] {
            let refused = parse(&GOOD.replacen(from, to, 1)).map(|_| ()).unwrap_err().to_string();
            assert!(refused.contains(said), "{to}: {refused}");
        }
    }

    #[test]
    fn a_spec_by_itself_is_refused_in_one_line_that_begins_with_the_place() {
        assert_eq!(spec("roles:\n  kafka: {pref: 3}\n").unwrap().roles["kafka"].pref, 3);
        for (text, place, said) in [
            ("roles:\n  kafka: {perf: 3}\n", "line 2, column 11: ", "expected one of min, pref, max"),
            ("roles: {}\nvolume_wait: 1\n", "line 2, column 1: ", "volume_wait_ms"),
            ("roles:\n  kafka: {pref: many}\n", "line 2, column 17: ", "invalid"),
            ("roles:\n  kafka: {pref: 3\nvolume_wait_ms: 1\n", "line ", ""),
        ] {
            let refused = spec(text).map(|_| ()).unwrap_err().to_string();
            assert!(refused.starts_with(place) && refused.contains(said) && refused.lines().count() == 1, "{text}: {refused}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let refused = parse(&GOOD.replacen("coordinator: 1", "coordinater: 1", 1)).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("line 8"), "{refused}");
    }
}
