//! Segments onto Kafka: idempotent, acknowledged by all in-sync replicas, and patient while brokers move.
//!
//! The brokers stand in an S3 object that the coordinators keep true. After any failure it is read again and what was
//! not acknowledged is sent again, until the deadline; a record sent twice is the same segment with the same hash.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream::FuturesUnordered};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use vp_cloud::s3::ObjectStore;
use vp_jobs::{JobId, keys};

use crate::{
    cut::{PART_BYTES, Piece},
    error::{IngestError, file},
    settings::Settings,
};

/// The topic of all segments.
pub const TOPIC: &str = "video-segments";
const PARTITIONS: i32 = 6;
/// Parts that are on their way at once: bounds memory.
const IN_FLIGHT: usize = 8;
/// How long one record may take before the brokers are looked up anew.
const ACK_WITHIN: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Brokers {
    brokers: Vec<String>,
}

/// What is sent for a job.
pub struct Shipment<'a> {
    /// The job.
    pub job: &'a JobId,
    /// Segments, in this order.
    pub pieces: &'a [Piece],
    /// The topic's last word on the job: hash of the stored plan.
    pub plan_sha256: Option<&'a str>,
}

/// Sends a shipment; when it returns, every record of it is acknowledged.
///
/// # Errors
/// `Kafka` when that did not happen before `deadline`; `Store` when a reference cannot be stored.
pub async fn send(store: &ObjectStore, settings: &Settings, shipment: &Shipment<'_>, deadline: Instant) -> Result<(), IngestError> {
    let mut sent = 0;
    let mut ended = shipment.plan_sha256.is_none();
    let mut attempt = 0;
    loop {
        let tried = try_send(store, settings, shipment, &mut sent, &mut ended).await;
        let reason = match tried {
            Ok(()) => return Ok(()),
            Err(IngestError::Kafka(reason)) => reason,
            Err(IngestError::Store(error)) => error.to_string(),
            Err(error) => return Err(error),
        };
        let wait = vp_cloud::s3::backoff(attempt);
        attempt += 1;
        if Instant::now() + wait >= deadline {
            return Err(IngestError::Kafka(format!("not all records were acknowledged in time ({sent} of {} segments were): {reason}", shipment.pieces.len())));
        }
        tracing::info!(attempt, %reason, "kafka does not take records, brokers are read again");
        tokio::time::sleep(wait).await;
    }
}

async fn try_send(store: &ObjectStore, settings: &Settings, shipment: &Shipment<'_>, sent: &mut usize, ended: &mut bool) -> Result<(), IngestError> {
    let key = "kafka/brokers.json";
    let (bytes, _) = store.get(&settings.cluster_bucket, key).await?;
    let brokers: Brokers = serde_json::from_slice(&bytes).map_err(|source| IngestError::Record { key: key.to_owned(), source })?;
    let config = config(&brokers.brokers);
    ensure_topic(&config, settings.topic_replication).await?;
    let producer: FutureProducer = config.create().map_err(|error| IngestError::Kafka(error.to_string()))?;
    for piece in &shipment.pieces[*sent..] {
        if piece.parts == 1 && piece.bytes > settings.reference_bytes {
            send_reference(store, settings, &producer, shipment.job, piece).await?;
        } else {
            send_parts(&producer, shipment.job, piece).await?;
        }
        *sent += 1;
    }
    if let (false, Some(plan_sha256)) = (*ended, shipment.plan_sha256) {
        let value = serde_json::json!({"job": shipment.job, "plan_sha256": plan_sha256}).to_string().into_bytes();
        let headers = headers(shipment.job, "end", "end", 0, 1, value.len() as u64, plan_sha256);
        record(&producer, format!("{}/end", shipment.job), value, headers).await?;
        *ended = true;
    }
    Ok(())
}

fn config(brokers: &[String]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("client.id", "vp-ingest")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", ACK_WITHIN.as_millis().to_string())
        .set("message.max.bytes", "1048576")
        .set("linger.ms", "5")
        .set("socket.connection.setup.timeout.ms", "3000")
        .set("reconnect.backoff.max.ms", "1000")
        .set("queue.buffering.max.kbytes", "32768");
    config
}

/// Makes the topic when nobody did before.
async fn ensure_topic(config: &ClientConfig, replication: i32) -> Result<(), IngestError> {
    let failed = |error: KafkaError| IngestError::Kafka(format!("topic {TOPIC}: {error}"));
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(failed)?;
    let in_sync = replication.min(2).to_string();
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(replication)).set("min.insync.replicas", &in_sync);
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let answers = admin.create_topics([&topic], &options).await.map_err(failed)?;
    for answer in answers {
        match answer {
            Ok(_) => tracing::info!(topic = TOPIC, replication, "topic was made"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(IngestError::Kafka(format!("topic {TOPIC} cannot be made: {code}"))),
        }
    }
    Ok(())
}

fn headers(job: &JobId, kind: &str, segment: &str, part: u32, parts: u32, bytes: u64, sha256: &str) -> OwnedHeaders {
    let fields = [
        ("version", "1".to_owned()),
        ("kind", kind.to_owned()),
        ("job", job.to_string()),
        ("segment", segment.to_owned()),
        ("part", part.to_string()),
        ("parts", parts.to_string()),
        ("bytes", bytes.to_string()),
        ("sha256", sha256.to_owned()),
    ];
    fields.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

async fn record(producer: &FutureProducer, key: String, value: Vec<u8>, headers: OwnedHeaders) -> Result<(), IngestError> {
    let record = FutureRecord::to(TOPIC).key(&key).payload(&value).headers(headers);
    producer.send(record, Timeout::After(ACK_WITHIN)).await.map(drop).map_err(|(error, _)| IngestError::Kafka(error.to_string()))
}

async fn send_parts(producer: &FutureProducer, job: &JobId, piece: &Piece) -> Result<(), IngestError> {
    let kind = if piece.segment == vp_jobs::SegmentId::Audio { "audio" } else { "video" };
    let segment = piece.segment.to_string();
    let mut reader = tokio::fs::File::open(&piece.path).await.map_err(file("open a segment"))?;
    let mut under_way = FuturesUnordered::new();
    for part in 0..piece.parts {
        let length = PART_BYTES.min(piece.bytes - u64::from(part) * PART_BYTES);
        let mut value = vec![0; usize::try_from(length).unwrap_or_default()];
        reader.read_exact(&mut value).await.map_err(file("read a segment"))?;
        let headers = headers(job, kind, &segment, part, piece.parts, piece.bytes, &piece.sha256);
        under_way.push(record(producer, format!("{job}/{segment}"), value, headers));
        if under_way.len() >= IN_FLIGHT
            && let Some(acknowledged) = under_way.next().await
        {
            acknowledged?;
        }
    }
    while let Some(acknowledged) = under_way.next().await {
        acknowledged?;
    }
    Ok(())
}

async fn send_reference(store: &ObjectStore, settings: &Settings, producer: &FutureProducer, job: &JobId, piece: &Piece) -> Result<(), IngestError> {
    let key = keys::segment(job, piece.segment);
    let bucket = &settings.results_bucket;
    match store.put_file_if_absent(bucket, &key, &piece.path, "application/octet-stream").await {
        Ok(_) => {}
        // Written before by us or by the stream, whole, for the same job: whoever reads it checks the hash.
        Err(error) if error.is_precondition_failed() => {}
        Err(error) => return Err(error.into()),
    }
    let value = serde_json::json!({"bucket": bucket, "key": key, "offset": 0, "length": piece.bytes, "sha256": piece.sha256}).to_string().into_bytes();
    let segment = piece.segment.to_string();
    let headers = headers(job, "reference", &segment, 0, 1, piece.bytes, &piece.sha256);
    record(producer, format!("{job}/{segment}"), value, headers).await
}
