//! Lambda for the local region: S3 events invoke real `lambda_runtime` programs by Lambda's own rules.
//!
//! ```text
//! S3 webhook ──> server ──> journal (on disk before 200) ──> queue ──> Runtime API ──> function process
//! sweep (lists buckets) ──────^                                 ^── retry after 1 s, 2 s, then dead letters
//! ```
//!
//! An event is delivered at least once, also over a kill -9 of this service. Left out: synchronous invocation, layers,
//! versions, throttling.

pub mod config;
mod delivery;
pub mod event;
mod journal;
pub(crate) mod process;
mod server;
mod sweep;

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use tokio::{net::TcpListener, signal::unix, task::JoinSet};
use vp_cloud::{Endpoints, Session, s3::ObjectStore, sqs::Queues};

use config::Config;
use delivery::Delivery;
use journal::Journal;

/// Runs the service until it is told to stop (TERM or INT).
///
/// # Errors
/// When the configuration cannot be read, the address cannot be bound, or one of its tasks ends unasked.
pub async fn run(config: PathBuf) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&config).with_context(|| format!("read {}", config.display()))?;
    let config: Config = serde_json::from_str(&text).with_context(|| format!("configuration {}", config.display()))?;
    let journal = Journal::open(&config.state_dir).with_context(|| format!("journal in {}", config.state_dir.display()))?;
    let s3 = &config.s3;
    let session = Session::load(Endpoints {
        region: Some(s3.region.clone()),
        endpoint_url: config.sqs_endpoint_url.clone().or_else(|| Some(s3.endpoint_url.clone())),
        s3_endpoint_url: Some(s3.endpoint_url.clone()),
        credentials: Some((s3.access_key_id.clone(), s3.secret_access_key.clone())),
    })
    .await;
    let queues = config.sqs_endpoint_url.is_some().then(|| Queues::new(&session));
    let address = format!("{}:{}", config.address, config.port);
    let listener = TcpListener::bind(&address).await.with_context(|| format!("listen on {address}"))?;
    let config = Arc::new(config);
    let delivery = Arc::new(Delivery::new(Arc::clone(&config), journal, queues));
    let waiting = delivery.resume();
    tracing::info!(address, functions = config.functions.len(), waiting, "lambda service serves");

    let mut tasks = JoinSet::new();
    tasks.spawn(server::serve(listener, Arc::clone(&delivery)));
    for (index, function) in config.functions.iter().enumerate() {
        for worker in 0..function.concurrency.max(1) {
            tasks.spawn(process::keep(Arc::clone(&config), index, worker, Arc::clone(&delivery)));
        }
    }
    if config.sweep_every_ms > 0 {
        tasks.spawn(sweep::sweep(Arc::clone(&delivery), ObjectStore::new(&session)));
    }
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = tasks.join_next() => {
            if let Some(ended) = ended {
                ended.context("a task of the lambda service died")?.context("a task of the lambda service ended")?;
            }
            anyhow::bail!("a task of the lambda service ended unasked");
        }
    }
    // Dropping the tasks ends the function processes (each has its end tied to its task).
    tasks.shutdown().await;
    tracing::info!("lambda service stops");
    Ok(())
}
