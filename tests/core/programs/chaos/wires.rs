//! The wires between the coordinators of one real cluster: each reaches each other one through a proxy of its own, so that it can be cut off, be heard without
//! hearing, or be slow. The detours are the preload's (`VP_VIA`): the daemons are those that ship.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use vp_core_tests::coordinators::address_of;
use vp_core_tests::group::MEMBERS;
use vp_core_tests::proxy::{Flow, Proxy};
use vp_core_tests::region::Region;
use vp_proto::COORDINATOR_PORT;

use crate::daemons::{EXCLUSIVE, Trial};

/// Third octet of the proxies that the first member's calls go through; the instances' are below.
const FIRST_NETWORK: u8 = 201;

const LED_WITHIN: Duration = Duration::from_secs(30);

/// Every wire, by who calls whom.
pub struct Wires {
    links: Vec<(usize, usize, Proxy)>,
}

impl Wires {
    /// Lays them before the coordinators start.
    ///
    /// # Errors
    /// An address is taken.
    pub async fn lay(region: &Region) -> anyhow::Result<Self> {
        let mut links = Vec::new();
        for (from, to) in pairs() {
            let at = SocketAddr::from((detour(region, from, to)?, COORDINATOR_PORT));
            let target = SocketAddr::from((address_of(region, u8::try_from(to + 1)?), COORDINATOR_PORT));
            links.push((from, to, Proxy::start(at, target).await?));
        }
        Ok(Self { links })
    }

    /// What makes a member call through its wires.
    ///
    /// # Errors
    /// There are more members than addresses.
    pub fn environment(region: &Region, member: usize) -> anyhow::Result<(String, String)> {
        let mut detours = Vec::new();
        for (from, to) in pairs().filter(|(from, _)| *from == member) {
            detours.push(format!("{}={}", address_of(region, u8::try_from(to + 1)?), detour(region, from, to)?));
        }
        Ok(("VP_VIA".to_owned(), detours.join(" ")))
    }

    /// What passes between this member and the others from now on: what it sends, and what it is sent, whoever has called.
    pub fn set(&self, member: usize, sends: Flow, is_sent: Flow) {
        for (from, to, link) in &self.links {
            if *from == member {
                link.set(sends, is_sent);
            } else if *to == member {
                link.set(is_sent, sends);
            }
        }
    }

    /// The same in every direction everywhere.
    pub fn set_all(&self, flow: Flow) {
        self.links.iter().for_each(|(.., link)| link.set(flow, flow));
    }

    /// Every connection is broken.
    pub fn reset(&self) {
        self.links.iter().for_each(|(.., link)| link.reset());
    }
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..MEMBERS).flat_map(|from| (0..MEMBERS).filter(move |to| *to != from).map(move |to| (from, to)))
}

fn detour(region: &Region, from: usize, to: usize) -> anyhow::Result<Ipv4Addr> {
    Ok(region.address(FIRST_NETWORK + u8::try_from(from)?, u8::try_from(to + 1)?))
}

/// A cut is short against a lease, or longer than one and an election.
const CUT_MS: (u64, u64) = (300, 6000);

impl Trial {
    /// Who leads hears nobody and is heard by nobody, and no instance knows of it.
    pub async fn leader_cut(&mut self) -> anyhow::Result<()> {
        let leader = self.coordinators.leader(LED_WITHIN).await?;
        self.wires.set(leader, Flow::Cut, Flow::Cut);
        self.cut_over().await
    }

    /// The worst for a lease: the leader goes on acknowledging the holder of an exclusive slot, while the others elect another that hears nothing of it. False:
    /// the slot has no holder.
    pub async fn leader_cut_with_a_holder(&mut self) -> anyhow::Result<bool> {
        let leader = self.coordinators.leader(LED_WITHIN).await?;
        let status = self.status().await?;
        let exclusive = status.slots.iter().find(|slot| slot.slot.as_ref().is_some_and(|slot| slot.to_string() == EXCLUSIVE[0]));
        let Some(holder) = exclusive.map(|slot| slot.instance_id.clone()).filter(|id| self.instances.nodes.contains_key(id)) else { return Ok(false) };
        self.wires.set(leader, Flow::Cut, Flow::Cut);
        self.node(&holder, |node| (0..MEMBERS).filter(|member| *member != leader).for_each(|other| node.set_link(other, Flow::Cut, Flow::Cut)));
        let over = self.cut_over().await;
        self.node(&holder, |node| node.set_links(Flow::Open, Flow::Open));
        over.map(|()| true)
    }

    /// One direction only.
    pub async fn coordinator_one_way(&mut self, member: usize) -> anyhow::Result<()> {
        let (sends, is_sent) = if self.dice.below(2) == 0 { (Flow::Cut, Flow::Open) } else { (Flow::Open, Flow::Cut) };
        self.wires.set(member, sends, is_sent);
        self.cut_over().await
    }

    /// Every message takes its time; a round of elections may not be enough.
    pub async fn coordinators_slow(&mut self) -> anyhow::Result<()> {
        let late = self.dice.between_ms(20, 400);
        self.wires.set_all(Flow::Slow(late));
        self.cut_over().await
    }

    async fn cut_over(&mut self) -> anyhow::Result<()> {
        let length = self.dice.between_ms(CUT_MS.0, CUT_MS.1);
        let held = self.hold(length).await;
        self.wires.set_all(Flow::Open);
        if self.dice.below(2) == 0 {
            self.wires.reset();
        }
        held
    }
}
