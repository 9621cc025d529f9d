//! Kafka's own records in ZooKeeper: live broker sessions, where each partition's copies are; and a reassignment, written there for its controller.
//! Left out: what should move where (`vp_cluster::kafka`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use vp_cluster::{
    kafka::Reassignment,
    observe::{KafkaSeen, PartitionSeen},
};
use zookeeper_client::{Acls, Client, CreateMode, Error};

use crate::zookeeper::Failure;

/// A reassignment under way: the controller deletes it when it is done.
const REASSIGNMENT: &str = "/admin/reassign_partitions";
/// The brokers' own default (`roles/kafka/server.properties.j2`).
const MIN_IN_SYNC: usize = 2;
const THROTTLED_REPLICAS: [&str; 2] = ["leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];
const THROTTLED_RATES: [&str; 2] = ["leader.replication.throttled.rate", "follower.replication.throttled.rate"];

#[derive(Deserialize)]
struct Broker {
    host: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
}

impl Broker {
    fn address(self) -> Option<String> {
        let host = |endpoint: &String| Some(endpoint.split("://").nth(1)?.rsplit_once(':')?.0.to_owned());
        self.endpoints.first().and_then(host).or(self.host)
    }
}

#[derive(Deserialize)]
struct Topic {
    partitions: BTreeMap<String, Vec<u32>>,
}

#[derive(Deserialize)]
struct Partition {
    leader: i32,
    isr: Vec<u32>,
}

/// An entity's dynamic configuration.
#[derive(Default, Serialize, Deserialize)]
struct Config {
    version: u32,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

impl Config {
    fn min_in_sync(&self) -> usize {
        self.config.get("min.insync.replicas").and_then(|text| text.parse().ok()).unwrap_or(MIN_IN_SYNC)
    }
}

pub struct Records {
    pub seen: KafkaSeen,
    /// Topics that an earlier reassignment has throttled.
    pub throttled_topics: Vec<String>,
}

/// # Errors
/// When ZooKeeper does not answer.
pub async fn read_all(client: &Client) -> Result<Records, Failure> {
    let mut kafka = KafkaSeen { reassigning: client.check_stat(REASSIGNMENT).await?.is_some(), ..KafkaSeen::default() };
    for id in children(client, "/brokers/ids").await? {
        let Some(broker) = read::<Broker>(client, &format!("/brokers/ids/{id}")).await? else { continue };
        if let (Ok(id), Some(address)) = (id.parse(), broker.address()) {
            kafka.registered.insert(id, address);
        }
    }
    let mut throttled_topics = Vec::new();
    for topic in children(client, "/brokers/topics").await? {
        let Some(wanted) = read::<Topic>(client, &format!("/brokers/topics/{topic}")).await? else { continue };
        let config = read::<Config>(client, &format!("/config/topics/{topic}")).await?.unwrap_or_default();
        for (partition, replicas) in wanted.partitions {
            let Some(live) = read::<Partition>(client, &format!("/brokers/topics/{topic}/partitions/{partition}/state")).await? else { continue };
            let Ok(number) = partition.parse() else { continue };
            count(&mut kafka, &live, &replicas, config.min_in_sync());
            kafka.partitions.insert((topic.clone(), number), PartitionSeen { replicas, in_sync: live.isr });
        }
        if THROTTLED_REPLICAS.iter().any(|key| config.config.contains_key(*key)) {
            throttled_topics.push(topic);
        }
    }
    Ok(Records { seen: kafka, throttled_topics })
}

fn count(kafka: &mut KafkaSeen, live: &Partition, replicas: &[u32], min_in_sync: usize) {
    kafka.offline += usize::from(live.leader < 0);
    kafka.under_replicated += usize::from(live.isr.len() < replicas.len());
    kafka.at_min_in_sync += usize::from(live.isr.len() <= min_in_sync.min(replicas.len()));
    kafka.in_sync.extend(&live.isr);
}

/// Asks the controller to move partitions: the throttle first, so that nothing of it runs without.
///
/// # Errors
/// When ZooKeeper does not answer, or a reassignment is under way.
pub async fn reassign(client: &Client, step: &Reassignment) -> Result<(), Failure> {
    let brokers: BTreeSet<String> = children(client, "/brokers/ids").await?.into_iter().collect();
    let rate = step.throttle_bytes_per_s.to_string();
    for broker in brokers {
        configure(client, "brokers", &broker, |config| {
            config.extend(THROTTLED_RATES.map(|key| (key.to_owned(), rate.clone())));
        })
        .await?;
    }
    let topics: BTreeSet<&String> = step.partitions.keys().map(|(topic, _)| topic).collect();
    for topic in topics {
        configure(client, "topics", topic, |config| {
            config.extend(THROTTLED_REPLICAS.map(|key| (key.to_owned(), "*".to_owned())));
        })
        .await?;
    }
    client.create(REASSIGNMENT, &reassignment(step), &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
    Ok(())
}

/// As `kafka-reassign-partitions` writes it.
fn reassignment(step: &Reassignment) -> Vec<u8> {
    let partitions: Vec<_> =
        step.partitions.iter().map(|((topic, partition), replicas)| json!({"topic": topic, "partition": partition, "replicas": replicas})).collect();
    json!({"version": 1, "partitions": partitions}).to_string().into_bytes()
}

/// Nothing moves any more: catching up after an ordinary restart is not to be throttled.
///
/// # Errors
/// When ZooKeeper does not answer.
pub async fn lift_throttle(client: &Client, topics: &[String]) -> Result<(), Failure> {
    for topic in topics {
        configure(client, "topics", topic, |config| config.retain(|key, _| !THROTTLED_REPLICAS.contains(&key.as_str()))).await?;
    }
    Ok(())
}

/// Changes an entity's dynamic configuration and notifies the brokers, as Kafka's own tools do. One that is not understood is nobody's to write over.
async fn configure(client: &Client, kind: &str, name: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<(), Failure> {
    let path = format!("/config/{kind}/{name}");
    let (known, version) = match client.get_data(&path).await {
        Ok((record, stat)) => (parse::<Config>(&record).ok_or_else(|| format!("{path} in ZooKeeper is no configuration of Kafka's"))?, Some(stat.version)),
        Err(Error::NoNode) => (Config::default(), None),
        Err(error) => return Err(error.into()),
    };
    let mut config = Config { version: 1, ..known };
    let before = config.config.clone();
    change(&mut config.config);
    if config.config == before {
        return Ok(());
    }
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let body = serde_json::to_vec(&config)?;
    match version {
        Some(_) => drop(client.set_data(&path, &body, version).await?),
        None => drop(client.create(&path, &body, &open).await?),
    }
    let notice = json!({"version": 2, "entity_path": format!("{kind}/{name}")}).to_string();
    client.create("/config/changes/config_change_", notice.as_bytes(), &CreateMode::PersistentSequential.with_acls(Acls::anyone_all())).await?;
    Ok(())
}

async fn children(client: &Client, path: &str) -> Result<Vec<String>, Failure> {
    match client.list_children(path).await {
        Ok(names) => Ok(names),
        Err(Error::NoNode) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

async fn read<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Option<T>, Failure> {
    match client.get_data(path).await {
        Ok((data, _)) => Ok(parse(&data)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whoever reaches ZooKeeper may have written it: what is not understood is passed over.
fn parse<T: DeserializeOwned>(record: &[u8]) -> Option<T> {
    serde_json::from_slice(record).ok()
}

/// Whether a record says anything here: where a broker is, where a topic's copies are to be or a partition's are, how an entity is configured.
pub fn says_anything(record: &[u8]) -> bool {
    let broker = parse::<Broker>(record).and_then(Broker::address).is_some();
    let config = parse::<Config>(record).map(|config| config.min_in_sync()).is_some();
    let copies = parse::<Topic>(record).is_some() || parse::<Partition>(record).is_some();
    broker || config || copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_counts_as_kafkas_own_metrics_count_it() {
        // leader, in sync, replicas, min in sync: offline, under-replicated, at min in sync
        for (leader, isr, replicas, min, counted) in [
            (1, vec![1, 2, 3], vec![1, 2, 3], 2, (0, 0, 0)),
            (1, vec![1, 2], vec![1, 2, 3], 2, (0, 1, 1)),
            (-1, vec![1], vec![1, 2, 3], 2, (1, 1, 1)),
            (1, vec![1], vec![1], 2, (0, 0, 1)),
            (1, vec![1, 2], vec![1, 2], 1, (0, 0, 0)),
        ] {
            let mut kafka = KafkaSeen::default();
            count(&mut kafka, &Partition { leader, isr: isr.clone() }, &replicas, min);
            assert_eq!((kafka.offline, kafka.under_replicated, kafka.at_min_in_sync), counted, "{isr:?} of {replicas:?}");
        }
    }

    #[test]
    fn a_reassignment_is_written_as_kafkas_tool_writes_it() {
        let step = Reassignment { partitions: [(("jobs".to_owned(), 4), vec![1, 2, 1001])].into(), throttle_bytes_per_s: 1 };
        let text = String::from_utf8(reassignment(&step)).unwrap();
        assert_eq!(text, r#"{"partitions":[{"partition":4,"replicas":[1,2,1001],"topic":"jobs"}],"version":1}"#);
    }

    #[test]
    fn a_topics_own_minimum_wins_over_the_brokers_default() {
        let config = |text: &str| serde_json::from_str::<Config>(text).unwrap().min_in_sync();
        assert_eq!(config(r#"{"version":1,"config":{"min.insync.replicas":"1"}}"#), 1);
        assert_eq!(config(r#"{"version":1,"config":{}}"#), MIN_IN_SYNC);
    }
}
