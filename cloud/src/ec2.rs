//! Instances and volumes as vp needs them: look, terminate, create, attach, detach. Every call can be repeated.
//! Left out: groups (`autoscaling`) and the making of networks, images and templates (`provision`).

use std::collections::BTreeMap;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::types::{self, Filter, ResourceType, Tag, TagSpecification, VolumeType};

pub use crate::error::CloudError;
use crate::error::translate;

/// Tag that Auto Scaling puts on the instances of a group.
pub const GROUP_TAG: &str = "aws:autoscaling:groupName";

/// Tag under which a volume keeps the token it was created with, so that it is found again after an unknown outcome.
pub const TOKEN_TAG: &str = "vp:token";

/// Values one filter may hold; the API allows 200.
const FILTER_VALUES: usize = 100;

/// EC2 calls under one set of credentials.
#[derive(Debug, Clone)]
pub struct Compute {
    pub(crate) client: Client,
}

/// An instance's state, as EC2 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Stopping,
    Stopped,
    /// No process of it is left: the only state that is proof.
    Terminated,
    /// A state this program does not know; never proof.
    Unknown,
}

impl InstanceState {
    fn read(state: Option<&types::InstanceState>) -> Self {
        match state.and_then(types::InstanceState::name) {
            Some(types::InstanceStateName::Pending) => Self::Pending,
            Some(types::InstanceStateName::Running) => Self::Running,
            Some(types::InstanceStateName::ShuttingDown) => Self::ShuttingDown,
            Some(types::InstanceStateName::Stopping) => Self::Stopping,
            Some(types::InstanceStateName::Stopped) => Self::Stopped,
            Some(types::InstanceStateName::Terminated) => Self::Terminated,
            _ => Self::Unknown,
        }
    }

    /// EC2's own word for the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Terminated => "terminated",
            Self::Unknown => "unknown",
        }
    }
}

/// One instance as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub state: InstanceState,
    /// Private IPv4 address; none once terminated.
    pub address: Option<String>,
    pub zone: String,
    /// E.g. `t3.small`.
    pub kind: String,
    pub tags: BTreeMap<String, String>,
    /// The Auto Scaling Group it belongs to, from its tag.
    pub group: Option<String>,
}

/// A volume's state, as EC2 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    Creating,
    Available,
    InUse,
    Deleting,
    Deleted,
    Error,
    Unknown,
}

/// One volume as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub id: String,
    pub state: VolumeState,
    /// Instance it is attached to (also while attaching or detaching).
    pub attached_to: Option<String>,
    /// It is there to stay: neither on its way to that instance nor away from it.
    pub settled: bool,
    pub zone: String,
    pub tags: BTreeMap<String, String>,
}

/// What to narrow a description down to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrow {
    /// EC2's filter name, e.g. `tag:vp:cluster` or `instance-state-name`.
    pub name: String,
    pub values: Vec<String>,
}

impl Compute {
    /// A client over a configuration made by `session`.
    pub fn new(config: &SdkConfig) -> Self {
        Self { client: Client::new(config) }
    }

    /// One instance. An id that EC2 does not know is `NotFound`, which is no proof of anything.
    pub async fn describe_instance(&self, id: &str) -> Result<Instance, CloudError> {
        let found = self.describe_instances(&[id.to_owned()]).await?;
        found.into_iter().next().ok_or_else(|| CloudError::not_found("DescribeInstances", id))
    }

    /// The instances among `ids` that EC2 knows, in no order; unknown ids are simply absent.
    pub async fn describe_instances(&self, ids: &[String]) -> Result<Vec<Instance>, CloudError> {
        let mut found = Vec::with_capacity(ids.len());
        for part in ids.chunks(FILTER_VALUES) {
            let narrow = Narrow { name: "instance-id".to_owned(), values: part.to_vec() };
            found.extend(self.find_instances(&[narrow]).await?);
        }
        Ok(found)
    }

    /// Every instance that passes all filters (terminated ones are listed too for a while).
    pub async fn find_instances(&self, narrow: &[Narrow]) -> Result<Vec<Instance>, CloudError> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let answer = self
                .client
                .describe_instances()
                .set_filters(Some(filters(narrow)))
                .set_next_token(token)
                .send()
                .await
                .map_err(|e| translate("DescribeInstances", e))?;
            let instances = answer.reservations().iter().flat_map(types::Reservation::instances);
            found.extend(instances.filter_map(read_instance));
            token = answer.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Asks EC2 to terminate an instance. Ordinary success only means that it is shutting down.
    pub async fn terminate(&self, instance: &str) -> Result<(), CloudError> {
        let call = self.client.terminate_instances().instance_ids(instance).send();
        call.await.map(drop).map_err(|e| translate("TerminateInstances", e))
    }

    /// Makes a volume of `size_gib` in `zone`, or returns the one made earlier with the same `token`.
    pub async fn create_volume(&self, zone: &str, size_gib: i32, tags: &BTreeMap<String, String>, token: &str) -> Result<String, CloudError> {
        let narrow = Narrow { name: format!("tag:{TOKEN_TAG}"), values: vec![token.to_owned()] };
        let earlier = self.find_volumes(&[narrow]).await?;
        let gone = |v: &Volume| matches!(v.state, VolumeState::Deleting | VolumeState::Deleted | VolumeState::Error);
        if let Some(volume) = earlier.into_iter().filter(|v| !gone(v)).min_by(|a, b| a.id.cmp(&b.id)) {
            return Ok(volume.id);
        }
        let mut all = tags.clone();
        all.insert(TOKEN_TAG.to_owned(), token.to_owned());
        let answer = self
            .client
            .create_volume()
            .availability_zone(zone)
            .size(size_gib)
            .volume_type(VolumeType::Gp3)
            .client_token(token)
            .tag_specifications(tagged(ResourceType::Volume, &all))
            .send()
            .await
            .map_err(|e| translate("CreateVolume", e))?;
        answer.volume_id().map(str::to_owned).ok_or_else(|| CloudError::incomplete("CreateVolume", "volume id"))
    }

    /// The volumes among `ids` that EC2 knows; unknown ids are absent.
    pub async fn describe_volumes(&self, ids: &[String]) -> Result<Vec<Volume>, CloudError> {
        let mut found = Vec::with_capacity(ids.len());
        for part in ids.chunks(FILTER_VALUES) {
            let narrow = Narrow { name: "volume-id".to_owned(), values: part.to_vec() };
            found.extend(self.find_volumes(&[narrow]).await?);
        }
        Ok(found)
    }

    /// Every volume that passes all filters.
    pub async fn find_volumes(&self, narrow: &[Narrow]) -> Result<Vec<Volume>, CloudError> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let answer = self
                .client
                .describe_volumes()
                .set_filters(Some(filters(narrow)))
                .set_next_token(token)
                .send()
                .await
                .map_err(|e| translate("DescribeVolumes", e))?;
            found.extend(answer.volumes().iter().filter_map(read_volume));
            token = answer.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Attaches a volume. Already attached to that instance is success; to another one is `Invalid` (`VolumeInUse`).
    pub async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<(), CloudError> {
        let call = self.client.attach_volume().volume_id(volume).instance_id(instance).device(device).send();
        let error = match call.await {
            Ok(_) => return Ok(()),
            Err(error) => translate("AttachVolume", error),
        };
        if error.code() == Some("VolumeInUse") {
            let now = self.describe_volumes(&[volume.to_owned()]).await?;
            if now.iter().any(|v| v.attached_to.as_deref() == Some(instance)) {
                return Ok(());
            }
        }
        Err(error)
    }

    /// Detaches a volume from `instance`; one that does not hang on it (any more) is success, and stays where it is. Asked once: a repetition would come
    /// after the caller has looked whether the volume may go, and who has it may have changed since.
    pub async fn detach_volume(&self, volume: &str, instance: &str) -> Result<(), CloudError> {
        let once = aws_sdk_ec2::Config::builder().retry_config(RetryConfig::disabled());
        let call = self.client.detach_volume().volume_id(volume).instance_id(instance).customize().config_override(once).send();
        call.await.map(drop).or_else(|error| if_detached(translate("DetachVolume", error)))
    }

    /// Deletes a volume; one that is gone is success.
    pub async fn delete_volume(&self, volume: &str) -> Result<(), CloudError> {
        match self.client.delete_volume().volume_id(volume).send().await {
            Ok(_) => Ok(()),
            Err(error) => match translate("DeleteVolume", error) {
                CloudError::NotFound { .. } => Ok(()),
                other => Err(other),
            },
        }
    }
}

pub(crate) fn filters(narrow: &[Narrow]) -> Vec<Filter> {
    let one = |n: &Narrow| Filter::builder().name(&n.name).set_values(Some(n.values.clone())).build();
    narrow.iter().map(one).collect()
}

pub(crate) fn tagged(resource: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    let list = tags.iter().map(|(k, v)| Tag::builder().key(k).value(v).build()).collect();
    TagSpecification::builder().resource_type(resource).set_tags(Some(list)).build()
}

fn read_tags(tags: &[Tag]) -> BTreeMap<String, String> {
    let one = |t: &Tag| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(one).collect()
}

fn read_instance(raw: &types::Instance) -> Option<Instance> {
    let tags = read_tags(raw.tags());
    Some(Instance {
        id: raw.instance_id()?.to_owned(),
        state: InstanceState::read(raw.state()),
        address: raw.private_ip_address().filter(|a| !a.is_empty()).map(str::to_owned),
        zone: raw.placement().and_then(types::Placement::availability_zone).unwrap_or_default().to_owned(),
        kind: raw.instance_type().map(|t| t.as_str().to_owned()).unwrap_or_default(),
        group: tags.get(GROUP_TAG).cloned(),
        tags,
    })
}

fn read_volume(raw: &types::Volume) -> Option<Volume> {
    let state = match raw.state() {
        Some(types::VolumeState::Creating) => VolumeState::Creating,
        Some(types::VolumeState::Available) => VolumeState::Available,
        Some(types::VolumeState::InUse) => VolumeState::InUse,
        Some(types::VolumeState::Deleting) => VolumeState::Deleting,
        Some(types::VolumeState::Deleted) => VolumeState::Deleted,
        Some(types::VolumeState::Error) => VolumeState::Error,
        _ => VolumeState::Unknown,
    };
    let holds = |a: &&types::VolumeAttachment| a.state() != Some(&types::VolumeAttachmentState::Detached);
    let attachment = raw.attachments().iter().find(holds);
    let attached_to = attachment.and_then(types::VolumeAttachment::instance_id);
    let under_way = [Some(&types::VolumeAttachmentState::Attaching), Some(&types::VolumeAttachmentState::Detaching)];
    Some(Volume {
        id: raw.volume_id()?.to_owned(),
        state,
        attached_to: attached_to.map(str::to_owned),
        settled: !attachment.is_some_and(|attachment| under_way.contains(&attachment.state())),
        zone: raw.availability_zone().unwrap_or_default().to_owned(),
        tags: read_tags(raw.tags()),
    })
}

/// What EC2 answers of a volume that hangs on nobody, or on another.
fn if_detached(error: CloudError) -> Result<(), CloudError> {
    if matches!(error.code(), Some("IncorrectState" | "InvalidAttachment.NotFound")) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_hangs_elsewhere_is_detached_and_one_whose_instance_or_answer_is_unknown_is_not() {
        let missing = |code: &str| CloudError::NotFound { operation: "DetachVolume", code: code.to_owned(), reason: String::new() };
        let refused = |code: &str| CloudError::Invalid { operation: "DetachVolume", code: code.to_owned(), reason: String::new() };
        assert!(if_detached(missing("InvalidAttachment.NotFound")).is_ok());
        assert!(if_detached(refused("IncorrectState")).is_ok());
        assert!(if_detached(missing("InvalidInstanceID.NotFound")).is_err());
        assert!(if_detached(CloudError::Unreachable { operation: "DetachVolume", reason: String::new() }).is_err());
    }

    #[test]
    fn an_instance_without_a_state_is_unknown_and_its_group_comes_from_the_tag() {
        let tag = Tag::builder().key(GROUP_TAG).value("dev-nodes").build();
        let raw = types::Instance::builder().instance_id("i-1").tags(tag).build();
        let read = read_instance(&raw).expect("an instance with an id is read");
        assert_eq!(read.state, InstanceState::Unknown);
        assert_eq!(read.group.as_deref(), Some("dev-nodes"));
        assert_eq!(read.address, None);
    }

    #[test]
    fn a_detached_attachment_holds_no_volume() {
        let attachment = types::VolumeAttachment::builder().instance_id("i-1").state(types::VolumeAttachmentState::Detached).build();
        let raw = types::Volume::builder().volume_id("vol-1").attachments(attachment).build();
        assert_eq!(read_volume(&raw).and_then(|v| v.attached_to), None);
    }
}
