//! The `publish` Lambda: S3 events of the results bucket in, closed jobs out.

use anyhow::Context as _;
use aws_lambda_events::event::s3::S3Event;
use lambda_runtime::{LambdaEvent, service_fn};
use vp_cloud::{Session, s3::ObjectStore};
use vp_publish::{Outcome, Publish};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_target(false).with_writer(std::io::stderr).init();
    let results_bucket = std::env::var("VP_RESULTS_BUCKET").context("environment variable VP_RESULTS_BUCKET is not set")?;
    let publish = Publish { store: ObjectStore::new(&Session::from_environment().await), results_bucket };
    let run = lambda_runtime::run(service_fn(|event: LambdaEvent<S3Event>| Box::pin(handle(&publish, event))));
    run.await.map_err(|error| anyhow::anyhow!("runtime: {error}"))
}

async fn handle(publish: &Publish, event: LambdaEvent<S3Event>) -> Result<Vec<Outcome>, lambda_runtime::Error> {
    let mut outcomes = Vec::new();
    for record in event.payload.records {
        let bucket = record.s3.bucket.name.unwrap_or_default();
        let Some(key) = vp_jobs::event::decode_key(&record.s3.object.key.unwrap_or_default()).filter(|_| bucket == publish.results_bucket) else {
            tracing::warn!(bucket, "event of another bucket or with a broken key is dropped");
            continue;
        };
        let outcome = publish.object(&key).await.with_context(|| format!("publish {key}")).map_err(|error| {
            tracing::error!(key, error = format!("{error:#}"), "job was not closed");
            format!("{error:#}")
        })?;
        if outcome != Outcome::Nothing {
            tracing::info!(key, ?outcome, "result is final");
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}
