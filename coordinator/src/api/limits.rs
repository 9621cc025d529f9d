//! Every bound on what comes in, in one place, each with where its number comes from. tonic's own defaults bound next to nothing.
//!
//! | what | where it is enforced |
//! |---|---|
//! | connections, handshakes, time to the first request, idle time | `vp_trust::listener`; `admission` counts the calls |
//! | streams, resets, headers, keep-alive | HTTP/2, by [`bounded`] |
//! | message sizes | each service, by these constants |
//! | heartbeats and hellos, slots, lengths of texts | `agents` |
//! | operators' calls | `admission` |
//! | enrolments, and strangers' refusals that are kept | `enrolment` |

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::transport::Server;
use vp_cluster::NodeId;
use vp_trust::Bounds;

/// A connection without a call under way. Agents and coordinators keep a stream open for as long as they live and `vpctl` dials for each call; five minutes are
/// for people's own programs. Enrolment's connections have a shorter life.
const IDLE: Duration = Duration::from_secs(300);

/// Port 7400. An honest handshake takes some 3 ms here and 100 ms on a starved machine; half an election later nobody waits for it any more.
/// 12,288 connections: 10,000 agents (target A2), coordinators and people; each takes some 20 kB, the whole of them a quarter of a gigabyte (target D2).
/// 64 from one address: an agent has one, but people and tests share the address that they come from. 512 handshakes at some 3 ms each are a second's work.
pub const MEMBERS: Bounds = Bounds {
    handshake: Duration::from_secs(2),
    first_request: Duration::from_secs(5),
    life: None,
    idle: Some(IDLE),
    handshakes: 512,
    handshakes_per_address: 16,
    connections: 12_288,
    connections_per_address: 64,
};

/// Port 7401. One call is all there is to do: 5 s for EC2 and the call back, and some to get there. 4 from one address: it has one instance.
/// 1,000 instances that boot at once (target A7) find room; who only connects, or asks without a true
/// document of the address that it calls from, is gone after 2 s.
pub const ENROLMENT: Bounds = Bounds {
    handshake: Duration::from_secs(2),
    first_request: Duration::from_secs(2),
    life: Some(Duration::from_secs(10)),
    idle: Some(IDLE),
    handshakes: 128,
    handshakes_per_address: 4,
    connections: 1024,
    connections_per_address: 4,
};

/// Enrolments that are being judged: each costs a call to EC2 and a call back.
pub const ENROLMENTS_AT_ONCE: usize = 32;
/// Time for the call back: an agent that lives answers in milliseconds.
pub const CALL_BACK: Duration = Duration::from_secs(3);

/// An agent's message, bytes: 256 slots with all their texts at their longest are some 250 kB.
pub const AGENT_MESSAGE_BYTES: usize = 512 * 1024;
/// An enrolment, bytes: document and signature have some 2 kB together, the request at most 4.
pub const ENROLL_MESSAGE_BYTES: usize = 16 * 1024;
/// What an operator asks, bytes: names and numbers.
pub const OPERATOR_MESSAGE_BYTES: usize = 64 * 1024;

/// Bytes of a role's name in what an agent reports: ours have a dozen.
pub const ROLE_BYTES: usize = 64;

/// A stream that has not said hello by then is closed.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Slots one heartbeat may report: far above what a node can hold.
pub const SLOTS: usize = 256;
/// Characters of what a slot waits for or failed with.
pub const TEXT_CHARACTERS: usize = 512;
/// Facts of one slot: a probe has a handful of named groups.
pub const FACTS: usize = 16;
/// Characters of a fact's name or value.
pub const FACT_CHARACTERS: usize = 128;

/// Messages from one agent: a heartbeat at each quarter of the shortest lease, four more when there is news, each with a word for every slot given back and not
/// yet taken, of which a node that is drained has a dozen: some 100 a second. Below what one stream can have confirmed (one round of reads in 4 ms), so that
/// a flood is told by its rate.
pub const MESSAGES: Rate = Rate { per_hour: 128 * 3600, burst: 256 };
/// Hellos of one instance: each may cost a call to EC2 and an entry of the log. An agent that finds no leader asks each coordinator a few times a second, and only
/// the leader hears its hello.
pub const HELLOS: Rate = Rate { per_hour: 3600, burst: 16 };
/// Enrolments of one instance, each a call to EC2. An agent whose enrolment fails asks again after 5 s at most.
pub const ENROLMENTS: Rate = Rate { per_hour: 720, burst: 16 };
/// Refusals of strangers that are kept as events: enough to see that somebody knocks.
pub const STRANGERS: Rate = Rate { per_hour: 6, burst: 5 };
/// Calls of one operator. `vpctl` watches once a second, its drill ten times, tests some thirty times; a `plan` in a loop, which a viewer may ask for too, would
/// keep the leader from its own rounds. Each coordinator counts for itself.
pub const OPERATOR_CALLS: Rate = Rate { per_hour: 50 * 3600, burst: 200 };
/// Streams of events that one operator reads at once: a person has a window or two, a tool one.
pub const EVENT_STREAMS: usize = 32;
/// Callers that an allowance each is kept for; of more, those that have been quiet are forgotten.
const REMEMBERED: usize = 4096;
/// Time between two times that the quiet ones are forgotten: each looks at all.
const SWEEP: Duration = Duration::from_secs(1);
/// The other coordinators are asked again for a `status` after this long: however many people look, each is asked four times a second at most.
pub const ASKED_EVERY: Duration = Duration::from_millis(250);

/// Streams of one connection: an agent has one, a coordinator three, a person's program a few.
pub const STREAMS: u32 = 32;
/// Streams that were reset and are not yet forgotten, of one connection (CVE-2023-44487, rapid reset); more end it.
const RESET_STREAMS: usize = 20;
/// Headers of one request, bytes: ours have some 300.
const HEADERS_BYTES: u32 = 16 * 1024;
/// What one call may have in flight towards us before it is read, bytes: what is read of a large message at a time, while heartbeats wait for their turn.
/// HTTP/2's own 64 kB would hold a follower that catches up to 64 MB a second where the way takes 1 ms; that is enough.
const WINDOW_BYTES: u32 = 64 * 1024;
/// The same of all calls of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 * WINDOW_BYTES;

/// A connection on which nothing came for so long is asked for a sign of life. Longer than the time between two heartbeats of leases below 12 s: a ping and its
/// answer cost as much as a heartbeat, and with ten thousand agents there would be one for each.
pub const QUIET: Duration = Duration::from_secs(3);
/// Time for that sign of life.
pub const SIGN_OF_LIFE_WITHIN: Duration = Duration::from_secs(2);

/// A server with HTTP/2 bounded. A caller that does not answer a ping is gone: that also ends one that stops in the middle of a frame.
pub fn bounded() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(QUIET))
        .http2_keepalive_timeout(Some(SIGN_OF_LIFE_WITHIN))
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS))
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS))
        .http2_max_header_list_size(HEADERS_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
}

/// Lets this process have as many descriptors as its supervisor allows at most: by default a process begins with 1,024, which half-open connections would
/// use up before any bound here is reached.
pub fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of descriptors stays as it is");
    }
}

/// So many an hour on average, and so many at once after silence.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_hour: u32,
    pub burst: u32,
}

/// A token bucket over a clock that the caller reads.
pub struct Allowance {
    rate: Rate,
    tokens: f64,
    last: Duration,
}

impl Allowance {
    /// Full, at `now`.
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, tokens: f64::from(rate.burst), last: now }
    }

    fn grow(&mut self, now: Duration) {
        let grown = now.saturating_sub(self.last).as_secs_f64() * f64::from(self.rate.per_hour) / 3600.0;
        self.last = self.last.max(now);
        self.tokens = (self.tokens + grown).min(f64::from(self.rate.burst));
    }

    /// Takes one; false when there is none.
    pub fn take(&mut self, now: Duration) -> bool {
        self.grow(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// As good as a new one.
    fn is_full(&mut self, now: Duration) -> bool {
        self.grow(now);
        self.tokens >= f64::from(self.rate.burst)
    }
}

/// An allowance for each instance, or for each of whatever else calls.
pub struct Rationed<K = NodeId> {
    rate: Rate,
    since: Instant,
    of: Mutex<Takers<K>>,
}

struct Takers<K> {
    of: BTreeMap<K, Allowance>,
    /// When those that have been quiet were last forgotten.
    swept: Duration,
}

impl<K: Ord + Clone> Rationed<K> {
    /// Nobody has taken anything yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, since: Instant::now(), of: Mutex::new(Takers { of: BTreeMap::new(), swept: Duration::ZERO }) }
    }

    /// Takes one; false when the taker has had too many.
    pub fn take(&self, taker: &K) -> bool {
        self.take_at(taker, self.since.elapsed())
    }

    fn take_at(&self, taker: &K, now: Duration) -> bool {
        let mut takers = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if takers.of.len() >= REMEMBERED && now.saturating_sub(takers.swept) >= SWEEP {
            takers.of.retain(|_, allowance| !allowance.is_full(now));
            takers.swept = now;
        }
        takers.of.entry(taker.clone()).or_insert_with(|| Allowance::new(self.rate, now)).take(now)
    }
}

/// Seats that callers hold for a while, so many each.
pub struct Seats<K: Ord> {
    each: usize,
    held: Arc<Mutex<BTreeMap<K, usize>>>,
}

/// One seat; given back when dropped.
pub struct Seat<K: Ord> {
    holder: K,
    held: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord + Clone> Seats<K> {
    /// All are free.
    pub fn new(each: usize) -> Self {
        Self { each, held: Arc::default() }
    }

    /// Takes one; none when the holder has all of its own.
    pub fn take(&self, holder: K) -> Option<Seat<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(holder.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Seat { holder, held: self.held.clone() })
    }
}

impl<K: Ord> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_used_up_by_a_burst_and_grows_back_with_time_only() {
        let mut allowance = Allowance::new(MESSAGES, Duration::ZERO);
        let taken = (0..1000).filter(|_| allowance.take(Duration::ZERO)).count();
        assert_eq!(taken, MESSAGES.burst as usize);
        assert!(!allowance.take(Duration::from_millis(2)));
        assert!(allowance.take(Duration::from_millis(100)));
        // A clock that seems to go back grants nothing.
        let mut allowance = Allowance::new(MESSAGES, Duration::from_secs(10));
        let taken = (0..1000).filter(|_| allowance.take(Duration::from_secs(5))).count();
        assert_eq!(taken, MESSAGES.burst as usize);
    }

    #[test]
    fn an_honest_agent_at_the_shortest_lease_never_runs_out() {
        let mut allowance = Allowance::new(MESSAGES, Duration::ZERO);
        // A heartbeat every 125 ms with a dozen slots given back, for a minute.
        for beat in 0..480_u64 {
            let now = Duration::from_millis(beat * 125);
            assert!((0..13).all(|_| allowance.take(now)));
        }
    }

    #[test]
    fn an_instance_that_says_hello_without_end_is_refused_and_no_other_is() {
        let (hellos, now) = (Rationed::<NodeId>::new(HELLOS), Duration::from_secs(1));
        let taken = (0..100).filter(|_| hellos.take_at(&"i-1".into(), now)).count();
        assert_eq!(taken, HELLOS.burst as usize);
        assert!(hellos.take_at(&"i-2".into(), now));
        assert!(!hellos.take_at(&"i-1".into(), now + Duration::from_millis(500)));
        assert!(hellos.take_at(&"i-1".into(), now + Duration::from_millis(1500)));
    }

    #[test]
    fn an_operators_tools_never_run_out_of_calls_and_a_loop_does() {
        let calls = Rationed::<String>::new(OPERATOR_CALLS);
        let ada = "the admin ada".to_owned();
        // A drill's looks and a test's beside it: forty calls a second, for a minute.
        assert!((0..2400_u64).all(|call| calls.take_at(&ada, Duration::from_millis(call * 25))));
        let now = Duration::from_secs(120);
        let taken = (0..1000).filter(|_| calls.take_at(&ada, now)).count();
        assert_eq!(taken, OPERATOR_CALLS.burst as usize);
        assert!(calls.take_at(&"the viewer ada".to_owned(), now), "another certificate has its own");
        assert!(calls.take_at(&ada, now + Duration::from_millis(100)));
    }

    #[test]
    fn whoever_holds_all_its_seats_gets_one_when_one_is_given_back_and_others_have_their_own() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take("ada").unwrap(), seats.take("ada").unwrap());
        assert!(seats.take("ada").is_none());
        let other = seats.take("eve").unwrap();
        drop(first);
        let third = seats.take("ada").unwrap();
        assert!(seats.take("ada").is_none());
        drop((second, third, other));
        assert!(seats.held.lock().unwrap().is_empty(), "nobody is remembered who holds none");
    }

    #[test]
    fn of_many_instances_those_that_have_been_quiet_are_forgotten_and_the_loud_are_not() {
        let (hellos, now) = (Rationed::<NodeId>::new(HELLOS), Duration::ZERO);
        while hellos.take_at(&"i-loud".into(), now) {}
        // One a millisecond: each is as good as new a second later.
        for number in 0..REMEMBERED * 3 {
            assert!(hellos.take_at(&format!("i-{number}").as_str().into(), Duration::from_millis(number as u64)));
        }
        assert!(hellos.of.lock().unwrap().of.len() <= REMEMBERED + 1000);
        while hellos.take_at(&"i-loud".into(), Duration::from_secs(12)) {}
        assert!(!hellos.take_at(&"i-loud".into(), Duration::from_secs(12)));
    }
}
