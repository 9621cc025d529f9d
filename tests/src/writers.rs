//! Foreign clients that know nothing of vp and write all the while: what ZooKeeper and Kafka acknowledged to them must be there at the end.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::{Region, topics};

const FOLDER: &str = "/foreign-writer";
const TOPIC: &str = "foreign-writer";
const PARTITIONS: i32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(100);

/// Numbers that were acknowledged.
type Acknowledged = Arc<Mutex<BTreeSet<u64>>>;

/// A ZooKeeper writer and a Kafka writer, until dropped.
pub struct Writers {
    stop: Arc<AtomicBool>,
    zookeeper: Acknowledged,
    kafka: Acknowledged,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Makes the topic and the folder, and begins to write.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn start(region: &Arc<Region>) -> anyhow::Result<Self> {
        let brokers = region.env("KAFKA_BOOTSTRAP_SERVERS")?;
        let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(3)).set("min.insync.replicas", "2");
        region.block_on(topics::create(&brokers, topic))?;
        region.block_on(async {
            let client = zookeeper(&region.env("ZOOKEEPER_CONNECT")?).await?;
            client.create(FOLDER, b"", &CreateMode::Persistent.with_acls(Acls::anyone_all())).await.map(drop).context("create the folder")
        })?;
        let (stop, zookeeper, kafka) = (Arc::<AtomicBool>::default(), Acknowledged::default(), Acknowledged::default());
        let threads = vec![
            writer(region, &stop, &zookeeper, |region, next, ending, acknowledged| region.block_on(write_nodes(region, next, ending, acknowledged))),
            writer(region, &stop, &kafka, |region, next, ending, acknowledged| region.block_on(write_records(region, next, ending, acknowledged))),
        ];
        Ok(Self { stop, zookeeper, kafka, threads })
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// Ends writing and compares: the numbers acknowledged by ZooKeeper and by Kafka, and those of each that are not there any more.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn verify(&mut self, region: &Region) -> anyhow::Result<Account> {
        self.end();
        let nodes = region.block_on(async { read_nodes(&region.env("ZOOKEEPER_CONNECT")?).await })?;
        let records = read_records(&region.env("KAFKA_BOOTSTRAP_SERVERS")?)?;
        let missing = |acknowledged: &Acknowledged, there: &BTreeSet<u64>| {
            let all = acknowledged.lock().map(|all| all.clone()).unwrap_or_default();
            (all.len(), all.difference(there).copied().collect::<Vec<_>>())
        };
        Ok(Account { zookeeper: missing(&self.zookeeper, &nodes), kafka: missing(&self.kafka, &records) })
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.end();
    }
}

/// How many were acknowledged, and which of them are lost.
#[derive(Debug)]
pub struct Account {
    zookeeper: (usize, Vec<u64>),
    kafka: (usize, Vec<u64>),
}

impl Account {
    /// Prints how much was acknowledged.
    ///
    /// # Errors
    /// Something is lost, or too little was written to say anything.
    pub fn ensure_whole(&self) -> anyhow::Result<()> {
        println!("   acknowledged: {} ZooKeeper nodes, {} Kafka records", self.zookeeper.0, self.kafka.0);
        anyhow::ensure!(self.zookeeper.0 > 50 && self.kafka.0 > 50, "too little was written to say anything: {self:?}");
        anyhow::ensure!(self.zookeeper.1.is_empty() && self.kafka.1.is_empty(), "lost: {self:?}");
        Ok(())
    }
}

/// Runs `write` again and again, each time from the next number with a new connection, until the end; its errors are what the kills cause.
fn writer(
    region: &Arc<Region>,
    stop: &Arc<AtomicBool>,
    acknowledged: &Acknowledged,
    write: fn(&Region, &mut u64, &AtomicBool, &Acknowledged) -> anyhow::Result<()>,
) -> JoinHandle<()> {
    let (region, stop, acknowledged) = (region.clone(), stop.clone(), acknowledged.clone());
    thread::spawn(move || {
        let mut next = 0;
        while !stop.load(Ordering::Relaxed) {
            if write(&region, &mut next, &stop, &acknowledged).is_err() {
                thread::sleep(PAUSE);
            }
        }
    })
}

fn note(acknowledged: &Acknowledged, number: u64) {
    if let Ok(mut all) = acknowledged.lock() {
        all.insert(number);
    }
}

pub(crate) async fn zookeeper(addresses: &str) -> anyhow::Result<Client> {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(6)).with_connection_timeout(Duration::from_secs(2)).with_fail_eagerly();
    Ok(timeout(PATIENCE, connector.connect(addresses)).await??)
}

async fn write_nodes(region: &Region, next: &mut u64, ending: &AtomicBool, acknowledged: &Acknowledged) -> anyhow::Result<()> {
    let client = zookeeper(&region.env("ZOOKEEPER_CONNECT")?).await?;
    while !ending.load(Ordering::Relaxed) {
        // A number whose outcome is unknown is never tried again.
        *next += 1;
        let (number, path) = (*next, format!("{FOLDER}/{next:010}"));
        timeout(PATIENCE, client.create(&path, b"", &CreateMode::Persistent.with_acls(Acls::anyone_all()))).await??;
        note(acknowledged, number);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn read_nodes(addresses: &str) -> anyhow::Result<BTreeSet<u64>> {
    let client = zookeeper(addresses).await?;
    // What this server has not heard of yet may be acknowledged all the same.
    client.sync(FOLDER).await?;
    client.list_children(FOLDER).await?.iter().map(|name| name.parse().context("a foreign node")).collect()
}

/// ZooKeeper's own list of voting members: id to the line that follows it.
///
/// # Errors
/// It cannot be read.
pub async fn ensemble(addresses: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let (data, _) = timeout(PATIENCE, zookeeper(addresses).await?.get_config()).await??;
    let text = String::from_utf8_lossy(&data).into_owned();
    let members = text.lines().filter_map(|line| line.strip_prefix("server.")?.split_once('='));
    members.map(|(id, rest)| Ok((id.parse()?, rest.to_owned()))).collect()
}

/// Broker ids that are registered in ZooKeeper, sorted.
///
/// # Errors
/// They cannot be read.
pub async fn brokers(addresses: &str) -> anyhow::Result<Vec<String>> {
    let mut ids = timeout(PATIENCE, zookeeper(addresses).await?.list_children("/brokers/ids")).await??;
    ids.sort();
    Ok(ids)
}

async fn write_records(region: &Region, next: &mut u64, ending: &AtomicBool, acknowledged: &Acknowledged) -> anyhow::Result<()> {
    let brokers = region.env("KAFKA_BOOTSTRAP_SERVERS")?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", "30000");
    let producer: FutureProducer = config.create()?;
    while !ending.load(Ordering::Relaxed) {
        *next += 1;
        let (number, payload) = (*next, next.to_string());
        let record = FutureRecord::to(TOPIC).payload(&payload).key(&payload);
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
        note(acknowledged, number);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn read_records(brokers: &str) -> anyhow::Result<BTreeSet<u64>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "foreign-reader").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(TOPIC, partition, PATIENCE)?;
        left += high - low;
        assignment.add_partition_offset(TOPIC, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut found, begun) = (BTreeSet::new(), Instant::now());
    while left > 0 {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "{left} records are said to be there and do not come");
        let Some(message) = consumer.poll(Duration::from_millis(500)) else { continue };
        let Ok(message) = message else { continue };
        left -= 1;
        found.insert(std::str::from_utf8(message.payload().unwrap_or_default())?.parse()?);
    }
    Ok(found)
}
