//! Who is at the door and who is inside, counted by address: decides without waiting, and forgets whoever has left.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::{Bounds, neighbourhood};

pub(super) struct Crowd {
    bounds: Bounds,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    total: usize,
    addresses: BTreeMap<IpAddr, Count>,
    /// Handshakes under way, oldest first; those that are done are passed over.
    waiting: VecDeque<(u64, AbortHandle)>,
    shaking: usize,
}

#[derive(Clone, Copy, Default)]
struct Count {
    connections: usize,
    handshakes: usize,
}

/// One connection's place; left when dropped.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
    number: u64,
    shaking: bool,
}

impl Crowd {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more from `address`, if there is one. Where too many are at the door the oldest is sent away.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = neighbourhood(address);
        let mut inner = self.lock();
        let count = inner.addresses.get(&address).copied().unwrap_or_default();
        if count.connections >= self.bounds.connections_per_address || count.handshakes >= self.bounds.handshakes_per_address {
            return None;
        }
        let crowded = inner.shaking >= self.bounds.handshakes || inner.total >= self.bounds.connections;
        let oldest = if crowded { inner.waiting.pop_front() } else { None };
        if crowded && oldest.is_none() {
            return None;
        }
        inner.next += 1;
        inner.total += 1;
        inner.shaking += 1;
        let number = inner.next;
        let entry = inner.addresses.entry(address).or_default();
        entry.connections += 1;
        entry.handshakes += 1;
        drop(inner);
        if let Some((_, oldest)) = oldest {
            // Its place is given back when its task is dropped.
            oldest.abort();
        }
        Some(Place { crowd: self.clone(), address, number, shaking: true })
    }
}

impl Place {
    /// Starts the handshake and remembers how to end it early.
    pub(super) fn during(self, start: impl FnOnce(Place) -> AbortHandle) {
        let (crowd, number) = (self.crowd.clone(), self.number);
        let handle = start(self);
        let mut inner = crowd.lock();
        // It may be over by now.
        if !handle.is_finished() {
            inner.waiting.push_back((number, handle));
        }
    }

    /// The handshake is done: from here on nobody is sent away for others.
    pub(super) fn shaken(mut self) -> Self {
        self.stop_shaking();
        self
    }

    fn stop_shaking(&mut self) {
        if !std::mem::take(&mut self.shaking) {
            return;
        }
        let mut inner = self.crowd.lock();
        inner.shaking -= 1;
        if let Some(count) = inner.addresses.get_mut(&self.address) {
            count.handshakes -= 1;
        }
        if let Ok(at) = inner.waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            inner.waiting.remove(at);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop_shaking();
        let mut inner = self.crowd.lock();
        inner.total -= 1;
        if let Some(count) = inner.addresses.get_mut(&self.address) {
            count.connections -= 1;
            if count.connections == 0 {
                inner.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        handshake: Duration::from_secs(1),
        first_request: Duration::from_secs(1),
        life: None,
        idle: None,
        handshakes: 4,
        handshakes_per_address: 2,
        connections: 6,
        connections_per_address: 3,
    };

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 1, 1, last])
    }

    /// Enters with a handshake that never ends; the place comes back when that is aborted.
    fn wait_at_the_door(crowd: &Arc<Crowd>, from: u8) -> Option<AbortHandle> {
        let mut handle = None;
        crowd.enter(address(from))?.during(|place| {
            let task = tokio::spawn(async move {
                let _place = place;
                std::future::pending::<()>().await;
            });
            handle = Some(task.abort_handle());
            task.abort_handle()
        });
        handle
    }

    async fn settled(crowd: &Crowd, total: usize) {
        for _ in 0..1000 {
            if crowd.lock().total == total {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} inside, not {total}", crowd.lock().total);
    }

    #[tokio::test]
    async fn one_address_has_its_share_and_no_more() {
        let crowd = Arc::new(Crowd::new(BOUNDS));
        let first = crowd.enter(address(1)).unwrap();
        let second = crowd.enter(address(1)).unwrap();
        assert!(crowd.enter(address(1)).is_none(), "two handshakes are its share");
        let (first, second) = (first.shaken(), second.shaken());
        let third = crowd.enter(address(1)).unwrap().shaken();
        assert!(crowd.enter(address(1)).is_none(), "three connections are its share");
        assert!(crowd.enter(address(2)).is_some(), "another address has its own");
        drop((first, second, third));
        assert!(crowd.lock().addresses.is_empty() && crowd.lock().total == 0);
    }

    #[tokio::test]
    async fn of_too_many_at_the_door_the_oldest_gives_way() {
        let crowd = Arc::new(Crowd::new(BOUNDS));
        let handles: Vec<_> = (1..=4).map(|from| wait_at_the_door(&crowd, from).unwrap()).collect();
        let late = wait_at_the_door(&crowd, 9).unwrap();
        settled(&crowd, 4).await;
        assert!(handles[0].is_finished() && !handles[1].is_finished() && !late.is_finished());
        assert_eq!(crowd.lock().waiting.len(), 4);
        for handle in handles.iter().chain([&late]) {
            handle.abort();
        }
        settled(&crowd, 0).await;
        let inner = crowd.lock();
        assert_eq!((inner.shaking, inner.waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn whoever_is_inside_is_not_sent_away_for_one_more() {
        let crowd = Arc::new(Crowd::new(BOUNDS));
        let inside: Vec<_> = (1..=6).map(|from| crowd.enter(address(from)).unwrap().shaken()).collect();
        assert!(crowd.enter(address(9)).is_none());
        drop(inside);
        assert!(crowd.enter(address(9)).is_some());
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_their_share() {
        let one: IpAddr = "fd00:1:2:3::5".parse().unwrap();
        let same: IpAddr = "fd00:1:2:3:ffff::6".parse().unwrap();
        let other: IpAddr = "fd00:1:2:4::5".parse().unwrap();
        assert_eq!(neighbourhood(one), neighbourhood(same));
        assert_ne!(neighbourhood(one), neighbourhood(other));
    }
}
