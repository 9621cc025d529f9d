//! The real agent binary and its certificate: got, kept, renewed under a session that goes on, got anew when it is not taken.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod cluster;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::Bed;
use vp_trust::{Credentials, Name, Who};

fn sessions(bed: &Bed) -> u64 {
    bed.script.sessions.load(Ordering::SeqCst)
}

fn stored(bed: &Bed) -> Option<Credentials> {
    Credentials::load(&bed.path("root/agent/certificate")).ok()
}

fn in_session(bed: &Bed) -> u64 {
    bed.eventually("a session", || Some(sessions(bed)).filter(|sessions| *sessions > 0))
}

/// Its certificate is taken away while it is dead. The agent writes it beside its first session: it is waited for.
fn forget_certificate(bed: &mut Bed) {
    bed.eventually("the certificate on disk", || stored(bed));
    bed.kill_agent();
    std::fs::remove_dir_all(bed.path("root/agent/certificate")).unwrap();
}

#[test]
fn an_agent_enrols_before_its_first_session_and_keeps_its_certificate_to_itself() {
    let bed = Bed::new(&[]);
    in_session(&bed);
    assert_eq!(bed.office.issued(), 1);
    let kept = bed.eventually("the certificate on disk", || stored(&bed));
    let name = kept.certificate().unwrap().name;
    assert_eq!(name, Name::node("t", "i-0test"));
    assert!(matches!(name.who, Who::Node { .. }));
    let mode = std::fs::metadata(bed.path("root/agent/certificate/key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_agent_that_starts_again_needs_nobody_for_its_certificate() {
    let mut bed = Bed::new(&[]);
    let first = in_session(&bed);
    bed.eventually("the certificate on disk", || stored(&bed));
    bed.kill_agent();
    bed.office.closed.store(true, Ordering::SeqCst);
    bed.start_agent();
    bed.eventually("a session under the kept certificate", || (sessions(&bed) > first).then_some(()));
    assert_eq!(bed.office.issued(), 1);
}

#[test]
fn a_certificate_is_renewed_at_half_its_life_and_the_session_goes_on() {
    let mut bed = Bed::new(&[]);
    in_session(&bed);
    forget_certificate(&mut bed);
    *bed.office.lifetime.lock().unwrap() = Duration::from_secs(4);
    let before = (bed.office.issued(), sessions(&bed));
    bed.start_agent();
    // Three more than the first: each is good for four seconds, so the session outlives the one it began with.
    bed.within(Duration::from_secs(30), "three renewals", || (bed.office.issued() >= before.0 + 4).then_some(()));
    assert_eq!(sessions(&bed), before.1 + 1, "one session all the while");
}

#[test]
fn an_agent_whose_certificate_has_expired_meanwhile_enrols_again() {
    let mut bed = Bed::new(&[]);
    in_session(&bed);
    forget_certificate(&mut bed);
    // Issued an hour and a day ago, say the coordinators' clocks: the machine was off for a night.
    bed.office.behind_s.store(25 * 3600, Ordering::SeqCst);
    bed.start_agent();
    let expired = bed.eventually("an expired certificate on disk", || stored(&bed));
    let before = sessions(&bed);
    bed.office.behind_s.store(0, Ordering::SeqCst);
    bed.within(Duration::from_secs(30), "a session", || (sessions(&bed) > before).then_some(()));
    assert_ne!(stored(&bed).unwrap().leaf(), expired.leaf());
}

#[test]
fn a_certificate_of_the_future_is_replaced_too() {
    let mut bed = Bed::new(&[]);
    in_session(&bed);
    forget_certificate(&mut bed);
    let year_s = 365 * 24 * 3600_u64;
    // A clock that was a year ahead when it was issued.
    bed.office.behind_s.store(year_s.wrapping_neg(), Ordering::SeqCst);
    let before = sessions(&bed);
    bed.start_agent();
    bed.eventually("a certificate of the future on disk", || stored(&bed));
    bed.office.behind_s.store(0, Ordering::SeqCst);
    bed.within(Duration::from_secs(30), "a session", || (sessions(&bed) > before).then_some(()));
}

#[test]
fn an_agent_follows_a_followers_hint_to_the_leader_to_enrol() {
    let bed = Bed::with_coordinators(&[], 3);
    in_session(&bed);
    assert_eq!(bed.office.issued(), 1);
}
