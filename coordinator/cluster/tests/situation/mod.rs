//! Tiny states for tests: five nodes (`i-1`…) of 1000 MiB over zones a, b, c, a, b, and roles of each fencing class.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use vp_cluster::{
    Action, ClusterState, Command, Generation, NodeId, Observations, Plan, Rejection, RoleName, Session, SlotId, VolumeId, Zone, apply,
    ensemble::Reconfig,
    invariant,
    observe::{EnsembleSeen, KafkaSeen, NodeSeen, Phase, SlotSeen, VolumeSeen},
    planner,
    state::{Fencing, Membership, RoleSpec, Spec},
};

pub const LEASE_MS: u64 = 4000;

/// A table whose rows are tests of their own: a sentence as the name, and what the check is given.
#[allow(unused_macros, reason = "each test file uses its own part")]
macro_rules! table {
    ($check:ident: $($name:ident => $row:expr,)+) => {
        $(#[test] fn $name() { $check($row); })+
    };
}

pub fn role(pref: u32, fencing: Fencing, membership: Membership, volume: bool) -> RoleSpec {
    RoleSpec { min: 1, pref, max: 9, fencing, fenced_sinks: false, volume, membership, after: Vec::new(), spread_zones: true, memory_mib: 200 }
}

pub fn spec() -> Spec {
    let mut stream = role(1, Fencing::Exclusive, Membership::None, false);
    stream.fenced_sinks = true;
    let mut kafka = role(3, Fencing::Quorum, Membership::Kafka, true);
    kafka.after = vec!["zookeeper".into()];
    let roles = [
        ("zookeeper", role(3, Fencing::Quorum, Membership::ZooKeeper, true)),
        ("kafka", kafka),
        ("vault", role(1, Fencing::Exclusive, Membership::None, false)),
        ("worker", role(2, Fencing::Disposable, Membership::None, false)),
        ("stream", stream),
    ];
    Spec { roles: roles.map(|(name, role)| (name.into(), role)).into(), volume_wait_ms: 60_000, ..Spec::default() }
}

pub fn node_in(id: &str, zone: &str) -> Command {
    Command::RegisterNode {
        node: id.into(),
        address: format!("at-{id}"),
        zone: zone.into(),
        instance_type: "t".into(),
        memory_mib: 1000,
        cpu_millis: 2000,
        agent_version: "1".into(),
    }
}

/// The log's next entry, under the next index: the state is sound after it, and so is the step.
pub fn entry<T>(state: &mut ClusterState, change: impl FnOnce(&mut ClusterState, u64) -> T) -> T {
    let before = state.clone();
    let outcome = change(state, before.revision.0 + 1);
    let sound = invariant::check(state).and_then(|()| invariant::transition(&before, state));
    sound.unwrap_or_else(|broken| panic!("{broken}; last event: {:?}", state.events.back()));
    outcome
}

/// A state and what its leader sees.
#[derive(Clone)]
pub struct Situation {
    pub state: ClusterState,
    pub obs: Observations,
}

impl Situation {
    pub fn of(spec: Spec, zones: &str) -> Self {
        let mut new = Self { state: ClusterState::default(), obs: Observations { now_ms: 100_000, lease_ms: LEASE_MS, ..Default::default() } };
        new.ok(Command::SetSpec { spec });
        for (index, zone) in zones.chars().enumerate() {
            let id = format!("i-{}", index + 1);
            new.ok(node_in(&id, &zone.to_string()));
            new.hear(&id, 100_000);
        }
        new
    }

    /// Five nodes over three zones; everything placed, with disks, healthy, the ensemble founded.
    pub fn well() -> Self {
        let mut new = Self::of(spec(), "abcab");
        new.settle();
        new
    }

    pub fn apply(&mut self, command: Command) -> Result<(), Rejection> {
        entry(&mut self.state, |state, index| apply(state, index, 0, &command).map(drop))
    }

    pub fn ok(&mut self, command: Command) {
        self.apply(command.clone()).unwrap_or_else(|refused| panic!("{command:?}: {refused}"));
    }

    pub fn hear(&mut self, id: &str, at_ms: u64) {
        self.obs.nodes.insert(id.into(), NodeSeen { heard_ms: Some(at_ms), ..Default::default() });
    }

    pub fn plan(&self) -> Vec<Action> {
        self.planned().actions
    }

    /// The plan, which `apply` takes: planner and judge never disagree.
    pub fn planned(&self) -> Plan {
        let (plan, report) = planner::plan(&self.state, &self.obs);
        let disagreed: Vec<_> = report.gates.iter().filter(|gate| gate.opens_when == planner::DISAGREED).collect();
        assert!(disagreed.is_empty(), "{disagreed:?}");
        plan
    }

    pub fn gates(&self) -> String {
        format!("{:?}", planner::plan(&self.state, &self.obs).1.gates)
    }

    pub fn carry_out(&mut self) -> Vec<Action> {
        let plan = self.planned();
        self.ok(Command::Plan(plan.clone()));
        plan.actions
    }

    pub fn act(&mut self, action: Action) -> Result<(), Rejection> {
        self.apply(Command::Plan(Plan { based_on: self.state.revision, actions: vec![action] }))
    }

    /// What the world does when nothing goes wrong.
    pub fn settle(&mut self) {
        self.carry_out();
        for id in self.state.slots.keys().cloned().collect::<Vec<_>>() {
            let slot = self.state.slots[&id].clone();
            let Some(holder) = slot.holder else { continue };
            if self.state.spec.roles[&id.role].volume && slot.volume.is_none() && !slot.used {
                let zone = self.state.nodes[&holder].zone.clone();
                let volume: VolumeId = VolumeId(format!("v-{id}-{}", slot.generation));
                self.ok(Command::VolumeCreated { slot: id.clone(), generation: slot.generation, volume, zone });
            }
            if let Some(volume) = &self.state.slots[&id].volume {
                self.obs.volumes.insert(volume.id.clone(), VolumeSeen::AttachedTo(holder));
            }
            self.phase(&id.to_string(), Phase::Healthy);
            if !slot.used {
                self.ok(Command::SlotUsed { slot: id.clone(), generation: slot.generation });
            }
        }
        if let Some(founding) = vp_cluster::ensemble::founding(&self.state, &"zookeeper".into()) {
            self.ok(founding);
        }
        let role: RoleName = "zookeeper".into();
        let voters = self.state.slots_of(&role).filter_map(|(_, slot)| Some((slot.member_id, self.state.holder(slot)?.1.address.clone()))).collect();
        self.list(voters);
        self.obs.kafka = Some(KafkaSeen::default());
    }

    /// ZooKeeper's own list is this, read and active.
    pub fn list(&mut self, voters: BTreeMap<u32, String>) {
        let version = self.obs.zookeeper.as_ref().map_or(1, |seen| seen.version + u64::from(seen.voters != voters));
        self.obs.zookeeper = Some(EnsembleSeen { version, voters, active_version: version, ..Default::default() });
        if let Some(listed) = vp_cluster::ensemble::listed(&self.state, &self.obs, &"zookeeper".into()) {
            self.ok(listed);
        }
    }

    /// What ZooKeeper does with the `reconfig` that is due.
    pub fn reconfigure(&mut self) -> Option<Reconfig> {
        let change = vp_cluster::ensemble::next(&self.state, &self.obs, &"zookeeper".into())?;
        let mut voters = self.obs.zookeeper.clone().expect("read").voters;
        voters.retain(|member, _| !change.remove.contains(member));
        voters.extend(change.add.clone());
        self.list(voters);
        Some(change)
    }

    /// The holder's word that the slot's processes are gone.
    pub fn word(&mut self, id: &str) {
        let (node, generation) = (self.holder(id).expect("held"), self.generation(id));
        self.ok(Command::SlotReleased { slot: slot(id), generation, node });
    }

    /// The zone of a slot's holder.
    pub fn zone_of(&self, id: &str) -> Zone {
        self.state.nodes[&self.holder(id).expect("held")].zone.clone()
    }

    pub fn is_releasing(&self, id: &str) -> bool {
        self.state.slots[&slot(id)].releasing
    }

    pub fn phase(&mut self, id: &str, phase: Phase) {
        let id = slot(id);
        let generation = self.state.slots[&id].generation;
        self.obs.slots.insert(id, SlotSeen { generation, phase, ..Default::default() });
    }

    pub fn holder(&self, id: &str) -> Option<NodeId> {
        self.state.slots[&slot(id)].holder.clone()
    }

    pub fn generation(&self, id: &str) -> Generation {
        self.state.slots[&slot(id)].generation
    }

    pub fn session(&self, id: &str) -> Session {
        self.state.nodes[&NodeId::from(id)].session
    }

    pub fn lose(&mut self, node: &NodeId) {
        let session = self.session(&node.0);
        self.ok(Command::NodeLost { node: node.clone(), session, silent_ms: 1 });
    }

    pub fn fence(&mut self, node: &NodeId) {
        self.ok(Command::NodeFenced { node: node.clone() });
    }

    /// The slot's disk does not exist any more.
    pub fn lose_disk(&mut self, id: &str) {
        let volume = self.state.slots[&slot(id)].volume.clone().expect("a volume").id;
        self.ok(Command::VolumeLost { slot: slot(id), volume });
    }
}

pub fn slot(text: &str) -> SlotId {
    text.parse().expect("a slot")
}

pub fn zone(name: &str) -> Zone {
    name.into()
}
