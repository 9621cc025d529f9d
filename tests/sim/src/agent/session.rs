//! The agent's session with the leader, as `agent::session` has it: find it, say hello, speak every quarter of a lease, go elsewhere when nobody answers.

use std::sync::Arc;

use vp_agent::conversation::Conversation;
use vp_proto::v1;

use crate::{
    clock::{MS, SECOND, Time},
    network::Machine,
    stream::{Down, StreamId, Up},
    world::{Event, World},
};

/// Where the session stands.
pub(super) enum Session {
    None,
    Calling { stream: StreamId },
    Talking { stream: StreamId, talk: Conversation, next: Time },
}

impl World {
    /// The session's own time: call, speak, or give up.
    pub(super) fn agent_talks(&mut self, machine: Machine) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let (life, instant) = (host.life, host.instant(now));
        let lease = self.lease_ms;
        let Some(agent) = host.up.as_mut() else { return };
        match &mut agent.session {
            Session::None => {
                let target = agent.hint.take().unwrap_or((agent.target % 3) as Machine + 1);
                agent.target += 1;
                let hello = v1::Hello {
                    cluster: "sim".to_owned(),
                    instance_id: host.id.clone(),
                    address: host.address(),
                    agent_version: "sim".to_owned(),
                    cpu_millis: 2000,
                    memory_mib: 2000,
                    ..v1::Hello::default()
                };
                let stream = self.open_stream(machine, life, target);
                self.send_up(stream, Up::Message(v1::AgentMessage { body: Some(v1::agent_message::Body::Hello(hello)) }));
                self.set_session(machine, Session::Calling { stream }, now + lease / 2 * MS);
            }
            Session::Calling { stream } => {
                let stream = *stream;
                self.send_up(stream, Up::Closed);
                let wait = self.pause(machine, 100 * MS);
                self.set_session(machine, Session::None, now + wait);
            }
            Session::Talking { stream, talk, .. } if talk.is_over(instant) => {
                let stream = *stream;
                self.send_up(stream, Up::Closed);
                self.set_session(machine, Session::None, now);
            }
            Session::Talking { talk, next, .. } => {
                let every = talk.every().as_micros() as Time;
                *next = now + every;
                agent.talk += 1;
                let token = agent.talk;
                self.queue.push(now + every, Event::AgentTalk(machine, life, token));
                self.speak(machine);
            }
        }
    }

    fn pause(&mut self, machine: Machine, longest: Time) -> Time {
        self.hosts.get_mut(&machine).map_or(longest, |host| host.random.range(longest / 2, longest))
    }

    fn set_session(&mut self, machine: Machine, session: Session, next: Time) {
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let life = host.life;
        let Some(agent) = host.up.as_mut() else { return };
        agent.session = session;
        agent.talk += 1;
        self.queue.push(next, Event::AgentTalk(machine, life, agent.talk));
    }

    fn speak(&mut self, machine: Machine) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let instant = host.instant(now);
        let Some(agent) = host.up.as_mut() else { return };
        let Session::Talking { stream, talk, .. } = &mut agent.session else { return };
        let stream = *stream;
        agent.sequence += 1;
        let bodies = talk.speak(agent.sequence, &agent.shared, instant);
        for body in bodies {
            self.send_up(stream, Up::Message(v1::AgentMessage { body: Some(body) }));
        }
    }

    pub(super) fn agent_tells_news(&mut self, machine: Machine) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&machine) else { return };
        let instant = host.instant(now);
        let Some(agent) = host.up.as_ref() else { return };
        if matches!(&agent.session, Session::Talking { talk, .. } if talk.may_tell_news(instant)) {
            self.speak(machine);
        }
    }

    /// What the coordinator says.
    pub fn agent_receives(&mut self, id: StreamId, message: Down) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (machine, life, now) = (stream.agent, stream.agent_life, self.now);
        let Some(host) = self.hosts.get_mut(&machine).filter(|host| host.life == life) else { return };
        let instant = host.instant(now);
        let Some(agent) = host.up.as_mut() else { return };
        match (&mut agent.session, message) {
            (Session::Calling { stream }, Down::Message(v1::CoordinatorMessage { body: Some(v1::coordinator_message::Body::Welcome(welcome)) }))
                if *stream == id =>
            {
                agent.shared.leases().new_session();
                let talk = Conversation::new(&welcome, instant);
                self.set_session(machine, Session::Talking { stream: id, talk, next: now }, now);
            }
            (Session::Talking { stream, talk, .. }, Down::Message(message)) if *stream == id => match message.body {
                Some(v1::coordinator_message::Body::Ack(ack)) => {
                    let renewals = talk.hear(&ack, &agent.shared, instant);
                    self.renew(machine, &renewals);
                }
                Some(v1::coordinator_message::Body::Desired(desired)) => {
                    agent.shared.desired.send_replace(Some(Arc::new(desired)));
                    self.wake_agent(machine);
                }
                _ => {}
            },
            (Session::Calling { stream } | Session::Talking { stream, .. }, ended) if *stream == id => {
                let wait = match ended {
                    Down::NotLeader(Some(leader)) => {
                        agent.hint = Some(leader as Machine);
                        0
                    }
                    Down::Refused => 5 * SECOND,
                    _ => self.pause(machine, 200 * MS),
                };
                self.set_session(machine, Session::None, now + wait);
            }
            _ => {}
        }
    }
}
