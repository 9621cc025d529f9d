//! Clients that know nothing of vp: they get the exports of `vpctl dev env` and the protocols' own libraries.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::Context;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
};
use sha2::{Digest, Sha256};
use vp_jobs::Plan;
use vp_tests::{Region, region::components};

/// A record of a job: its kind, part and value.
pub struct Found {
    pub kind: String,
    pub part: u32,
    pub value: Vec<u8>,
}

/// Every record of the topic, by its key.
pub type Topic = BTreeMap<String, Vec<Found>>;

/// Reads the topic from its beginning to what is its end now.
pub fn topic(region: &Region) -> anyhow::Result<Topic> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", region.env("KAFKA_BOOTSTRAP_SERVERS")?).set("group.id", "foreign").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some("video-segments"), Duration::from_secs(30))?;
    let topic = metadata.topics().first().context("no topic video-segments")?;
    anyhow::ensure!(topic.partitions().len() == 6, "{} partitions", topic.partitions().len());
    anyhow::ensure!(topic.partitions().iter().all(|partition| partition.replicas().len() == 3), "a partition has not three replicas");
    let mut all = TopicPartitionList::new();
    for partition in 0..6 {
        all.add_partition_offset("video-segments", partition, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (mut ends, mut found) = (0, Topic::new());
    while ends < 6 {
        match consumer.poll(Duration::from_secs(60)).context("kafka is silent")? {
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => return Err(error.into()),
            Ok(message) => {
                let headers = message.headers().context("a record without headers")?;
                let header = |name: &str| {
                    let value = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
                    value.and_then(|value| String::from_utf8(value.to_vec()).ok()).with_context(|| format!("a record without header {name}"))
                };
                let key = String::from_utf8(message.key().context("a record without a key")?.to_vec())?;
                anyhow::ensure!(key == format!("{}/{}", header("job")?, header("segment")?), "key {key} is not its headers'");
                let value = message.payload().unwrap_or_default().to_vec();
                anyhow::ensure!(value.len() <= 1_000_000, "{key}: a record of {} bytes", value.len());
                found.entry(key).or_default().push(Found { kind: header("kind")?, part: header("part")?.parse()?, value });
            }
        }
    }
    Ok(found)
}

/// The records of an undisturbed job are exactly its plan's: every part once, and the parts put together hash to what the plan says.
pub fn agrees(topic: &Topic, plan: &Plan) -> anyhow::Result<()> {
    let mut wanted: Vec<(String, u32, &str)> =
        plan.segments.iter().map(|segment| (format!("{:05}", segment.index), segment.parts, segment.sha256.as_str())).collect();
    wanted.extend(plan.audio.iter().map(|audio| ("audio".to_owned(), audio.segment.parts, audio.segment.sha256.as_str())));
    for (segment, parts, sha256) in &wanted {
        let records = topic.get(&format!("{}/{segment}", plan.job)).with_context(|| format!("segment {segment} is not on the topic"))?;
        let numbers: Vec<u32> = records.iter().map(|found| found.part).collect();
        anyhow::ensure!(numbers == (0..*parts).collect::<Vec<_>>(), "segment {segment}: parts {numbers:?} of {parts}");
        let whole: Vec<u8> = records.iter().flat_map(|found| found.value.clone()).collect();
        let found: String = Sha256::digest(&whole).iter().map(|byte| format!("{byte:02x}")).collect();
        anyhow::ensure!(found == *sha256, "segment {segment} hashes to {found}, the plan says {sha256}");
    }
    let prefix = format!("{}/", plan.job);
    let of_job: Vec<&String> = topic.keys().filter(|key| key.starts_with(&prefix)).collect();
    anyhow::ensure!(of_job.len() == wanted.len() + 1, "{of_job:?} beside {} segments and the end", wanted.len());
    let end = topic.get(&format!("{prefix}end")).context("no end record")?;
    anyhow::ensure!(end.len() == 1 && end[0].kind == "end", "{} end records", end.len());
    Ok(())
}

/// ZooKeeper as a client of it sees it: the brokers that have registered.
pub fn zookeeper(region: &Region) -> anyhow::Result<()> {
    let servers = region.env("ZOOKEEPER_CONNECT")?;
    let mut brokers = region.block_on(async {
        let client = zookeeper_client::Client::connect(&servers).await?;
        client.list_children("/brokers/ids").await
    })?;
    brokers.sort();
    anyhow::ensure!(brokers == ["1", "2", "3"], "brokers registered: {brokers:?}");
    Ok(())
}

const APPLICATION: &str = r#"
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print("sum", spark.sparkContext.parallelize(range(1000), 4).map(lambda number: number * number).sum())
"#;

/// Another application on the cluster's Spark, submitted by the exports, and with the workers' Python, while the streaming job runs: it finds room, and its tasks end.
pub fn spark(region: &Region) -> anyhow::Result<()> {
    let script = region.scratch().join("application.py");
    std::fs::write(&script, APPLICATION)?;
    let spark = components().join("spark");
    let mut command = Command::new("timeout");
    command.arg("120").arg(spark.join("home/bin/spark-submit")).args(["--master", &region.env("SPARK_MASTER_URL")?]).arg(&script);
    command.env_clear().env("HOME", region.scratch()).env("SPARK_LOCAL_IP", "127.0.0.1");
    for name in ["JAVA_HOME", "PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    exported(&mut command, region)?;
    let temporary = region.scratch().join("submit");
    std::fs::create_dir_all(&temporary)?;
    command.env("TMPDIR", &temporary).env("JDK_JAVA_OPTIONS", format!("-Djava.io.tmpdir={} -XX:+PerfDisableSharedMem", temporary.display()));
    // The workers' Python must be the driver's.
    command.env("PYSPARK_PYTHON", spark.join("bin/python"));
    let said = command.output()?;
    let (out, errors) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    anyhow::ensure!(said.status.success() && out.trim() == "sum 332833500", "{}: {out}\n{errors}", said.status);
    Ok(())
}

fn exported(command: &mut Command, region: &Region) -> anyhow::Result<()> {
    let exports = region.json(&["dev", "env"])?;
    for (name, value) in exports.as_object().context("exports by name")? {
        command.env(name, value.as_str().unwrap_or_default());
    }
    Ok(())
}

const BOTO: &str = r#"
import boto3, os, sys
s3, ec2 = boto3.client("s3"), boto3.client("ec2")
assert os.environ["VP_UPLOADS_BUCKET"] in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
running = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])["Reservations"]
assert sum(len(one["Instances"]) for one in running) == 8, running
key, path, recipe = sys.argv[1:]
metadata = {"vp-recipe": recipe} if recipe else {}
with open(path, "rb") as body:
    try:
        answer = s3.put_object(Bucket=os.environ["VP_UPLOADS_BUCKET"], Key=key, Body=body, Metadata=metadata)
    except s3.exceptions.ClientError as error:
        print("refused", error.response["ResponseMetadata"]["HTTPStatusCode"])
        sys.exit(0)
print(answer["ETag"].strip('"'))
"#;

/// An object put by boto3 with nothing but the exports: its entity tag, or none when S3 itself refuses the key.
pub fn put_by_boto(region: &Region, key: &str, path: &std::path::Path, recipe: &str) -> anyhow::Result<Option<String>> {
    let mut command = Command::new(components().join("moto/bin/python"));
    command.args(["-c", BOTO, key]).arg(path).arg(recipe).env_clear().env("HOME", region.scratch());
    exported(&mut command, region)?;
    let said = command.output()?;
    anyhow::ensure!(said.status.success(), "boto3: {}", String::from_utf8_lossy(&said.stderr));
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    Ok((!said.starts_with("refused")).then_some(said))
}
