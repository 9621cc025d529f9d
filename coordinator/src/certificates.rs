//! Leader memory of which certificate of an instance is the newest: an older one is good for nothing any more.
//!
//! Not replicated: serials are ordered across terms by themselves (`vp_trust::Serial`), a rotation writes nothing to the log, and what a new leader has not
//! seen yet it learns from the first hello. Until then a stolen older certificate could be shown to it, but only from the instance's own address
//! (`api::admission`), where its thief would have the newest as well.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use vp_cluster::NodeId;
use vp_trust::Serial;

#[derive(Default)]
pub struct Certificates {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    count: u64,
    newest: BTreeMap<NodeId, Serial>,
}

impl Certificates {
    /// The serial of a fresh certificate for `node`, issued by the leader of `term`: every earlier one is superseded.
    pub fn issue(&self, node: &NodeId, term: u64) -> Serial {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.count += 1;
        let serial = Serial { term, count: inner.count };
        let newest = inner.newest.entry(node.clone()).or_insert(serial);
        *newest = serial.max(*newest);
        serial
    }

    /// Is that the newest that is known of? If so it is from now on.
    pub fn admits(&self, node: &NodeId, serial: Serial) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = inner.newest.entry(node.clone()).or_insert(serial);
        *newest = serial.max(*newest);
        *newest == serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_certificate_makes_the_older_worthless_and_no_other_instances() {
        let certificates = Certificates::default();
        let (one, two) = (NodeId::from("i-1"), NodeId::from("i-2"));
        let first = certificates.issue(&one, 4);
        assert!(certificates.admits(&one, first) && certificates.admits(&one, first), "it may be shown again and again");
        let other = certificates.issue(&two, 4);
        let second = certificates.issue(&one, 4);
        assert!(!certificates.admits(&one, first));
        assert!(certificates.admits(&one, second) && certificates.admits(&two, other));
    }

    #[test]
    fn a_leader_that_has_issued_nothing_learns_the_newest_from_whoever_shows_it() {
        let earlier = Certificates::default();
        let one = NodeId::from("i-1");
        let (first, second) = (earlier.issue(&one, 4), earlier.issue(&one, 4));
        let later = Certificates::default();
        assert!(later.admits(&one, second));
        assert!(!later.admits(&one, first));
        assert!(later.admits(&one, later.issue(&one, 5)), "its own are newer");
        assert!(!later.admits(&one, second));
    }
}
