//! A1: durable writes of 256 B with 1, 64 and 1,000 clients; both groups live side by side on one disk and are loaded in turn, never together.

use std::time::Duration;

use vp_core_tests::figures::{Better, Row, Target, quantile};
use vp_core_tests::group::{Group, Kind};
use vp_core_tests::load::{self, Load};

use crate::{Arguments, say};

const VALUE_BYTES: usize = 256;
const CLIENTS: [usize; 3] = [1, 64, 1000];

pub async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("a1-").tempdir_in(&arguments.folder)?;
    let vp = Group::start(Kind::Vp, arguments.setting()?, folder.path()).await?;
    let etcd = Group::start(Kind::Etcd, arguments.setting()?, folder.path()).await?;
    let mut rows = Vec::new();
    for clients in CLIENTS {
        let (throughput, latency) = match clients {
            1 => (Target::RatioAtLeast(1.0), Target::Shown),
            1000 => (Target::RatioAtLeast(1.5), Target::RatioAtMost(0.7)),
            _ => (Target::Shown, Target::Shown),
        };
        let name = format!("durable writes, 256 B, {clients} client{}", if clients == 1 { "" } else { "s" });
        let mut all = [
            Row::new("A1", &name, "writes/s", Better::Higher, throughput),
            Row::new("A1", format!("{name}: p50"), "ms", Better::Lower, Target::Shown),
            Row::new("A1", format!("{name}: p99"), "ms", Better::Lower, latency),
            Row::new("A1", format!("{name}: processor time of the three members"), "µs a write", Better::Lower, Target::Shown),
        ];
        for repeat in 0..arguments.repeats {
            for group in [&vp, &etcd] {
                let figures = once(group, clients, Duration::from_secs(arguments.seconds)).await?;
                say(&format!(
                    "{name}, {} #{}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.0} µs cpu",
                    group.kind().name(),
                    repeat + 1,
                    figures[0],
                    figures[1],
                    figures[2],
                    figures[3]
                ));
                for (row, figure) in all.iter_mut().zip(figures) {
                    if group.kind() == Kind::Vp { row.vp.push(figure) } else { row.etcd.push(figure) }
                }
            }
        }
        rows.extend(all);
    }
    Ok(rows)
}

async fn once(group: &Group, clients: usize, length: Duration) -> anyhow::Result<[f64; 4]> {
    let leader = group.leader(Duration::from_secs(10)).await?;
    let warm_up = Duration::from_secs(1);
    let before = group.cpu();
    let outcome = load::run(group.kind(), group.address(leader), group.tls(), Load { clients, value_bytes: VALUE_BYTES, warm_up, length }).await?;
    let cpu = (group.cpu() - before).as_secs_f64() * length.as_secs_f64() / (length + warm_up).as_secs_f64();
    let ms = |q| quantile(&outcome.latencies_us, q) / 1000.0;
    Ok([outcome.per_second, ms(0.5), ms(0.99), cpu * 1e6 / outcome.latencies_us.len() as f64])
}
