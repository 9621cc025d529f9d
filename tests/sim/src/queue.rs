//! What happens next: events in the order of true time, and of their making where times are equal.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::clock::Time;

/// A queue of events.
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Item<E>>>,
    made: u64,
}

struct Item<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<E> Eq for Item<E> {}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), made: 0 }
    }
}

impl<E> Queue<E> {
    pub fn push(&mut self, at: Time, event: E) {
        self.made += 1;
        self.heap.push(Reverse(Item { at, number: self.made, event }));
    }

    pub fn pop(&mut self) -> Option<(Time, E)> {
        self.heap.pop().map(|Reverse(item)| (item.at, item.event))
    }

    /// Events made so far.
    pub fn made(&self) -> u64 {
        self.made
    }
}
