//! A1: durable writes of 256 B with 1, 64 and 1,000 clients; all groups live side by side on one disk and are loaded in turn, never together.

use std::time::Duration;

use vp_core_tests::figures::{Better, Row, Target, filled, quantile};
use vp_core_tests::group::{Group, Kind};
use vp_core_tests::load::{self, Load};

use crate::{Arguments, say};

const VALUE_BYTES: usize = 256;
const CLIENTS: [usize; 3] = [1, 64, 1000];
const PEERS: [Kind; 3] = [Kind::Etcd, Kind::SecureEtcd, Kind::ZooKeeper];

pub async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("a1-").tempdir_in(&arguments.folder)?;
    let mut groups = Vec::new();
    for kind in [Kind::Vp].into_iter().chain(PEERS) {
        groups.push(Group::start(kind, arguments.setting()?, folder.path()).await?);
    }
    let mut rows = Vec::new();
    for clients in CLIENTS {
        let name = format!("durable writes, 256 B, {clients} client{}", if clients == 1 { "" } else { "s" });
        let mut taken: Vec<Vec<[f64; 4]>> = vec![Vec::new(); groups.len()];
        for repeat in 0..arguments.repeats {
            for (group, taken) in groups.iter().zip(&mut taken) {
                let figures = once(group, clients, Duration::from_secs(arguments.seconds)).await?;
                let [per_second, p50, p99, cpu] = figures;
                say(&format!("{name}, {} #{}: {per_second:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms, {cpu:.0} µs cpu", group.kind().name(), repeat + 1));
                taken.push(figures);
            }
        }
        for (peer, of_peer) in groups.iter().zip(&taken).skip(1) {
            rows.extend(filled(lines(&name, peer.kind(), clients), &taken[0], of_peer));
        }
    }
    Ok(rows)
}

/// What is shown beside a peer, and what is asked of it: etcd as it comes is the one that targets speak of, and ZooKeeper at full load.
fn lines(name: &str, peer: Kind, clients: usize) -> [Row; 4] {
    let (throughput, latency) = match (peer, clients) {
        (Kind::Etcd, 1) => (Target::RatioAtLeast(1.0), Target::Shown),
        (Kind::Etcd, 1000) => (Target::RatioAtLeast(1.5), Target::RatioAtMost(0.7)),
        (Kind::ZooKeeper, 1000) => (Target::RatioAtLeast(3.0), Target::Shown),
        _ => (Target::Shown, Target::Shown),
    };
    [
        Row::new("A1", name, "writes/s", Better::Higher, throughput),
        Row::new("A1", format!("{name}: p50"), "ms", Better::Lower, Target::Shown),
        Row::new("A1", format!("{name}: p99"), "ms", Better::Lower, latency),
        Row::new("A1", format!("{name}: processor time of the three members"), "µs a write", Better::Lower, Target::Shown),
    ]
    .map(|row| row.beside(peer.name()))
}

/// Writes a second, median and p99 in ms, µs of the members' processors a write.
async fn once(group: &Group, clients: usize, length: Duration) -> anyhow::Result<[f64; 4]> {
    let leader = group.leader(Duration::from_secs(10)).await?;
    let warm_up = Duration::from_secs(1);
    let before = group.cpu();
    let outcome = load::run(group.kind(), group.address(leader), group.tls(), Load { clients, value_bytes: VALUE_BYTES, warm_up, length }).await?;
    let cpu = (group.cpu() - before).as_secs_f64() * length.as_secs_f64() / (length + warm_up).as_secs_f64();
    let ms = |q| quantile(&outcome.latencies_us, q) / 1000.0;
    Ok([outcome.per_second, ms(0.5), ms(0.99), cpu * 1e6 / outcome.latencies_us.len() as f64])
}
