//! The making of what instances are launched from: networks, images, launch templates. For `localcloud` and `vpctl`.
//! Each call looks first, so that asking twice makes one thing; names are kept in the `Name` tag.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{ArchitectureValues, InstanceType, LaunchTemplateTagSpecificationRequest, RequestLaunchTemplateData, ResourceType, Tag};

use crate::ec2::{Compute, Narrow, filters, tagged};
pub use crate::error::CloudError as ProvisionError;
use crate::error::{CloudError, translate};

/// What instances of a group are launched from.
#[derive(Debug, Clone)]
pub struct LaunchTemplate {
    pub name: String,
    pub image: String,
    /// E.g. `t3.small`.
    pub kind: String,
    /// As EC2 wants it: already base64.
    pub user_data_base64: String,
    /// Put on every instance launched.
    pub tags: BTreeMap<String, String>,
}

fn named(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("Name".to_owned(), name.to_owned())])
}

fn by_name(name: &str) -> Narrow {
    Narrow { name: "tag:Name".to_owned(), values: vec![name.to_owned()] }
}

impl Compute {
    /// The network called `name`, made with `cidr` when there is none. Returns its id.
    pub async fn ensure_vpc(&self, name: &str, cidr: &str) -> Result<String, CloudError> {
        let known = self.client.describe_vpcs().set_filters(Some(filters(&[by_name(name)]))).send().await;
        let known = known.map_err(|e| translate("DescribeVpcs", e))?;
        if let Some(id) = known.vpcs().first().and_then(|v| v.vpc_id()) {
            return Ok(id.to_owned());
        }
        let call = self.client.create_vpc().cidr_block(cidr).tag_specifications(tagged(ResourceType::Vpc, &named(name)));
        let made = call.send().await.map_err(|e| translate("CreateVpc", e))?;
        let id = made.vpc().and_then(|v| v.vpc_id());
        id.map(str::to_owned).ok_or_else(|| CloudError::incomplete("CreateVpc", "vpc id"))
    }

    /// The subnet called `name`, made in `vpc` and `zone` when there is none. Returns its id.
    pub async fn ensure_subnet(&self, name: &str, vpc: &str, zone: &str, cidr: &str) -> Result<String, CloudError> {
        let known = self.client.describe_subnets().set_filters(Some(filters(&[by_name(name)]))).send().await;
        let known = known.map_err(|e| translate("DescribeSubnets", e))?;
        if let Some(id) = known.subnets().first().and_then(|s| s.subnet_id()) {
            return Ok(id.to_owned());
        }
        let call = self.client.create_subnet().vpc_id(vpc).availability_zone(zone).cidr_block(cidr);
        let call = call.tag_specifications(tagged(ResourceType::Subnet, &named(name)));
        let made = call.send().await.map_err(|e| translate("CreateSubnet", e))?;
        let id = made.subnet().and_then(|s| s.subnet_id());
        id.map(str::to_owned).ok_or_else(|| CloudError::incomplete("CreateSubnet", "subnet id"))
    }

    /// The image called `name`, registered when there is none. Returns its id.
    pub async fn ensure_image(&self, name: &str, description: &str) -> Result<String, CloudError> {
        let narrow = Narrow { name: "name".to_owned(), values: vec![name.to_owned()] };
        let known = self.client.describe_images().set_filters(Some(filters(&[narrow]))).send().await;
        let known = known.map_err(|e| translate("DescribeImages", e))?;
        if let Some(id) = known.images().first().and_then(|i| i.image_id()) {
            return Ok(id.to_owned());
        }
        let call = self.client.register_image().name(name).description(description);
        let call = call.architecture(ArchitectureValues::X8664).root_device_name("/dev/sda1");
        let made = call.send().await.map_err(|e| translate("RegisterImage", e))?;
        made.image_id().map(str::to_owned).ok_or_else(|| CloudError::incomplete("RegisterImage", "image id"))
    }

    /// The launch template of that name, made when there is none. Returns its id; an existing one is left as it is.
    pub async fn ensure_launch_template(&self, wanted: &LaunchTemplate) -> Result<String, CloudError> {
        let narrow = Narrow { name: "launch-template-name".to_owned(), values: vec![wanted.name.clone()] };
        let known = self.client.describe_launch_templates().set_filters(Some(filters(&[narrow]))).send().await;
        let known = known.map_err(|e| translate("DescribeLaunchTemplates", e))?;
        let same = known.launch_templates().iter().find(|t| t.launch_template_name() == Some(wanted.name.as_str()));
        if let Some(id) = same.and_then(|t| t.launch_template_id()) {
            return Ok(id.to_owned());
        }
        let call = self.client.create_launch_template().launch_template_name(&wanted.name);
        let made = call.launch_template_data(template_data(wanted)).send().await;
        let made = made.map_err(|e| translate("CreateLaunchTemplate", e))?;
        let id = made.launch_template().and_then(|t| t.launch_template_id());
        id.map(str::to_owned).ok_or_else(|| CloudError::incomplete("CreateLaunchTemplate", "launch template id"))
    }

    /// Deletes a launch template; one that is gone is success.
    pub async fn delete_launch_template(&self, name: &str) -> Result<(), CloudError> {
        match self.client.delete_launch_template().launch_template_name(name).send().await {
            Ok(_) => Ok(()),
            Err(error) => match translate("DeleteLaunchTemplate", error) {
                CloudError::NotFound { .. } => Ok(()),
                other => Err(other),
            },
        }
    }
}

fn template_data(wanted: &LaunchTemplate) -> RequestLaunchTemplateData {
    let tags = wanted.tags.iter().map(|(k, v)| Tag::builder().key(k).value(v).build()).collect();
    let instances = LaunchTemplateTagSpecificationRequest::builder().resource_type(ResourceType::Instance).set_tags(Some(tags));
    RequestLaunchTemplateData::builder()
        .image_id(&wanted.image)
        .instance_type(InstanceType::from(wanted.kind.as_str()))
        .user_data(&wanted.user_data_base64)
        .tag_specifications(instances.build())
        .build()
}
