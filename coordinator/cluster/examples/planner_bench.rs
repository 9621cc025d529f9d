//! How long a full plan takes (target A5): for each size and situation the median and the worst of several runs, in milliseconds, and what the plan does.
//!
//! `cargo run --release -p vp-cluster --example planner_bench [-- --repeats 15] [-- --json]`

use std::{collections::BTreeMap, time::Instant};

use vp_cluster::{
    ClusterState, Command, Observations, RoleName, SlotId, VolumeId, apply,
    observe::{KafkaSeen, Phase, SlotSeen, VolumeSeen},
    planner,
    state::{Fencing, Membership, RoleSpec, Spec},
};

/// Nodes and slots.
const SIZES: [(usize, u32); 4] = [(1_250, 150), (2_500, 300), (5_000, 600), (10_000, 1_200)];
const ZONES: [&str; 3] = ["a", "b", "c"];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let json = words.iter().any(|word| word == "--json");
    let repeats = words.iter().position(|word| word == "--repeats").and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(15);
    if !json {
        println!("{:>7} {:>6}  {:<22} {:>9} {:>9}  {:>7}", "nodes", "slots", "situation", "median ms", "worst ms", "actions");
    }
    for (nodes, slots) in SIZES {
        let (new, settled) = (empty(nodes, slots), settled(nodes, slots));
        let lost = lost(&settled);
        for (name, (state, obs)) in [("everything new", &new), ("1 % of nodes lost", &lost), ("all healthy", &settled)] {
            let (times_ms, actions) = measure(state, obs, repeats);
            let (median, worst) = (times_ms[times_ms.len() / 2], times_ms[times_ms.len() - 1]);
            if json {
                println!(r#"{{"nodes":{nodes},"slots":{slots},"situation":"{name}","median_ms":{median:.3},"worst_ms":{worst:.3},"actions":{actions}}}"#);
            } else {
                println!("{nodes:>7} {slots:>6}  {name:<22} {median:>9.2} {worst:>9.2}  {actions:>7}");
            }
        }
    }
}

fn measure(state: &ClusterState, obs: &Observations, repeats: usize) -> (Vec<f64>, usize) {
    let mut actions = 0;
    let mut times: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let begun = Instant::now();
            let (plan, _) = std::hint::black_box(planner::plan(state, obs));
            actions = plan.actions.len();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times, actions)
}

/// An ensemble of five; of the other slots a third are brokers, a third workers, and the rest twelve services of their own.
fn spec(slots: u32) -> Spec {
    let role = |pref, fencing, membership, volume| RoleSpec {
        min: 1,
        pref,
        max: pref,
        fencing,
        fenced_sinks: true,
        volume,
        membership,
        after: Vec::new(),
        spread_zones: true,
        memory_mib: 900,
    };
    let third = (slots - 5) / 3;
    let services = slots - 5 - 2 * third;
    let mut roles: BTreeMap<RoleName, RoleSpec> = BTreeMap::from([
        ("zookeeper".into(), role(5, Fencing::Quorum, Membership::ZooKeeper, true)),
        ("kafka".into(), role(third, Fencing::Quorum, Membership::Kafka, true)),
        ("worker".into(), role(third, Fencing::Disposable, Membership::None, false)),
    ]);
    for service in 0..12 {
        let pref = services / 12 + u32::from(service < services % 12);
        roles.insert(format!("service-{service:02}").as_str().into(), role(pref, Fencing::Exclusive, Membership::None, false));
    }
    Spec { roles, volume_wait_ms: 60_000, ..Spec::default() }
}

fn take(state: &mut ClusterState, command: &Command) {
    let index = state.revision.0 + 1;
    if let Err(refused) = apply(state, index, 0, command) {
        panic!("{command:?}: {refused}");
    }
}

/// Every node there, nothing granted.
fn empty(nodes: usize, slots: u32) -> (ClusterState, Observations) {
    let mut state = ClusterState::default();
    take(&mut state, &Command::SetSpec { spec: spec(slots) });
    for index in 0..nodes {
        let join = Command::RegisterNode {
            node: format!("i-{index:017x}").as_str().into(),
            address: format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255),
            zone: ZONES[index % ZONES.len()].into(),
            instance_type: "m6i.large".to_owned(),
            memory_mib: 8192,
            cpu_millis: 2000,
            agent_version: "1".to_owned(),
        };
        take(&mut state, &join);
    }
    (state, Observations { now_ms: 1_000_000, lease_ms: 4000, kafka: Some(KafkaSeen::default()), ..Default::default() })
}

/// Everything placed, with its disk, and healthy.
fn settled(nodes: usize, slots: u32) -> (ClusterState, Observations) {
    let (mut state, mut obs) = empty(nodes, slots);
    let plan = planner::plan(&state, &obs).0;
    take(&mut state, &Command::Plan(plan));
    let ids: Vec<SlotId> = state.slots.keys().cloned().collect();
    for id in ids {
        let slot = state.slots[&id].clone();
        let Some((holder, node)) = state.holder(&slot).map(|(id, node)| (id.clone(), node.clone())) else { continue };
        if state.spec.roles[&id.role].volume {
            let volume = VolumeId(format!("vol-{id}"));
            obs.volumes.insert(volume.clone(), VolumeSeen::AttachedTo(holder));
            take(&mut state, &Command::VolumeCreated { slot: id.clone(), generation: slot.generation, volume, zone: node.zone });
        }
        take(&mut state, &Command::SlotUsed { slot: id.clone(), generation: slot.generation });
        obs.slots.insert(id, SlotSeen { generation: slot.generation, phase: Phase::Healthy, ..Default::default() });
    }
    (state, obs)
}

/// Of those that hold something, as many as one node in a hundred are terminated.
fn lost((state, obs): &(ClusterState, Observations)) -> (ClusterState, Observations) {
    let mut state = state.clone();
    let mut holders: Vec<_> = state.slots.values().filter_map(|slot| slot.holder.clone()).collect();
    holders.sort();
    holders.dedup();
    let gone = state.nodes.len() / 100;
    for node in holders.iter().step_by((holders.len() / gone).max(1)).take(gone) {
        take(&mut state, &Command::NodeFenced { node: node.clone() });
    }
    (state, obs.clone())
}
