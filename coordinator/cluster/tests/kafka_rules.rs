//! `roles.md` "Kafka", rule by rule: a test for each, which is to fail when its rule is taken out (`docs/planted/core.md` says which were seen to).
#[macro_use]
mod situation;
use situation::{Situation, node_in, slot, spec};
use vp_cluster::{
    Action, Command, gates,
    health::Serving,
    kafka,
    observe::{PartitionSeen, Phase},
    round,
};

const PROPERTIES: &str = include_str!("../../../roles/kafka/server.properties.j2");

fn has(line: &str) {
    assert!(PROPERTIES.lines().any(|have| have == line), "{line}");
}

fn partition(s: &mut Situation, name: &str, number: u32, replicas: &[u32], in_sync: &[u32]) {
    let kafka = s.obs.kafka.as_mut().expect("read");
    kafka.partitions.insert((name.into(), number), PartitionSeen { replicas: replicas.to_vec(), in_sync: in_sync.to_vec() });
    kafka.in_sync.extend(in_sync);
}

/// The slot's disk is gone and so is its process; since 0 it waits for a new one.
fn diskless(s: &mut Situation, id: &str) {
    s.lose_disk(id);
    s.word(id);
    s.obs.zone_empty_since_ms.insert(slot(id), s.obs.now_ms);
}

fn granted(s: &Situation, id: &str) -> Option<u32> {
    s.plan().into_iter().find_map(|action| match action {
        Action::Grant { slot: granted, member_id, .. } if granted == slot(id) => Some(member_id),
        _ => None,
    })
}

/// A spare node in each zone, and one of the brokers asked to leave.
fn leaving() -> Situation {
    let mut s = Situation::well();
    for (id, zone) in [("i-6", "a"), ("i-7", "b"), ("i-8", "c")] {
        s.ok(node_in(id, zone));
    }
    s.ok(Command::MoveSlot { slot: slot("kafka-1"), to: None, empty_disk: false });
    assert!(releases(&s));
    s
}

fn releases(s: &Situation) -> bool {
    s.plan().contains(&Action::Release { slot: slot("kafka-1") })
}

#[test]
fn rule_1_a_brokers_id_is_its_slots_and_stays_with_its_disk() {
    let mut s = Situation::well();
    for index in 1..=3 {
        assert_eq!(s.state.slots[&slot(&format!("kafka-{index}"))].member_id, index);
    }
    partition(&mut s, "jobs", 0, &[1, 2, 3], &[1, 2, 3]);
    s.word("kafka-1");
    assert_eq!(granted(&s, "kafka-1"), Some(1), "same disk, same id, whatever is in sync");
    has("broker.id={{ slot.member_id }}");
    has("broker.id.generation.enable=false");
}

#[test]
fn rule_2_the_same_id_on_an_empty_disk_only_when_it_is_in_no_in_sync_set() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    partition(&mut s, "jobs", 0, &[1, 2, 3], &[1]);
    assert_eq!(granted(&s, "kafka-1"), None);
    s.obs.kafka = None;
    assert_eq!(granted(&s, "kafka-1"), None, "it cannot be read");
    s.obs.kafka = Some(Default::default());
    assert_eq!(granted(&s, "kafka-1"), Some(1));
}

#[test]
fn rule_2_an_id_that_stays_in_sync_is_retired_after_the_wait_and_a_fresh_one_joins() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    partition(&mut s, "jobs", 0, &[1, 2, 3], &[1]);
    s.obs.now_ms += 59_999;
    assert_eq!(granted(&s, "kafka-1"), None);
    s.obs.now_ms += 1;
    s.carry_out();
    let fresh = &s.state.slots[&slot("kafka-1")];
    assert_eq!((fresh.member_id, fresh.retired_member), (1001, Some(1)));
}

/// kafka-1 was replaced by broker 1001 and serves.
fn succeeded() -> Situation {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    partition(&mut s, "jobs", 0, &[1, 2, 3], &[1]);
    s.obs.now_ms += 60_000;
    s.carry_out();
    s.phase("kafka-1", Phase::Healthy);
    s
}

#[test]
fn rule_2_partitions_leave_the_dead_id_throttled_and_in_its_place_comes_the_fresh_one() {
    let s = succeeded();
    let step = kafka::next(&s.state, &s.obs).expect("due");
    assert_eq!(step.partitions, [(("jobs".to_owned(), 0), vec![1001, 2, 3])].into());
    assert!(step.throttle_bytes_per_s > 0);
}

#[test]
fn rule_2_the_dead_id_is_retired_once_it_holds_nothing() {
    let mut s = succeeded();
    assert_eq!(kafka::removed(&s.state, &s.obs), []);
    *s.obs.kafka.as_mut().expect("read") = Default::default();
    partition(&mut s, "jobs", 0, &[1001, 2, 3], &[1001, 2, 3]);
    let removed = kafka::removed(&s.state, &s.obs);
    assert_eq!(removed, [Command::MemberRemoved { slot: slot("kafka-1"), member_id: 1 }]);
    s.ok(removed[0].clone());
    assert_eq!(kafka::next(&s.state, &s.obs), None);
}

#[test]
fn rule_2_a_fresh_id_that_does_not_serve_yet_is_no_successor() {
    let mut s = succeeded();
    s.phase("kafka-1", Phase::Starting);
    assert_eq!(kafka::next(&s.state, &s.obs), None, "2 and 3 have their copies, nobody else could");
    let gate = kafka::waits(&s.state, &s.obs).expect("a closed gate");
    assert!(gate.closed_by.contains("no other healthy broker"), "{gate:?}");
    assert!(round::look(&s.state, &s.obs).gates.contains(&gate));
}

#[test]
fn rule_2_one_step_moves_few_partitions_and_the_next_waits_for_it() {
    let mut s = succeeded();
    for number in 0..40 {
        partition(&mut s, "jobs", number, &[1, 2, 3], &[2, 3]);
    }
    assert_eq!(kafka::next(&s.state, &s.obs).expect("due").partitions.len(), kafka::MOVES_AT_ONCE);
    s.obs.kafka.as_mut().expect("read").reassigning = true;
    assert_eq!(kafka::next(&s.state, &s.obs), None);
    assert!(kafka::waits(&s.state, &s.obs).is_some());
}

#[test]
fn rule_3_a_replacement_waits_until_the_old_session_has_expired() {
    let mut s = Situation::well();
    s.obs.kafka.as_mut().expect("read").registered.insert(1, "at-i-99".into());
    let gate = gates::start(&Serving::new(&s.state, &s.obs), &slot("kafka-1")).expect("closed");
    assert!(gate.closed_by.contains("at-i-99 is still live"));
    has("zookeeper.session.timeout.ms=6000");
}

#[test]
fn rule_3_an_empty_disk_waits_for_the_old_session_too() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    s.obs.kafka.as_mut().expect("read").registered.insert(1, "at-i-99".into());
    assert_eq!(granted(&s, "kafka-1"), None);
    s.obs.kafka.as_mut().expect("read").registered.clear();
    assert_eq!(granted(&s, "kafka-1"), Some(1));
}

type Change = fn(&mut Situation);

/// What keeps a live broker where it is.
fn keeps((change, said): (Change, &str)) {
    let mut s = leaving();
    change(&mut s);
    assert!(!releases(&s));
    assert!(s.gates().contains(said), "{}", s.gates());
}

table! { keeps:
    rule_4_an_offline_partition_keeps_a_live_broker => (|s| s.obs.kafka.as_mut().expect("read").offline = 1, "1 offline"),
    rule_4_an_under_replicated_partition_keeps_it => (|s| s.obs.kafka.as_mut().expect("read").under_replicated = 1, "1 partitions are under-replicated"),
    rule_4_a_partition_at_its_minimum_keeps_it => (|s| s.obs.kafka.as_mut().expect("read").at_min_in_sync = 1, "refuse writes with one replica fewer"),
    rule_4_what_cannot_be_read_keeps_it => (|s| s.obs.kafka = None, "cannot be read"),
    rule_4_another_broker_that_is_unwell_keeps_it => (|s| s.phase("kafka-3", Phase::Starting), "kafka-3 of the same quorum is not healthy"),
    rule_6_a_broker_that_recovers_its_log_is_not_stopped => (|s| s.phase("kafka-1", Phase::Starting), "recovering its log"),
}

#[test]
fn rule_4_one_broker_at_a_time() {
    let mut s = leaving();
    s.ok(Command::MoveSlot { slot: slot("kafka-2"), to: None, empty_disk: false });
    let released = s.plan().iter().filter(|action| matches!(action, Action::Release { .. })).count();
    assert_eq!(released, 1);
}

#[test]
fn rule_4_the_repair_of_a_dead_broker_does_not_wait_for_full_replication() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    let kafka = s.obs.kafka.as_mut().expect("read");
    (kafka.under_replicated, kafka.at_min_in_sync) = (6, 6);
    assert_eq!(granted(&s, "kafka-1"), Some(1), "with it dead, every partition is at its minimum");
}

#[test]
fn rule_4_the_repair_of_a_dead_broker_waits_while_another_that_has_data_is_down() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    s.phase("kafka-2", Phase::Backoff);
    assert_eq!(granted(&s, "kafka-1"), None);
    assert!(s.gates().contains("kafka-2 is down too"), "{}", s.gates());
}

#[test]
fn rule_4_two_brokers_without_disks_do_not_wait_for_each_other() {
    let mut s = Situation::well();
    diskless(&mut s, "kafka-1");
    diskless(&mut s, "kafka-2");
    assert_eq!((granted(&s, "kafka-1"), granted(&s, "kafka-2")), (Some(1), Some(2)));
}

#[test]
fn rule_5_internal_topics_have_three_copies_two_written_none_unclean_and_racks_are_zones() {
    for line in [
        "default.replication.factor=3",
        "min.insync.replicas=2",
        "offsets.topic.replication.factor=3",
        "transaction.state.log.replication.factor=3",
        "transaction.state.log.min.isr=2",
        "unclean.leader.election.enable=false",
        "broker.rack={{ node.zone }}",
        "controlled.shutdown.enable=true",
    ] {
        has(line);
    }
}

/// Four brokers, one too many.
fn shrinking() -> Situation {
    let mut wanted = spec();
    wanted.roles.get_mut(&"kafka".into()).expect("role").pref = 4;
    let mut s = Situation::of(wanted, "abcab");
    s.settle();
    s.ok(Command::Scale { role: "kafka".into(), pref: 3 });
    s
}

#[test]
fn rule_6_a_broker_too_many_goes_only_when_it_holds_no_replica() {
    let mut s = shrinking();
    partition(&mut s, "jobs", 0, &[4, 2, 3], &[4, 2, 3]);
    assert_eq!(s.plan(), []);
    assert!(s.gates().contains("1 partitions have a replica on broker 4"));
    assert_eq!(kafka::next(&s.state, &s.obs).expect("due").partitions[&("jobs".to_owned(), 0)], [1, 2, 3]);
    *s.obs.kafka.as_mut().expect("read") = Default::default();
    assert_eq!(s.carry_out(), [Action::Release { slot: slot("kafka-4") }]);
    s.word("kafka-4");
    assert_eq!(s.carry_out(), [Action::Remove { slot: slot("kafka-4") }]);
}

#[test]
fn rule_6_what_leaves_a_broker_goes_where_it_spreads_over_zones_and_then_to_who_holds_least() {
    let mut wanted = spec();
    wanted.roles.get_mut(&"kafka".into()).expect("role").pref = 5;
    let mut s = Situation::of(wanted, "abcab");
    s.settle();
    s.ok(Command::Scale { role: "kafka".into(), pref: 4 });
    let zones: Vec<_> = (1..=4).map(|id| s.zone_of(&format!("kafka-{id}"))).collect();
    let alike = |x: u32, y: u32| x != y && zones[x as usize - 1] == zones[y as usize - 1];
    // Four brokers stay, in three zones: two of them share one.
    let (stays, beside) = (1..=4).flat_map(|x| (1..=4).map(move |y| (x, y))).find(|(x, y)| alike(*x, *y)).expect("two share a zone");
    let elsewhere = (1..=4).find(|id| ![stays, beside].contains(id)).expect("another");
    partition(&mut s, "jobs", 0, &[5, stays], &[5, stays]);
    // Who would spread it holds more.
    partition(&mut s, "more", 0, &[elsewhere], &[elsewhere]);
    for id in (1..=4).filter(|id| ![stays, beside, elsewhere].contains(id)) {
        partition(&mut s, "most", id, &[id], &[id]);
        partition(&mut s, "most", id + 10, &[id], &[id]);
    }
    let to = kafka::next(&s.state, &s.obs).expect("due").partitions[&("jobs".to_owned(), 0)][0];
    assert_eq!(to, elsewhere, "{beside} holds nothing, but is in the zone of {stays}");
}

#[test]
fn rule_7_zookeepers_address_is_a_list_of_slot_names_that_outlives_moves() {
    has("zookeeper.connect={{ members.zookeeper | map(attribute=\"name\") | join(\":2181,\") }}:2181");
    assert!(!PROPERTIES.contains("attribute=\"address\""));
}
