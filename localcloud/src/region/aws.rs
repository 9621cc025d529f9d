//! What a region consists of in the control API and S3: buckets, network, image, launch templates, groups. Each made once, found again later.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use vp_cloud::Session;
use vp_cloud::autoscaling::{Groups, NewGroup};
use vp_cloud::ec2::Compute;
use vp_cloud::provision::{LaunchTemplate, ProvisionError};
use vp_cloud::s3::ObjectStore;

use super::trust::{self, Trust};
use super::{COORDINATOR_PORT, Record, RegionError, UpOptions, ZONES};

/// The spec that a region gets when none is given (contracts §2).
const DEFAULT_SPEC: &str = "roles:
  zookeeper: {min: 3, pref: 3, max: 5}
  kafka: {pref: 3}
  spark-master: {pref: 2}
  spark-worker: {pref: 3}
  stream: {pref: 1}
volume_wait_ms: 60000
";

fn failed(doing: impl Into<String>) -> impl FnOnce(ProvisionError) -> RegionError {
    let doing = doing.into();
    move |source| RegionError::Aws { doing, source }
}

pub(super) struct Aws {
    compute: Compute,
    groups: Groups,
    objects: ObjectStore,
}

impl Aws {
    pub(super) async fn connect(record: &Record) -> Self {
        let session = Session::load(record.endpoints()).await;
        Self { compute: Compute::new(session.shared()), groups: Groups::new(session.shared()), objects: ObjectStore::new(&session) }
    }

    pub(super) async fn buckets(&self, record: &Record) -> Result<bool, RegionError> {
        let mut changed = false;
        for bucket in record.buckets.values() {
            let made = self.objects.create_bucket(bucket).await;
            changed |= made.map_err(|source| RegionError::Store { doing: format!("making the bucket {bucket}"), source })?;
        }
        Ok(changed)
    }

    /// The cluster's root and people's certificates.
    pub(super) async fn trust(&self, record: &Record, state: &Path) -> Result<(Trust, bool), RegionError> {
        trust::ensure(&self.objects, record, state).await
    }

    /// VPC and one subnet a zone. True when something was made.
    pub(super) async fn network(&self, record: &mut Record) -> Result<bool, RegionError> {
        let (name, number) = (record.name.clone(), record.network);
        let vpc = self.compute.ensure_vpc(&name, &format!("127.{number}.0.0/16")).await.map_err(failed("making the VPC"))?;
        let mut changed = note(&mut record.made, "vpc", vpc.clone());
        for (index, zone) in ZONES.iter().enumerate() {
            let which = index + 1;
            let cidr = format!("127.{number}.{which}.0/24");
            let subnet = self.compute.ensure_subnet(&format!("{name}-{which}"), &vpc, zone, &cidr).await;
            changed |= note(&mut record.made, &format!("subnet-{which}"), subnet.map_err(failed(format!("making the subnet of {zone}")))?);
        }
        Ok(changed)
    }

    /// The image's registration; its files are `files` of `up`.
    pub(super) async fn image(&self, record: &mut Record) -> Result<bool, RegionError> {
        let image = self.compute.ensure_image(&format!("vp-{}", record.name), "programs and roles of this clone").await;
        Ok(note(&mut record.made, "image", image.map_err(failed("registering the image"))?))
    }

    /// One launch template for the nodes and one for each coordinator.
    pub(super) async fn templates(&self, record: &mut Record, options: &UpOptions, state: &Path, trust: &Trust) -> Result<bool, RegionError> {
        let image = record.made.get("image").cloned().unwrap_or_default();
        let key = state.join("identity/public.der");
        let key = std::fs::read(&key).map_err(|source| RegionError::File { path: key, doing: "reading the identity key", source })?;
        let mut wanted = vec![("template-nodes".to_owned(), record.nodes_group.clone(), None)];
        for (index, group) in record.coordinator_groups.iter().enumerate() {
            wanted.push((format!("template-coordinator-{}", index + 1), group.clone(), Some(index + 1)));
        }
        let mut changed = false;
        for (what, name, coordinator) in wanted {
            let template = LaunchTemplate {
                name: name.clone(),
                image: image.clone(),
                kind: options.instance_type.clone(),
                user_data_base64: STANDARD.encode(user_data(record, options, &key, trust, coordinator)),
                tags: BTreeMap::from([("vp:cluster".to_owned(), record.name.clone()), ("Name".to_owned(), name.clone())]),
            };
            let id = self.compute.ensure_launch_template(&template).await.map_err(failed(format!("making the launch template {name}")))?;
            changed |= note(&mut record.made, &what, id);
        }
        Ok(changed)
    }

    /// The groups; coordinators first, each pinned to its zone.
    pub(super) async fn groups(&self, record: &mut Record, options: &UpOptions) -> Result<bool, RegionError> {
        let subnet = |which: usize| record.made.get(&format!("subnet-{which}")).cloned().unwrap_or_default();
        let tags = BTreeMap::from([("vp:cluster".to_owned(), record.name.clone())]);
        let mut wanted = Vec::new();
        for (index, name) in record.coordinator_groups.iter().enumerate() {
            wanted.push((name.clone(), 1, 1, vec![subnet(index + 1)]));
        }
        wanted.push((record.nodes_group.clone(), options.nodes, 250, (1..=ZONES.len()).map(subnet).collect()));
        let mut changed = false;
        for (name, desired, max, subnets) in wanted {
            match self.groups.describe(&name).await {
                Ok(_) => {}
                Err(ProvisionError::NotFound { .. }) => {
                    let group = NewGroup { name: name.clone(), launch_template: name.clone(), min: 0, max, desired, subnets, tags: tags.clone() };
                    self.groups.create(&group).await.map_err(failed(format!("making the group {name}")))?;
                    changed = true;
                }
                Err(error) => return Err(failed(format!("looking for the group {name}"))(error)),
            }
        }
        Ok(changed)
    }
}

/// Remembers an id; true when it is new.
fn note(made: &mut BTreeMap<String, String>, what: &str, id: String) -> bool {
    if id.is_empty() || made.get(what) == Some(&id) {
        return false;
    }
    made.insert(what.to_owned(), id);
    true
}

/// User data as contracts §2 says; strings are quoted as JSON, which YAML reads.
fn user_data(record: &Record, options: &UpOptions, key: &[u8], trust: &Trust, coordinator: Option<usize>) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!(
        "cluster: {}\nrun: {}\ngroup: {}\n",
        quote(&record.name),
        if coordinator.is_some() { "coordinator" } else { "agent" },
        quote(&record.nodes_group)
    );
    text.push_str(if record.coordinator_groups.is_empty() { "coordinators: []\n" } else { "coordinators:\n" });
    for (index, group) in record.coordinator_groups.iter().enumerate() {
        let which = index + 1;
        text.push_str(&format!(
            "  - {{id: {which}, address: {}, zone: {}, group: {}}}\n",
            coordinator_address(record.network, which),
            ZONES[index],
            quote(group)
        ));
    }
    if let Some(which) = coordinator {
        text.push_str(&format!("coordinator: {which}\n"));
    }
    text.push_str(&format!("lease_ms: {}\n", record.lease_ms));
    text.push_str(&format!(
        "aws: {{region: {}, endpoint_url: {}, s3_endpoint_url: {}}}\n",
        record.aws_region,
        quote(&record.endpoint_url),
        quote(&record.s3_endpoint_url)
    ));
    let bucket = |which: &str| record.buckets.get(which).map(String::as_str).unwrap_or_default();
    text.push_str(&format!("buckets: {{uploads: {}, results: {}, cluster: {}}}\n", bucket("uploads"), bucket("results"), bucket("cluster")));
    text.push_str(&format!("identity_public_key: {}\n", STANDARD.encode(key)));
    text.push_str(&format!("{}\n", trust.user_data(coordinator.is_some())));
    text.push_str(&nested(&spec(options)));
    text
}

/// The wanted spec as a part of a document: what marks a document's beginning and end is left out, but not its line, which errors count.
pub(super) fn spec(options: &UpOptions) -> String {
    let text = options.spec_yaml.as_deref().unwrap_or(DEFAULT_SPEC).trim_start_matches('\u{feff}');
    let plain = |line: &str| if matches!(line.trim_end(), "---" | "...") { "\n".to_owned() } else { format!("{line}\n") };
    text.lines().map(plain).collect()
}

/// Under its key in the user data; one without a word in it wants nothing.
fn nested(spec: &str) -> String {
    let says = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if !spec.lines().any(says) {
        return "spec: {}\n".to_owned();
    }
    let lines: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("spec:\n{lines}")
}

/// The fixed address of coordinator Z (from 1).
pub(super) fn coordinator_address(network: u8, which: usize) -> String {
    format!("127.{network}.{which}.10")
}

/// As clients name them.
pub(super) fn coordinators(network: u8) -> Vec<String> {
    (1..=ZONES.len()).map(|which| format!("{}:{COORDINATOR_PORT}", coordinator_address(network, which))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pasted(text: &str) -> String {
        let mut options = UpOptions::new("dev", "/tmp/x".into());
        options.spec_yaml = Some(text.to_owned());
        nested(&spec(&options))
    }

    #[test]
    fn a_spec_with_a_documents_marks_is_user_data_all_the_same() {
        assert_eq!(pasted("roles: {}\r\n"), "spec:\n  roles: {}\n");
        assert_eq!(pasted("\u{feff}# mine\n---\nroles: {}\n...\n"), "spec:\n  # mine\n  \n  roles: {}\n  \n");
    }

    #[test]
    fn a_spec_without_a_word_wants_nothing() {
        for text in ["", "\n", "# later\n", "---\n"] {
            assert_eq!(pasted(text), "spec: {}\n", "{text:?}");
        }
    }
}
