//! What is told of slots that serve again.
mod situation;
use situation::{Situation, slot};
use vp_cluster::{
    Generation, SlotId,
    healed::{Starts, healed},
    observe::Phase,
};

/// kafka-1 goes through these phases; who was told of at the end, and how.
fn told(s: &mut Situation, starts: &mut Starts, phases: &[Phase]) -> Vec<(SlotId, String)> {
    let mut told = Vec::new();
    for phase in phases {
        s.obs.slots.get_mut(&slot("kafka-1")).expect("it is reported").phase = *phase;
        told.extend(healed(&s.state, &s.obs, starts));
    }
    told
}

#[test]
fn a_slot_that_was_seen_to_start_and_serves_is_told_once_a_generation() {
    let (mut s, mut starts) = (Situation::well(), Starts::default());
    let now = s.state.slots[&slot("kafka-1")].clone();
    let expected = [(slot("kafka-1"), format!("generation {}, on {}", now.generation, now.holder.expect("it is held")))];
    assert_eq!(told(&mut s, &mut starts, &[Phase::Waiting, Phase::Starting, Phase::Healthy]), expected);
    assert_eq!(told(&mut s, &mut starts, &[Phase::Healthy, Phase::Backoff, Phase::Starting, Phase::Healthy]), [], "the same generation");

    let next = Generation(now.generation.0 + 1);
    s.state.slots.get_mut(&slot("kafka-1")).expect("it is there").generation = next;
    s.obs.slots.get_mut(&slot("kafka-1")).expect("it is reported").generation = next;
    assert_eq!(told(&mut s, &mut starts, &[Phase::Starting, Phase::Healthy]).len(), 1);
}

#[test]
fn what_a_new_leader_finds_healthy_or_not_heard_of_is_no_news() {
    let (mut s, mut starts) = (Situation::well(), Starts::default());
    assert_eq!(told(&mut s, &mut starts, &[Phase::Unknown, Phase::Healthy, Phase::Unhealthy, Phase::Healthy]), []);
}

#[test]
fn the_first_start_on_a_disk_is_told_by_its_own_fact() {
    let (mut s, mut starts) = (Situation::well(), Starts::default());
    s.state.slots.get_mut(&slot("kafka-1")).expect("it is there").used = false;
    assert_eq!(told(&mut s, &mut starts, &[Phase::Starting, Phase::Healthy]), []);
    s.state.slots.get_mut(&slot("kafka-1")).expect("it is there").used = true;
    assert_eq!(told(&mut s, &mut starts, &[Phase::Healthy]), []);
}

#[test]
fn a_slot_that_is_held_by_nobody_or_is_no_more_is_forgotten() {
    let (mut s, mut starts) = (Situation::well(), Starts::default());
    told(&mut s, &mut starts, &[Phase::Starting]);
    s.state.slots.get_mut(&slot("kafka-1")).expect("it is there").holder = None;
    assert_eq!(told(&mut s, &mut starts, &[Phase::Healthy]), []);
    assert!(starts.is_empty());
}
