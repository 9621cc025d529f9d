//! A look at every node of the cluster from time to time, a slice in turn. Pure: when to look at whom; who looks is `cloud_watch`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use vp_cluster::NodeId;

/// Time from the begin of one sweep to that of the next, ms.
const EVERY_MS: u64 = 10_000;
/// Nodes of one slice: what EC2 says of a thousand is a megabyte of XML.
const SLICE: usize = 1000;
/// Slices of one sweep at most; of more than eight thousand nodes they grow. More would be closer together than two looks are.
const MOST_SLICES: usize = 8;

/// How far the sweep has come.
#[derive(Default)]
pub struct Sweep {
    began_ms: Option<u64>,
    /// Slices that were looked at since.
    done: u64,
    /// The last node of the last of them; none when the sweep is over.
    end: Option<NodeId>,
}

/// Nodes that are looked at together.
#[derive(Debug, PartialEq, Eq)]
pub struct Slice {
    pub nodes: BTreeSet<NodeId>,
    /// A sweep begins with it.
    pub first: bool,
}

impl Sweep {
    /// The slice whose turn it is at `now_ms`, in the order of the nodes' names; none while it is nobody's.
    pub fn due<T>(&self, nodes: &BTreeMap<NodeId, T>, now_ms: u64) -> Option<Slice> {
        let since_ms = self.began_ms.map_or(u64::MAX, |began_ms| now_ms.saturating_sub(began_ms));
        let slices = nodes.len().div_ceil(SLICE).clamp(1, MOST_SLICES);
        let first = self.end.is_none();
        let wait_ms = if first { EVERY_MS } else { self.done * EVERY_MS / slices as u64 };
        let after = (self.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let slice = || nodes.range::<NodeId, _>(after).take(nodes.len().div_ceil(slices)).map(|(node, _)| node.clone());
        (since_ms >= wait_ms).then(|| Slice { nodes: slice().collect(), first })
    }

    /// That slice was answered for. One that was not is due again.
    pub fn looked<T>(&mut self, nodes: &BTreeMap<NodeId, T>, slice: &Slice, now_ms: u64) {
        if slice.first {
            *self = Self { began_ms: Some(now_ms), ..Self::default() };
        }
        self.done += 1;
        let last = nodes.keys().next_back();
        self.end = slice.nodes.last().filter(|end| Some(*end) != last).cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> BTreeMap<NodeId, ()> {
        (0..count).map(|number| (NodeId(format!("i-{number:05}")), ())).collect()
    }

    /// Turns at every quarter of a second for a minute, one look a second at most, as the watch has them: the longest time that any node waited, ms, and the largest slice.
    fn longest(nodes: &BTreeMap<NodeId, ()>) -> (u64, usize) {
        let (mut sweep, mut seen, mut looked_ms, mut longest, mut largest) = (Sweep::default(), BTreeMap::new(), None, 0, 0);
        for now_ms in (0..60_000).step_by(250) {
            let Some(slice) = sweep.due(nodes, now_ms).filter(|_| looked_ms.is_none_or(|looked| now_ms - looked >= 1000)) else { continue };
            looked_ms = Some(now_ms);
            sweep.looked(nodes, &slice, now_ms);
            largest = largest.max(slice.nodes.len());
            for node in slice.nodes {
                longest = longest.max(now_ms - seen.insert(node, now_ms).unwrap_or(now_ms));
            }
        }
        assert_eq!(seen.len(), nodes.len());
        (longest, largest)
    }

    #[test]
    fn every_node_is_looked_at_every_ten_seconds_however_many_there_are() {
        for (count, wanted) in [(1, 1), (1000, 1000), (1001, 501), (2500, 834), (8000, 1000), (10_000, 1250), (20_000, 2500)] {
            let (longest, largest) = longest(&nodes(count));
            assert!(longest <= 10_250, "{count}: {longest} ms");
            assert_eq!(largest, wanted, "of {count}");
        }
    }

    #[test]
    fn no_nodes_are_looked_at_as_one_slice() {
        let (none, mut sweep) = (nodes(0), Sweep::default());
        let slice = sweep.due(&none, 5).unwrap();
        assert_eq!(slice, Slice { nodes: BTreeSet::new(), first: true });
        sweep.looked(&none, &slice, 5);
        assert_eq!((sweep.due(&none, 10_004), sweep.due(&none, 10_005).map(|slice| slice.first)), (None, Some(true)));
    }

    #[test]
    fn a_slice_that_is_not_answered_is_due_again_and_nobody_is_left_out_for_it() {
        let (all, mut sweep) = (nodes(2500), Sweep::default());
        let first = sweep.due(&all, 0).unwrap();
        sweep.looked(&all, &first, 0);
        let second = sweep.due(&all, 4000).unwrap();
        assert_eq!(sweep.due(&all, 9000), Some(second));
        assert!(sweep.due(&all, 9000).is_some_and(|slice| !slice.first && slice.nodes.is_disjoint(&first.nodes)));
    }

    #[test]
    fn nodes_that_come_and_go_in_the_middle_of_a_sweep_leave_nobody_out() {
        let (mut all, mut sweep) = (nodes(2500), Sweep::default());
        let first = sweep.due(&all, 0).unwrap();
        sweep.looked(&all, &first, 0);
        // The very node it stopped at goes, and one comes that it has passed.
        all.retain(|node, ()| node.0.as_str() < "i-00700" || node.0.as_str() > "i-00900");
        all.insert("i-00100a".into(), ());
        let mut seen = first.nodes;
        while let Some(slice) = sweep.due(&all, 12_000).filter(|slice| !slice.first) {
            sweep.looked(&all, &slice, 12_000);
            seen.extend(slice.nodes);
        }
        // It has its turn in the next sweep, and the watch looks at once at whom nobody has looked up.
        assert_eq!(all.keys().filter(|node| !seen.contains(*node)).collect::<Vec<_>>(), [&NodeId::from("i-00100a")]);
    }
}
