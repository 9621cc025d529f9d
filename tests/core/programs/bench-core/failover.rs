//! A4: the leader is killed with SIGKILL; how long until the next write is acknowledged? Both survivors are asked all the time, with a fresh write every
//! 10 ms: a client stuck in one call must not be what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::future::select_all;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use vp_core_tests::channel::Tls;
use vp_core_tests::figures::{Better, Row, Target, quantile};
use vp_core_tests::group::{Group, Kind, MEMBERS};
use vp_core_tests::writer::Writer;

use crate::{Arguments, say};

const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_WRITES: Duration = Duration::from_millis(10);

pub async fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("a4-").tempdir_in(&arguments.folder)?;
    let mut vp = Group::start(Kind::Vp, arguments.setting()?, folder.path()).await?;
    let mut etcd = Group::start(Kind::Etcd, arguments.setting()?, folder.path()).await?;
    let mut gaps: [Vec<u32>; 2] = Default::default();
    for kill in 0..arguments.kills {
        for (group, gaps) in [&mut vp, &mut etcd].into_iter().zip(&mut gaps) {
            let gap = once(group).await?;
            say(&format!("leader killed, {} #{}: next commit after {} ms", group.kind().name(), kill + 1, gap.as_millis()));
            gaps.push(u32::try_from(gap.as_micros()).unwrap_or(u32::MAX));
        }
    }
    // A repeat is a part of the kills, for the median; a p99 wants all of them.
    let part = arguments.kills.div_ceil(arguments.repeats.max(1)).max(1);
    let row = |what: String, q, part, target| {
        let of = |gaps: &[u32]| {
            let mut gaps = gaps.to_vec();
            gaps.sort_unstable();
            quantile(&gaps, q) / 1000.0
        };
        let mut row = Row::new("A4", format!("leader killed → next commit: {what}"), "ms", Better::Lower, target).beside(Kind::Etcd.name());
        (row.vp, row.peer) = (gaps[0].chunks(part).map(of).collect(), gaps[1].chunks(part).map(of).collect());
        row
    };
    Ok(vec![
        row(format!("p50 of {part} kills"), 0.5, part, Target::AtMost(400.0)),
        row(format!("p99 of all {} kills", arguments.kills), 0.99, arguments.kills.max(1), Target::AtMost(1000.0)),
    ])
}

async fn once(group: &mut Group) -> anyhow::Result<Duration> {
    let leader = group.leader(PATIENCE).await?;
    let survivors: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
    for member in &survivors {
        caught_up(group, leader, *member).await?;
    }
    group.kill(leader);
    let killed = Instant::now();
    let probes: Vec<JoinHandle<Instant>> = survivors.iter().map(|member| tokio::spawn(probe(group.kind(), group.address(*member), group.tls()))).collect();
    let aborts: Vec<_> = probes.iter().map(JoinHandle::abort_handle).collect();
    let first = timeout(PATIENCE, select_all(probes)).await;
    aborts.iter().for_each(tokio::task::AbortHandle::abort);
    let Ok((answered, ..)) = first else { bail!("no commit within {} s of the leader's death", PATIENCE.as_secs()) };
    let gap = answered? - killed;
    group.start_member(leader)?;
    let now = group.leader(PATIENCE).await?;
    caught_up(group, now, leader).await?;
    Ok(gap)
}

async fn caught_up(group: &Group, leader: usize, member: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let (Ok(wanted), Ok(reached)) = (group.reached(leader).await, group.reached(member).await)
            && reached >= wanted
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("member {member} did not catch up within {} s", PATIENCE.as_secs())
}

/// Asks one survivor until a write is acknowledged; each attempt is a task of its own, dropped with the channel's sender.
async fn probe(kind: Kind, address: SocketAddr, tls: Tls) -> Instant {
    let (done, mut first) = tokio::sync::mpsc::channel(1);
    let mut ticks = interval(BETWEEN_WRITES);
    let writer = Writer::lazy(kind, address, tls);
    loop {
        tokio::select! {
            answered = first.recv() => if let Some(answered) = answered { return answered },
            _ = ticks.tick() => {
                let Some(mut writer) = writer.clone() else { continue };
                let done = done.clone();
                tokio::spawn(async move {
                    if let Ok(Ok(())) = timeout(Duration::from_secs(2), writer.write("probe", "x")).await {
                        let _ = done.try_send(Instant::now());
                    }
                });
            }
        }
    }
}
