//! Auto Scaling Groups as vp needs them: look, create, delete, and terminate one member so that it is replaced.
//! Left out: scaling policies; the coordinator decides sizes and sets the desired capacity itself.

use std::collections::BTreeMap;

use aws_config::SdkConfig;
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::types::{AutoScalingGroup, LaunchTemplateSpecification, Tag};

pub use crate::error::CloudError;
use crate::error::translate;

/// Auto Scaling calls under one set of credentials.
#[derive(Debug, Clone)]
pub struct Groups {
    client: Client,
}

/// One group as Auto Scaling describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub desired: u32,
    pub min: u32,
    pub max: u32,
    pub instances: Vec<Member>,
}

/// One instance of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub instance: String,
    pub zone: String,
    /// E.g. `InService`, `Pending`, `Terminating`.
    pub lifecycle: String,
    pub healthy: bool,
}

/// What a new group shall be.
#[derive(Debug, Clone)]
pub struct NewGroup {
    pub name: String,
    pub launch_template: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    /// Subnet ids; their zones are the group's zones.
    pub subnets: Vec<String>,
    /// Put on the group and on every instance it launches.
    pub tags: BTreeMap<String, String>,
}

impl Groups {
    /// A client over a configuration made by `session`.
    pub fn new(config: &SdkConfig) -> Self {
        Self { client: Client::new(config) }
    }

    /// One group; unknown names are `NotFound`.
    pub async fn describe(&self, name: &str) -> Result<Group, CloudError> {
        let call = self.client.describe_auto_scaling_groups().auto_scaling_group_names(name).send();
        let answer = call.await.map_err(|e| translate("DescribeAutoScalingGroups", e))?;
        let found = answer.auto_scaling_groups().iter().find(|g| g.auto_scaling_group_name() == Some(name));
        found.map(read_group).ok_or_else(|| CloudError::not_found("DescribeAutoScalingGroups", name))
    }

    /// Makes a group; one of that name that exists is left as it is (success).
    pub async fn create(&self, wanted: &NewGroup) -> Result<(), CloudError> {
        let template = LaunchTemplateSpecification::builder().launch_template_name(&wanted.launch_template).version("$Latest").build();
        let tag = |(key, value): (&String, &String)| {
            let tag = Tag::builder().key(key).value(value).propagate_at_launch(true);
            tag.resource_type("auto-scaling-group").resource_id(&wanted.name).build()
        };
        let call = self
            .client
            .create_auto_scaling_group()
            .auto_scaling_group_name(&wanted.name)
            .launch_template(template)
            .min_size(signed(wanted.min))
            .max_size(signed(wanted.max))
            .desired_capacity(signed(wanted.desired))
            .vpc_zone_identifier(wanted.subnets.join(","))
            .set_tags(Some(wanted.tags.iter().map(tag).collect()));
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = translate("CreateAutoScalingGroup", error);
                if error.code().is_some_and(|c| c.starts_with("AlreadyExists")) { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Deletes a group and terminates its instances; one that is gone is success.
    pub async fn delete(&self, name: &str) -> Result<(), CloudError> {
        let call = self.client.delete_auto_scaling_group().auto_scaling_group_name(name).force_delete(true);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) => match translate("DeleteAutoScalingGroup", error) {
                CloudError::NotFound { .. } => Ok(()),
                other => Err(other),
            },
        }
    }

    /// Terminates an instance through its group, which boots a replacement. Success means: it is shutting down.
    /// An instance in no group is refused by the service; use `Compute::terminate` then.
    pub async fn terminate_in_group(&self, instance: &str) -> Result<(), CloudError> {
        let call = self.client.terminate_instance_in_auto_scaling_group();
        let call = call.instance_id(instance).should_decrement_desired_capacity(false).send();
        call.await.map(drop).map_err(|e| translate("TerminateInstanceInAutoScalingGroup", e))
    }
}

fn signed(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn unsigned(value: Option<i32>) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).unwrap_or(0)
}

fn read_group(raw: &AutoScalingGroup) -> Group {
    let members = raw.instances().iter().map(|i| Member {
        instance: i.instance_id().unwrap_or_default().to_owned(),
        zone: i.availability_zone().unwrap_or_default().to_owned(),
        lifecycle: i.lifecycle_state().map(|s| s.as_str().to_owned()).unwrap_or_default(),
        healthy: i.health_status() == Some("Healthy"),
    });
    Group {
        name: raw.auto_scaling_group_name().unwrap_or_default().to_owned(),
        desired: unsigned(raw.desired_capacity()),
        min: unsigned(raw.min_size()),
        max: unsigned(raw.max_size()),
        instances: members.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_the_api_are_held_at_its_edges() {
        assert_eq!(signed(u32::MAX), i32::MAX);
        assert_eq!(unsigned(Some(-1)), 0);
        assert_eq!(unsigned(Some(5)), 5);
    }
}
