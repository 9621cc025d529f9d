//! One word for how well it is, and how many more losses each service survives.
mod situation;
use situation::Situation;
use vp_cluster::{
    Command,
    health::{Coordinators, Health, judge, service, serving},
    liveness::Brake,
    observe::Phase,
};

const ALL: Coordinators = Coordinators { wanted: 3, reachable: 3 };

fn health(s: &Situation) -> Health {
    judge(&s.state, &s.obs, ALL, &Brake::Open).0
}

#[test]
fn a_settled_cluster_is_healthy_and_gives_no_reason() {
    let s = Situation::well();
    assert_eq!(judge(&s.state, &s.obs, ALL, &Brake::Open), (Health::Healthy, Vec::new()));
}

#[test]
fn coordinators_table() {
    let s = Situation::well();
    for (wanted, reachable, health) in [
        (3, 3, Health::Healthy),
        (3, 2, Health::NoTolerance),
        (3, 1, Health::QuorumLost),
        (5, 5, Health::Healthy),
        (5, 4, Health::Degraded),
        (5, 3, Health::NoTolerance),
        (5, 2, Health::QuorumLost),
        (1, 1, Health::Healthy),
        (1, 0, Health::QuorumLost),
    ] {
        assert_eq!(judge(&s.state, &s.obs, Coordinators { wanted, reachable }, &Brake::Open).0, health, "{reachable} of {wanted}");
    }
}

#[test]
fn members_table() {
    for (ids, expected) in [
        (&["zookeeper-1"][..], Health::NoTolerance),
        (&["zookeeper-1", "zookeeper-2"][..], Health::QuorumLost),
        (&["kafka-1"][..], Health::NoTolerance), // min.insync.replicas is 2
        (&["kafka-1", "kafka-3"][..], Health::QuorumLost),
        (&["worker-1"][..], Health::Degraded),
        (&["worker-1", "worker-2"][..], Health::Degraded), // waits, loses nothing
        (&["stream-1"][..], Health::Degraded),
    ] {
        let mut s = Situation::well();
        for id in ids {
            s.phase(id, Phase::Unhealthy);
        }
        assert_eq!(health(&s), expected, "{ids:?}");
    }
}

#[test]
fn only_healthy_counts_as_healthy() {
    for phase in [Phase::Unknown, Phase::Waiting, Phase::Starting, Phase::Unhealthy, Phase::Stopping, Phase::Stopped, Phase::Backoff] {
        let mut s = Situation::well();
        s.phase("stream-1", phase);
        assert!(!serving(&s.state, &s.obs, &"stream".into()), "{phase:?}");
    }
}

#[test]
fn a_report_of_an_older_generation_counts_for_nothing() {
    let mut s = Situation::well();
    let holder = s.holder("stream-1").expect("held");
    s.fence(&holder);
    s.carry_out();
    assert!(s.holder("stream-1").is_some());
    assert!(!serving(&s.state, &s.obs, &"stream".into()), "the old holder's last word");
}

#[test]
fn a_slot_on_its_way_out_is_not_counted_on() {
    let mut s = Situation::well();
    s.lose_disk("zookeeper-1");
    s.carry_out();
    let found = service(&s.state, &s.obs, &"zookeeper".into()).expect("service");
    assert_eq!((found.wanted, found.placed, found.healthy, found.tolerates, found.serving), (3, 3, 2, 0, true));
}

#[test]
fn tolerance_is_how_many_more_may_go() {
    let s = Situation::well();
    for (role, tolerates) in [("zookeeper", 1), ("kafka", 1), ("worker", 1), ("stream", 0), ("vault", 0)] {
        assert_eq!(service(&s.state, &s.obs, &role.into()).expect("service").tolerates, tolerates, "{role}");
    }
}

#[test]
fn a_draining_or_lost_or_terminated_node_is_a_reason() {
    let mut s = Situation::well();
    s.ok(Command::SetDraining { node: "i-1".into(), draining: true });
    s.lose(&"i-2".into());
    s.fence(&"i-4".into());
    let (health, reasons) = judge(&s.state, &s.obs, ALL, &Brake::Open);
    assert_eq!(health, Health::Degraded);
    assert_eq!(reasons.len(), 3, "{reasons:?}");
}

#[test]
fn a_closed_brake_leaves_no_tolerance() {
    let s = Situation::well();
    let brake = Brake::Closed { silent: 3, of: 5, place: "the cluster".into() };
    let (health, reasons) = judge(&s.state, &s.obs, ALL, &brake);
    assert_eq!(health, Health::NoTolerance);
    assert!(reasons[0].contains("3 of 5 nodes of the cluster"));
}

#[test]
fn a_role_that_is_not_wanted_has_no_service() {
    let s = Situation::well();
    assert_eq!(service(&s.state, &s.obs, &"etcd".into()), None);
    assert!(!serving(&s.state, &s.obs, &"etcd".into()));
}
