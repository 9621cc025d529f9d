//! A5: one full plan: every slot is vacant, every node is ready. The shipped planner, called as the leader calls it.

use std::time::Instant;

use vp_cluster::{
    ClusterState, Command, Observations, apply,
    observe::NodeSeen,
    planner,
    state::{Fencing, Membership, RoleSpec, Spec},
};
use vp_core_tests::figures::{Better, Row, Target};

use crate::{Arguments, say};

const ZONES: [&str; 3] = ["us-east-1a", "us-east-1b", "us-east-1c"];

/// Nodes, slots, and how long a plan may take, ms.
const SIZES: [(u32, u32, Target); 3] = [(2500, 300, Target::Shown), (5000, 600, Target::AtMost(50.0)), (10_000, 1200, Target::AtMost(200.0))];

pub fn measure(arguments: &Arguments) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (nodes, slots, target) in SIZES {
        let (state, obs) = cluster(nodes, slots)?;
        let mut full = Row::new("A5", format!("full plan, {nodes} nodes × {slots} slots"), "ms", Better::Lower, target);
        let mut empty = Row::new("A5", format!("the same when nothing is to be done, {nodes} nodes × {slots} slots"), "ms", Better::Lower, Target::Shown);
        let mut settled = state.clone();
        for repeat in 0..arguments.repeats {
            let begun = Instant::now();
            let (plan, _) = planner::plan(&state, &obs);
            full.vp.push(begun.elapsed().as_secs_f64() * 1000.0);
            anyhow::ensure!(plan.actions.len() == slots as usize, "{} actions for {slots} slots", plan.actions.len());
            if repeat == 0 {
                let index = settled.revision.0 + 1;
                apply(&mut settled, index, 0, &Command::Plan(plan)).map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
            }
            let begun = Instant::now();
            let (plan, _) = planner::plan(&settled, &obs);
            empty.vp.push(begun.elapsed().as_secs_f64() * 1000.0);
            anyhow::ensure!(plan.actions.is_empty(), "a planned state is planned again: {} actions", plan.actions.len());
        }
        say(&format!("plan of {nodes} × {slots}: {:?} ms, again {:?} ms", full.vp, empty.vp));
        rows.extend([full, empty]);
    }
    Ok(rows)
}

/// All nodes heard, nothing placed; three roles of a third of the slots each.
fn cluster(nodes: u32, slots: u32) -> anyhow::Result<(ClusterState, Observations)> {
    let role = |fencing, fenced_sinks| RoleSpec {
        min: 1,
        pref: slots / 3,
        max: slots,
        fencing,
        fenced_sinks,
        volume: false,
        membership: Membership::None,
        after: Vec::new(),
        spread_zones: true,
        memory_mib: 500,
    };
    let roles = [
        ("driver".into(), role(Fencing::Exclusive, true)),
        ("store".into(), role(Fencing::Quorum, false)),
        ("worker".into(), role(Fencing::Disposable, false)),
    ];
    let mut commands = vec![Command::SetSpec { spec: Spec { roles: roles.into(), volume_wait_ms: 60_000, ..Spec::default() } }];
    let mut obs = Observations { now_ms: 100_000, lease_ms: 4000, ..Observations::default() };
    for number in 0..nodes {
        let node = format!("i-{number:017x}");
        obs.nodes.insert(node.as_str().into(), NodeSeen { heard_ms: Some(99_000), acknowledged_ms: Some(99_000), ..NodeSeen::default() });
        commands.push(Command::RegisterNode {
            node: node.as_str().into(),
            address: format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255),
            zone: ZONES[number as usize % ZONES.len()].into(),
            instance_type: "t3.small".to_owned(),
            memory_mib: 2048,
            cpu_millis: 2000,
            agent_version: "1".to_owned(),
        });
    }
    let mut state = ClusterState::default();
    for (index, command) in (1..).zip(&commands) {
        apply(&mut state, index, 0, command).map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    }
    Ok((state, obs))
}
