//! A topic of a foreign client: made where it says, filled, read back; and where Kafka's own records say that its copies are.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};
use serde::Deserialize;

use crate::{Region, writers};

const PATIENCE: Duration = Duration::from_secs(30);

/// A topic with one partition.
pub struct Topic<'a> {
    pub region: &'a Region,
    pub name: &'a str,
}

/// Makes a topic.
///
/// # Errors
/// Kafka refuses it.
pub(crate) async fn create(brokers: &str, topic: NewTopic<'_>) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let made = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(PATIENCE))).await?;
    made.into_iter().try_for_each(|one| one.map(drop).map_err(|(name, code)| anyhow::anyhow!("{name}: {code}")))
}

#[derive(Deserialize)]
struct Copies {
    partitions: BTreeMap<String, Vec<u32>>,
}

#[derive(Deserialize)]
struct Settings {
    config: BTreeMap<String, String>,
}

impl Topic<'_> {
    fn client(&self) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.region.env("KAFKA_BOOTSTRAP_SERVERS")?);
        Ok(config)
    }

    async fn record<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let client = writers::zookeeper(&self.region.env("ZOOKEEPER_CONNECT")?).await?;
        let (bytes, _) = client.get_data(path).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path} is not understood"))
    }

    /// Makes it with its copies on these brokers.
    ///
    /// # Errors
    /// Kafka refuses.
    pub fn make(&self, brokers: &[i32]) -> anyhow::Result<()> {
        let assignment = [brokers];
        let topic = NewTopic::new(self.name, 1, TopicReplication::Variable(&assignment)).set("min.insync.replicas", "2");
        self.region.block_on(create(&self.region.env("KAFKA_BOOTSTRAP_SERVERS")?, topic))
    }

    /// Adds as many records of as many bytes, each acknowledged by all copies in sync.
    ///
    /// # Errors
    /// One is not acknowledged.
    pub fn fill(&self, records: usize, bytes: usize) -> anyhow::Result<()> {
        let producer: FutureProducer = self.client()?.set("acks", "all").set("message.timeout.ms", "60000").create()?;
        let payload = vec![b'x'; bytes];
        self.region.block_on(async {
            let sent = (0..records).map(|number| {
                let (producer, payload, key) = (&producer, &payload, number.to_string());
                async move { producer.send(FutureRecord::to(self.name).payload(payload).key(&key), PATIENCE).await.map_err(|(error, _)| error) }
            });
            futures::future::try_join_all(sent).await.map(drop).context("a record is not acknowledged")
        })
    }

    /// Reads all from the beginning: how many records.
    ///
    /// # Errors
    /// What is said to be there does not come.
    pub fn count(&self) -> anyhow::Result<usize> {
        let consumer: BaseConsumer = self.client()?.set("group.id", "foreign-counter").set("enable.auto.commit", "false").create()?;
        let (low, high) = consumer.fetch_watermarks(self.name, 0, PATIENCE)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(self.name, 0, Offset::Beginning)?;
        consumer.assign(&assignment)?;
        let (mut read, begun) = (0, Instant::now());
        while read < high - low {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{read} of {} records came", high - low);
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(500)) {
                ensure!(message.payload().is_some(), "an empty record at {}", message.offset());
                read += 1;
            }
        }
        Ok(usize::try_from(read)?)
    }

    /// Brokers that Kafka wants copies on.
    ///
    /// # Errors
    /// ZooKeeper does not answer.
    pub fn copies(&self) -> anyhow::Result<Vec<u32>> {
        let path = format!("/brokers/topics/{}", self.name);
        let mut copies: Copies = self.region.block_on(self.record(&path))?;
        copies.partitions.remove("0").context("it has a partition 0")
    }

    /// Its settings that differ from the brokers' own.
    ///
    /// # Errors
    /// ZooKeeper does not answer.
    pub fn settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let path = format!("/config/topics/{}", self.name);
        Ok(self.region.block_on(self.record::<Settings>(&path))?.config)
    }
}
