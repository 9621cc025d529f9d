//! Streams between agents and coordinators: in order, nothing lost while the stream lives. A cut delays what is on its way, as TCP does; who waits too long
//! closes its end, and the other end may learn that late.

use std::collections::VecDeque;

use vp_proto::v1;

use crate::{
    clock::{MS, Time},
    network::Machine,
    world::{Event, World},
};

/// A stream's number.
pub type StreamId = u64;

/// From agent to coordinator.
pub enum Up {
    Message(v1::AgentMessage),
    Closed,
}

/// From coordinator to agent.
pub enum Down {
    Message(v1::CoordinatorMessage),
    /// Ended with a status; the leader, when the coordinator knows it.
    NotLeader(Option<u64>),
    Refused,
    Closed,
}

/// One direction.
pub struct Pipe<T> {
    queue: VecDeque<(Time, T)>,
    pumping: bool,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), pumping: false }
    }
}

/// Both ends and what is between.
pub struct Stream {
    pub agent: Machine,
    pub agent_life: u32,
    pub coordinator: Machine,
    pub coordinator_life: u32,
    up: Pipe<Up>,
    down: Pipe<Down>,
}

impl World {
    pub fn open_stream(&mut self, agent: Machine, agent_life: u32, coordinator: Machine) -> StreamId {
        self.streams_made += 1;
        let coordinator_life = self.coordinators[&coordinator].life;
        let stream = Stream { agent, agent_life, coordinator, coordinator_life, up: Pipe::default(), down: Pipe::default() };
        self.streams.insert(self.streams_made, stream);
        self.streams_made
    }

    pub fn send_up(&mut self, id: StreamId, message: Up) {
        let (now, delay) = (self.now, self.network.delay());
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(at) = enqueue(&mut stream.up, now, delay, message) {
            self.queue.push(at, Event::PumpUp(id));
        }
    }

    pub fn send_down(&mut self, id: StreamId, message: Down) {
        let (now, delay) = (self.now, self.network.delay());
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(at) = enqueue(&mut stream.down, now, delay, message) {
            self.queue.push(at, Event::PumpDown(id));
        }
    }

    pub fn pump_up(&mut self, id: StreamId) {
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (from, to) = (stream.agent, stream.coordinator);
        if !self.network.open(from, to) {
            self.queue.push(now + 150 * MS, Event::PumpUp(id));
            return;
        }
        if self.coordinators[&to].paused {
            self.coordinators.entry(to).and_modify(|c| c.backlog.push(Event::PumpUp(id)));
            return;
        }
        let (ready, next) = take(&mut stream.up, now);
        if let Some(at) = next {
            self.queue.push(at, Event::PumpUp(id));
        }
        for message in ready {
            self.coordinator_receives(id, message);
        }
    }

    pub fn pump_down(&mut self, id: StreamId) {
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (from, to) = (stream.coordinator, stream.agent);
        if !self.network.open(from, to) {
            self.queue.push(now + 150 * MS, Event::PumpDown(id));
            return;
        }
        if let Some(host) = self.hosts.get_mut(&to)
            && host.paused
        {
            host.backlog.push(Event::PumpDown(id));
            return;
        }
        let (ready, next) = take(&mut stream.down, now);
        if let Some(at) = next {
            self.queue.push(at, Event::PumpDown(id));
        }
        for message in ready {
            self.agent_receives(id, message);
        }
    }
}

/// Puts a message in; the time to pump at, if nobody does yet.
fn enqueue<T>(pipe: &mut Pipe<T>, now: Time, delay: Time, message: T) -> Option<Time> {
    let after = pipe.queue.back().map_or(0, |(at, _)| *at);
    let at = (now + delay).max(after);
    pipe.queue.push_back((at, message));
    (!std::mem::replace(&mut pipe.pumping, true)).then_some(at)
}

/// What has arrived, and when the next one will have.
fn take<T>(pipe: &mut Pipe<T>, now: Time) -> (Vec<T>, Option<Time>) {
    let mut ready = Vec::new();
    while pipe.queue.front().is_some_and(|(at, _)| *at <= now) {
        ready.extend(pipe.queue.pop_front().map(|(_, message)| message));
    }
    let next = pipe.queue.front().map(|(at, _)| *at);
    pipe.pumping = next.is_some();
    (ready, next)
}
