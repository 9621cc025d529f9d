//! A run as a picture: who led, who was up, who held what, and what went wrong when.

use std::collections::BTreeMap;

use vp_agent::slot::Slot;

use crate::{clock::Time, network::Machine};

/// A stretch of time.
#[derive(Clone, Debug)]
pub struct Span {
    pub from: Time,
    pub to: Time,
    pub text: String,
}

/// What the picture is drawn from; empty unless asked for.
#[derive(Default)]
pub struct History {
    on: bool,
    pub end: Time,
    pub coordinators: BTreeMap<Machine, Vec<Span>>,
    pub leading: BTreeMap<Machine, Vec<Span>>,
    pub hosts: BTreeMap<Machine, (char, Vec<Span>)>,
    pub agents: BTreeMap<Machine, Vec<Span>>,
    pub slots: BTreeMap<Slot, Vec<(u64, Machine, Span)>>,
    pub faults: Vec<(Vec<Machine>, Span)>,
}

/// Not over yet.
const OPEN: Time = Time::MAX;

fn open(list: &mut Vec<Span>, now: Time, text: String) {
    if list.last().is_none_or(|span| span.to != OPEN) {
        list.push(Span { from: now, to: OPEN, text });
    }
}

fn close(list: &mut [Span], now: Time) {
    if let Some(span) = list.last_mut().filter(|span| span.to == OPEN) {
        span.to = now;
    }
}

impl History {
    pub fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    pub fn coordinator_up(&mut self, id: Machine, now: Time) {
        if self.on {
            open(self.coordinators.entry(id).or_default(), now, String::new());
        }
    }

    pub fn coordinator_down(&mut self, id: Machine, now: Time) {
        if self.on {
            close(self.coordinators.entry(id).or_default(), now);
            close(self.leading.entry(id).or_default(), now);
        }
    }

    pub fn leads(&mut self, id: Machine, leads: bool, now: Time) {
        if !self.on {
            return;
        }
        let list = self.leading.entry(id).or_default();
        if leads { open(list, now, String::new()) } else { close(list, now) }
    }

    pub fn host(&mut self, machine: Machine, zone: char, now: Time) {
        if self.on {
            let entry = self.hosts.entry(machine).or_insert((zone, Vec::new()));
            open(&mut entry.1, now, String::new());
        }
    }

    pub fn host_down(&mut self, machine: Machine, now: Time) {
        if self.on {
            if let Some((_, list)) = self.hosts.get_mut(&machine) {
                close(list, now);
            }
            close(self.agents.entry(machine).or_default(), now);
        }
    }

    pub fn agent(&mut self, machine: Machine, up: bool, now: Time) {
        if !self.on {
            return;
        }
        let list = self.agents.entry(machine).or_default();
        if up { open(list, now, String::new()) } else { close(list, now) }
    }

    pub fn process(&mut self, slot: &Slot, pid: u64, machine: Machine, generation: u64, now: Time) {
        if self.on {
            let span = Span { from: now, to: OPEN, text: format!("{generation}") };
            self.slots.entry(slot.clone()).or_default().push((pid, machine, span));
        }
    }

    pub fn process_gone(&mut self, pid: u64, now: Time) {
        if self.on
            && let Some((_, _, span)) = self.slots.values_mut().flatten().find(|(known, ..)| *known == pid)
        {
            span.to = now;
        }
    }

    pub fn fault(&mut self, name: &str, machines: &[Machine], now: Time, lasts: Time) {
        if self.on {
            self.faults.push((machines.to_vec(), Span { from: now, to: now + lasts, text: name.to_owned() }));
        }
    }

    /// The run is over: what goes on ends here.
    pub fn end(&mut self, now: Time) {
        self.end = now;
        let spans = self.coordinators.values_mut().chain(self.leading.values_mut()).chain(self.agents.values_mut());
        let spans = spans.flatten().chain(self.hosts.values_mut().flat_map(|(_, list)| list));
        let spans = spans.chain(self.slots.values_mut().flatten().map(|(_, _, span)| span)).chain(self.faults.iter_mut().map(|(_, span)| span));
        for span in spans {
            span.to = span.to.min(now);
        }
    }
}
