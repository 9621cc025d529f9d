//! The `ingest` Lambda: S3 events of the uploads bucket in, one outcome a record out.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lambda_events::event::s3::S3Event;
use lambda_runtime::{LambdaEvent, service_fn};
use vp_cloud::{Session, s3::ObjectStore};
use vp_ingest::{
    intake::{Ingest, Outcome},
    settings::Settings,
};

/// Kept back from the invocation's time for the last records.
const RESERVE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_target(false).with_writer(std::io::stderr).init();
    let settings = Settings::from_environment().map_err(anyhow::Error::msg)?;
    let ingest = Ingest { store: ObjectStore::new(&Session::from_environment().await), settings };
    let run = lambda_runtime::run(service_fn(|event: LambdaEvent<S3Event>| Box::pin(handle(&ingest, event))));
    run.await.map_err(|error| anyhow::anyhow!("runtime: {error}"))
}

async fn handle(ingest: &Ingest, event: LambdaEvent<S3Event>) -> Result<Vec<Outcome>, lambda_runtime::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let left = Duration::from_millis(event.context.deadline).saturating_sub(now);
    let deadline = Instant::now() + left.saturating_sub(RESERVE);
    let mut outcomes = Vec::new();
    for record in event.payload.records {
        let (bucket, key) = (record.s3.bucket.name.unwrap_or_default(), record.s3.object.key.unwrap_or_default());
        let Some(key) = vp_jobs::event::decode_key(&key) else {
            tracing::warn!(bucket, key, "event with a broken key is dropped");
            continue;
        };
        let outcome = ingest.object(&bucket, &key, deadline).await.with_context(|| format!("ingest s3://{bucket}/{key}"));
        let outcome = outcome.map_err(|error| {
            tracing::error!(bucket, key, error = format!("{error:#}"), "upload was not ingested");
            format!("{error:#}")
        })?;
        tracing::info!(bucket, key, ?outcome, "upload is ingested");
        outcomes.push(outcome);
    }
    Ok(outcomes)
}
