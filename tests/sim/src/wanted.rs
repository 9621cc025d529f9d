//! What is wanted of every simulated cluster: roles of each fencing class, with and without disks, in an order.

use vp_cluster::state::{Fencing, Membership, Policy, RoleSpec, Spec};

use crate::scenario::Plan;

fn role(pref: u32, fencing: Fencing, membership: Membership, volume: bool, after: &[&str]) -> RoleSpec {
    RoleSpec {
        min: 1,
        pref,
        max: 5,
        fencing,
        fenced_sinks: false,
        volume,
        membership,
        after: after.iter().map(|role| (*role).into()).collect(),
        spread_zones: true,
        memory_mib: 200,
    }
}

pub fn spec(plan: &Plan) -> Spec {
    let mut stream = role(1, Fencing::Exclusive, Membership::None, false, &["kafka"]);
    stream.fenced_sinks = true;
    let roles = [
        ("zookeeper", role(3, Fencing::Quorum, Membership::ZooKeeper, true, &[])),
        ("kafka", role(3, Fencing::Quorum, Membership::Kafka, true, &["zookeeper"])),
        ("stream", stream),
        ("vault", role(1, Fencing::Exclusive, Membership::None, true, &[])),
        ("worker", role(2, Fencing::Disposable, Membership::None, false, &[])),
    ];
    Spec { roles: roles.map(|(name, role)| (name.into(), role)).into(), volume_wait_ms: plan.volume_wait_ms, policy: Policy::default() }
}
