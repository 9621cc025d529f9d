//! A drill's account over small clusters: what counts, and what does not.

use vp_proto::v1::{Gate, Health, SlotRef, SlotStatus};

use super::*;

fn slot(index: u32, generation: u64, instance: &str, phase: Phase) -> SlotStatus {
    let slot = Some(SlotRef { role: "kafka".to_owned(), index });
    SlotStatus { slot, generation, instance_id: instance.to_owned(), phase: phase.into(), ..Default::default() }
}

fn node(id: &str, lifecycle: &str) -> NodeStatus {
    NodeStatus { instance_id: id.to_owned(), lifecycle: lifecycle.to_owned(), ..Default::default() }
}

fn cluster(health: Health, nodes: &[(&str, &str)], slots: Vec<SlotStatus>) -> ClusterStatus {
    let coordinators = (1..=3).map(|id| CoordinatorStatus { id, reachable: true, leader: id == 1, ..Default::default() });
    ClusterStatus {
        leader_id: 1,
        health: health.into(),
        coordinators: coordinators.collect(),
        nodes: nodes.iter().map(|(id, l)| node(id, l)).collect(),
        slots,
        ..Default::default()
    }
}

fn start() -> Healing {
    let before = cluster(Health::Healthy, &[("i-1", "ready"), ("i-2", "ready")], vec![slot(1, 10, "i-1", Phase::Healthy)]);
    Healing::new(Target::node(&before.nodes[0], &before), &before, false)
}

#[test]
fn a_cluster_that_has_not_noticed_is_never_restored() {
    let mut healing = start();
    healing.saw_status(100, &cluster(Health::Healthy, &[("i-1", "ready"), ("i-2", "ready")], vec![slot(1, 10, "i-1", Phase::Healthy)]));
    assert!(!healing.is_over());
    assert_eq!(healing.report().missing[0], "the cluster has not noticed that the instance is gone");
}

#[test]
fn healing_goes_through_its_stages_and_ends_when_the_replacement_has_joined() {
    let mut healing = start();
    healing.saw_status(1_000, &cluster(Health::Degraded, &[("i-1", "lost"), ("i-2", "ready")], vec![slot(1, 10, "i-1", Phase::Healthy)]));
    healing.saw_terminated(1_500);
    healing.saw_status(2_000, &cluster(Health::Degraded, &[("i-1", "fenced"), ("i-2", "ready")], vec![slot(1, 20, "i-2", Phase::Waiting)]));
    assert_eq!(healing.stage(), "fenced; 1 of 1 slots placed, 0 healthy");
    healing.saw_status(3_000, &cluster(Health::Degraded, &[("i-2", "ready")], vec![slot(1, 20, "i-2", Phase::Starting)]));
    healing.saw_status(5_000, &cluster(Health::Healthy, &[("i-2", "ready")], vec![slot(1, 20, "i-2", Phase::Healthy)]));
    assert!(!healing.is_over(), "one node of two is not as before");
    assert_eq!(healing.stage(), "healthy; 1 of 2 nodes are ready: the replacement has not joined");
    healing.saw_status(7_000, &cluster(Health::Healthy, &[("i-2", "ready"), ("i-3", "ready")], vec![slot(1, 20, "i-2", Phase::Healthy)]));
    let report = healing.report();
    let times = [report.detected_ms, report.terminated_ms, report.fenced_ms, report.placed_ms, report.healthy_ms, report.restored_ms];
    assert_eq!(times, [1_000, 1_500, 2_000, 2_000, 5_000, 7_000].map(Some));
    assert_eq!(report.slots[0].started_ms, Some(3_000), "from there on it was the role's own start");
    assert_eq!(report.missing, Vec::<String>::new());
}

#[test]
fn a_slot_that_is_still_where_it_was_or_has_its_old_generation_is_not_placed() {
    let mut healing = start();
    let nodes = [("i-1", "lost"), ("i-2", "ready")];
    healing.saw_status(1_000, &cluster(Health::Degraded, &nodes, vec![slot(1, 11, "i-1", Phase::Healthy)]));
    healing.saw_status(1_100, &cluster(Health::Degraded, &nodes, vec![slot(1, 10, "i-2", Phase::Healthy)]));
    assert_eq!(healing.report().placed_ms, None);
}

#[test]
fn health_that_does_not_last_counts_from_the_last_change() {
    let mut healing = start();
    let nodes = [("i-2", "ready")];
    for (at, phase) in [(1_000, Phase::Healthy), (2_000, Phase::Unhealthy), (3_000, Phase::Healthy), (4_000, Phase::Healthy)] {
        healing.saw_status(at, &cluster(Health::Degraded, &nodes, vec![slot(1, 20, "i-2", phase)]));
    }
    assert_eq!(healing.report().healthy_ms, Some(3_000));
}

#[test]
fn a_start_that_does_not_last_counts_from_the_next() {
    let mut healing = start();
    for (at, phase) in [(1_000, Phase::Starting), (2_000, Phase::Backoff), (3_000, Phase::Starting), (4_000, Phase::Healthy)] {
        healing.saw_status(at, &cluster(Health::Degraded, &[("i-2", "ready")], vec![slot(1, 20, "i-2", phase)]));
    }
    let report = healing.report();
    assert_eq!((report.slots[0].started_ms, report.slots[0].healthy_ms), (Some(3_000), Some(4_000)));
}

#[test]
fn a_gate_counts_from_when_it_was_first_to_when_it_was_last_seen_closed() {
    let mut healing = start();
    let gate = Gate { subject: "kafka-1".to_owned(), closed_by: "session".to_owned(), ..Default::default() };
    let plan = PlanReport { gates: vec![gate], ..Default::default() };
    healing.saw_plan(500, &plan);
    healing.saw_plan(6_500, &plan);
    healing.saw_plan(7_000, &PlanReport::default());
    let wait = Wait { subject: "kafka-1".to_owned(), closed_by: "session".to_owned(), from_ms: 500, waited_ms: 6_000 };
    assert_eq!(healing.report().waits, [wait]);
}

#[test]
fn a_lost_leader_is_detected_by_another_one_leading_and_its_absence_stays_named() {
    let before = cluster(Health::Healthy, &[("i-2", "ready")], vec![]);
    let mut healing = Healing::new(Target::coordinator(&before.coordinators[0]), &before, false);
    let mut after = cluster(Health::NoTolerance, &[("i-2", "ready")], vec![]);
    after.leader_id = 2;
    after.coordinators[0].leader = false;
    after.coordinators[0].reachable = false;
    after.coordinators[1].leader = true;
    healing.saw_status(3_000, &after);
    let report = healing.report();
    assert_eq!((report.detected_ms, report.led_ms, report.restored_ms), (Some(3_000), Some(3_000), None));
    assert_eq!(report.missing[0], "2 of 3 coordinators are reachable");
}

#[test]
fn events_name_the_proof_and_detect_before_the_next_look() {
    let mut healing = start();
    let event =
        |kind: &str, subject: &str, detail: &str| Event { kind: kind.to_owned(), subject: subject.to_owned(), detail: detail.to_owned(), ..Default::default() };
    healing.saw_event(900, &event("node lost", "i-9", ""));
    assert_eq!(healing.report().detected_ms, None, "another node's loss is not ours");
    healing.saw_event(1_200, &event("node fenced", "i-1", "EC2 says terminated"));
    healing.saw_event(1_300, &event("slot vacated", "kafka-1", "terminated"));
    let report = healing.report();
    assert_eq!((report.detected_ms, report.fenced_ms), (Some(1_200), Some(1_200)));
    assert_eq!(report.terminated_ms, Some(1_200), "EC2's word was there before the proof that it is");
    healing.saw_terminated(1_900);
    assert_eq!(healing.report().terminated_ms, Some(1_200), "the drill's own look came later");
    assert_eq!(report.slots[0].proof.as_deref(), Some("terminated"));
}

#[test]
fn a_lost_node_without_proof_is_not_restored_even_when_its_replacement_has_joined() {
    let mut healing = start();
    let moved = vec![slot(1, 20, "i-2", Phase::Healthy)];
    let nodes = [("i-1", "lost"), ("i-2", "ready"), ("i-3", "ready")];
    healing.saw_status(4_000, &cluster(Health::Healthy, &nodes, moved.clone()));
    assert_eq!(healing.report().missing, ["there is no proof yet that the old instance is gone"]);
    healing.saw_status(5_000, &cluster(Health::Healthy, &[("i-1", "fenced"), ("i-2", "ready"), ("i-3", "ready")], moved));
    assert_eq!(healing.report().restored_ms, Some(5_000));
}
