//! Agents' streams at a coordinator, as `api::agents` serves them: a welcome, then one message after another, each taken whole.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::mpsc;
use vp_coordinator::{
    api::agents::{Conversation, welcome},
    registry::Seat,
};
use vp_proto::v1;

use super::Process;
use crate::{
    fiber::{Fiber, advance},
    stream::{Down, StreamId, Up},
    world::World,
};

type Answer = Result<v1::CoordinatorMessage, tonic::Status>;
type Opened = Result<(Conversation, Seat, mpsc::Receiver<Answer>), tonic::Status>;

/// One agent's stream, at this end.
pub(super) enum Served {
    Opening(Fiber<Opened>),
    Open(Box<Open>),
}

pub(super) struct Open {
    conversation: Arc<Conversation>,
    node: String,
    seat: Seat,
    answers: mpsc::Receiver<Answer>,
    inbox: VecDeque<v1::AgentMessage>,
    taking: Option<Fiber<bool>>,
    over: bool,
}

impl World {
    /// Every agent's stream goes on as far as it can, as `Conversation::run` would.
    pub(super) fn serve(&mut self, process: &mut Process) -> bool {
        let mut moved = false;
        let leads = process.leader.leads();
        let mut ended = Vec::new();
        for (stream, served) in &mut process.streams {
            match served {
                Served::Opening(fiber) => match fiber.poll() {
                    None => {}
                    Some(Ok((conversation, seat, answers))) => {
                        let node = self.stream_node(*stream);
                        let inbox = VecDeque::new();
                        let open = Open { conversation: Arc::new(conversation), node, seat, answers, inbox, taking: None, over: false };
                        *served = Served::Open(Box::new(open));
                        moved = true;
                    }
                    Some(Err(status)) => {
                        moved = true;
                        let refused = status.code() == tonic::Code::PermissionDenied;
                        ended.push((*stream, if refused { Down::Refused } else { Down::Closed }));
                    }
                },
                Served::Open(open) => {
                    moved |= serve_one(open, leads);
                    while let Ok(answer) = open.answers.try_recv() {
                        if let Ok(message) = answer {
                            self.outgoing.push((*stream, Down::Message(message)));
                        }
                    }
                    if open.over {
                        process.leader.registry.close(&open.node.as_str().into(), open.seat.stream);
                        process.leader.wake.notify_one();
                        let hint = process.handle.status().leader;
                        ended.push((*stream, if leads { Down::Closed } else { Down::NotLeader(Some(hint).filter(|id| *id != 0)) }));
                    }
                }
            }
        }
        for (stream, message) in std::mem::take(&mut self.outgoing) {
            self.send_down(stream, message);
        }
        for (stream, message) in ended {
            process.streams.remove(&stream);
            self.send_down(stream, message);
            moved = true;
        }
        moved
    }

    fn stream_node(&self, stream: StreamId) -> String {
        self.streams.get(&stream).and_then(|stream| self.hosts.get(&stream.agent)).map_or(String::new(), |host| host.id.clone())
    }

    pub fn coordinator_receives(&mut self, id: StreamId, message: Up) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (machine, life, agent) = (stream.coordinator, stream.coordinator_life, stream.agent);
        let instance = self.described(agent);
        let Some(coordinator) = self.coordinators.get_mut(&machine) else { return };
        let lives = coordinator.life == life;
        let Some(process) = coordinator.up.as_mut().filter(|_| lives) else {
            if !matches!(message, Up::Closed) && !coordinator.held_down {
                self.send_down(id, Down::Closed);
            }
            return;
        };
        match message {
            Up::Closed => match process.streams.get_mut(&id) {
                Some(Served::Open(open)) => open.over = true,
                _ => drop(process.streams.remove(&id)),
            },
            Up::Message(v1::AgentMessage { body: Some(v1::agent_message::Body::Hello(hello)) }) => {
                if !process.leader.leads() {
                    let hint = Some(process.handle.status().leader).filter(|leader| *leader != 0);
                    self.send_down(id, Down::NotLeader(hint));
                    return;
                }
                // An instance that is not known is looked up; only one that runs is let in.
                let instance = std::future::ready(instance.ok_or_else(|| tonic::Status::permission_denied("it does not run")));
                let leader = process.leader.clone();
                process.streams.insert(id, Served::Opening(Fiber::new(async move { welcome(&leader, &hello, instance).await })));
            }
            Up::Message(message) => {
                if let Some(Served::Open(open)) = process.streams.get_mut(&id) {
                    open.inbox.push_back(message);
                }
            }
        }
        self.turn(machine, false);
    }
}

/// One stream: what is wanted goes out, then the next message is taken, all of it before the one after.
fn serve_one(open: &mut Open, leads: bool) -> bool {
    if open.over {
        return false;
    }
    let mut moved = false;
    loop {
        if open.taking.is_some() {
            match advance(&mut open.taking) {
                None => return moved,
                Some(goes_on) => {
                    moved = true;
                    open.over |= !goes_on;
                }
            }
        }
        if !leads {
            open.over = true;
        }
        match open.seat.desired.has_changed() {
            Err(_) => open.over = true,
            Ok(true) => {
                let desired = open.seat.desired.borrow_and_update().clone();
                if let Some(desired) = desired {
                    open.over |= !open.conversation.say(v1::coordinator_message::Body::Desired(desired));
                }
            }
            Ok(false) => {}
        }
        if open.over {
            return true;
        }
        let Some(message) = open.inbox.pop_front() else { return moved };
        let conversation = open.conversation.clone();
        open.taking = Some(Fiber::new(async move { conversation.take(message).await }));
        moved = true;
    }
}
