//! Writes in a closed loop: so many clients, each with one write under way, for so long. The same program against every kind of member.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;

use crate::channel::Tls;
use crate::group::Kind;
use crate::writer::Writer;

/// Connections that clients share at most, as etcd's own benchmark has it.
const CONNECTIONS: usize = 100;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: usize,
    /// Length of a value, bytes.
    pub value_bytes: usize,
    /// Before anything is counted.
    pub warm_up: Duration,
    pub length: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub per_second: f64,
    /// Of each acknowledged write, sorted, µs.
    pub latencies_us: Vec<u32>,
}

/// Runs the load against the member at `address`, which leads.
///
/// # Errors
/// A write is refused: there is no figure then.
pub async fn run(kind: Kind, address: SocketAddr, tls: Tls, load: Load) -> anyhow::Result<Outcome> {
    let mut writers = Vec::new();
    for _ in 0..load.clients.min(CONNECTIONS) {
        writers.push(Writer::connect(kind, address, tls.clone()).await.context("connecting")?);
    }
    let begin = Instant::now() + load.warm_up;
    let end = begin + load.length;
    let clients = (0..load.clients).map(|number| {
        let writer = writers[number % writers.len()].clone();
        tokio::spawn(client(writer, number, load.value_bytes, begin, end))
    });
    let mut latencies_us = Vec::new();
    for one in try_join_all(clients).await? {
        latencies_us.extend(one?);
    }
    ensure!(!latencies_us.is_empty(), "no write was acknowledged in {} s", load.length.as_secs());
    latencies_us.sort_unstable();
    Ok(Outcome { per_second: latencies_us.len() as f64 / load.length.as_secs_f64(), latencies_us })
}

async fn client(mut writer: Writer, number: usize, bytes: usize, begin: Instant, end: Instant) -> anyhow::Result<Vec<u32>> {
    let key = format!("client-{number}");
    let value = "x".repeat(bytes);
    let mut latencies = Vec::new();
    loop {
        let asked = Instant::now();
        if asked >= end {
            return Ok(latencies);
        }
        writer.write(&key, &value).await.context("a write was refused")?;
        let answered = Instant::now();
        if asked >= begin && answered < end {
            latencies.push(u32::try_from((answered - asked).as_micros()).unwrap_or(u32::MAX));
        }
    }
}
