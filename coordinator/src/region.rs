//! The calls to AWS that the leader's watch makes, behind a trait, so that the simulator's region can answer late, wrongly or not at all.

use std::collections::BTreeMap;

use vp_cloud::{
    autoscaling::Groups,
    ec2::{Compute, Instance, Volume},
    error::CloudError,
    s3::{ObjectStore, StoreError},
};

/// Size of a new volume.
const VOLUME_GIB: i32 = 20;

/// Where clients outside the cluster find Kafka (docs/contracts.md §5).
const BROKERS: &str = "kafka/brokers.json";

/// What is told of a list that is there already.
#[derive(serde::Deserialize)]
struct Published {
    revision: u64,
}

/// One region. An error of any call says nothing about the world.
#[tonic::async_trait]
pub trait Region: Send + Sync + 'static {
    /// The instances among `ids` that EC2 knows.
    async fn describe_instances(&self, ids: &[String]) -> Result<Vec<Instance>, CloudError>;
    /// Terminates an instance through its group, which then boots a replacement.
    async fn terminate_in_group(&self, instance: &str) -> Result<(), CloudError>;
    /// The volumes among `ids` that EC2 knows.
    async fn describe_volumes(&self, ids: &[String]) -> Result<Vec<Volume>, CloudError>;
    /// Makes a volume, or finds the one made earlier with the same token.
    async fn create_volume(&self, zone: &str, tags: &BTreeMap<String, String>, token: &str) -> Result<String, CloudError>;
    async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<(), CloudError>;
    /// Takes a volume off `instance`, and off no other: a call that arrives late finds it elsewhere and does nothing.
    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<(), CloudError>;
    /// Replaces the list of brokers for those outside the cluster, unless a newer revision's is there.
    async fn publish_brokers(&self, revision: u64, body: String) -> Result<(), StoreError>;
}

/// The real one.
pub struct Aws {
    pub compute: Compute,
    pub groups: Groups,
    pub store: ObjectStore,
    /// The cluster's bucket.
    pub bucket: String,
}

#[tonic::async_trait]
impl Region for Aws {
    async fn describe_instances(&self, ids: &[String]) -> Result<Vec<Instance>, CloudError> {
        self.compute.describe_instances(ids).await
    }

    async fn terminate_in_group(&self, instance: &str) -> Result<(), CloudError> {
        self.groups.terminate_in_group(instance).await
    }

    async fn describe_volumes(&self, ids: &[String]) -> Result<Vec<Volume>, CloudError> {
        self.compute.describe_volumes(ids).await
    }

    async fn create_volume(&self, zone: &str, tags: &BTreeMap<String, String>, token: &str) -> Result<String, CloudError> {
        self.compute.create_volume(zone, VOLUME_GIB, tags, token).await
    }

    async fn attach_volume(&self, volume: &str, instance: &str, device: &str) -> Result<(), CloudError> {
        self.compute.attach_volume(volume, instance, device).await
    }

    async fn detach_volume(&self, volume: &str, instance: &str) -> Result<(), CloudError> {
        self.compute.detach_volume(volume, instance).await
    }

    async fn publish_brokers(&self, revision: u64, body: String) -> Result<(), StoreError> {
        let (body, kind) = (body.into(), "application/json");
        let (there, etag) = match self.store.get(&self.bucket, BROKERS).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return self.store.put_if_absent(&self.bucket, BROKERS, body, kind).await.map(drop),
            Err(error) => return Err(error),
        };
        let newest = serde_json::from_slice::<Published>(&there).is_ok_and(|there| there.revision > revision);
        if newest { Ok(()) } else { self.store.put_if_match(&self.bucket, BROKERS, body, kind, &etag).await.map(drop) }
    }
}
