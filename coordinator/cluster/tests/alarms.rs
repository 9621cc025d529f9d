//! What somebody has to look at. (Quorum roles below their minimum: `zookeeper_rules.rs`, rule 9.)
mod situation;
use situation::{Situation, slot};
use vp_cluster::{
    Generation,
    alarms::{ENDS_THAT_COUNT, raised},
};

fn with_ends(ends_in_a_row: u32) -> Situation {
    let mut s = Situation::well();
    s.obs.slots.get_mut(&slot("kafka-1")).expect("it is reported").ends_in_a_row = ends_in_a_row;
    s
}

#[test]
fn a_slot_that_ends_again_and_again_is_an_alarm_and_one_that_ended_for_once_is_none() {
    let s = with_ends(ENDS_THAT_COUNT - 1);
    assert_eq!(raised(&s.state, &s.obs), []);
    let s = with_ends(ENDS_THAT_COUNT);
    let alarms = raised(&s.state, &s.obs);
    assert_eq!(alarms.len(), 1);
    assert_eq!(alarms[0].about, "kafka-1");
    let holder = s.state.slots[&slot("kafka-1")].holder.as_ref().expect("it is held");
    assert!(alarms[0].sentence.starts_with(&format!("kafka-1 has ended 5 times in a row on {holder}")), "{alarms:?}");
}

#[test]
fn what_ended_at_another_generation_or_is_held_by_nobody_is_no_alarm() {
    let mut s = with_ends(ENDS_THAT_COUNT);
    s.obs.slots.get_mut(&slot("kafka-1")).expect("it is reported").generation = Generation(0);
    assert_eq!(raised(&s.state, &s.obs), []);
    let mut s = with_ends(ENDS_THAT_COUNT);
    s.state.slots.get_mut(&slot("kafka-1")).expect("it is there").holder = None;
    assert_eq!(raised(&s.state, &s.obs), []);
}
