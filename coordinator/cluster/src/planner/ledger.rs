//! Who has room: one pass over nodes and slots, then kept up to date action by action, so that finding a place costs what changed and not what there is.
//!
//! Each zone keeps its nodes that take slots in order of preference; the best place for a slot is the first of the best zone that has room and does not
//! hold the role yet. A role that found nothing in a zone is not looked for there again until something is freed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{NodeId, RoleName, Zone},
    mutant,
    state::{ClusterState, Lifecycle, Node, RoleSpec},
};

/// Where a slot would do best; smaller is better, and the order of the fields is the priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Members of the same role in the zone: one per zone before two.
    same_role_in_zone: usize,
    load: Load,
}

/// How full a node is, then which: nodes of a zone stand in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    /// Memory already given away, permille of the machine.
    used_permille: u64,
    slots_held: usize,
    /// Position by node id: ties go to the lower id.
    node: usize,
}

struct Account<'a> {
    id: &'a NodeId,
    node: &'a Node,
    used_mib: u64,
    roles: Vec<&'a RoleName>,
}

impl Account<'_> {
    fn load(&self, position: usize) -> Load {
        let used_permille = self.used_mib.saturating_mul(1000) / u64::from(self.node.memory_mib.max(1));
        Load { used_permille, slots_held: self.roles.len(), node: position }
    }

    fn takes_slots(&self) -> bool {
        self.node.lifecycle == Lifecycle::Ready && !self.node.cordoned
    }

    fn has_room(&self, seek: &Seek<'_>) -> bool {
        let fits = self.used_mib.saturating_add(u64::from(seek.spec.memory_mib)) <= u64::from(self.node.memory_mib);
        fits && !self.roles.contains(&seek.role)
    }
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(crate) struct Seek<'a> {
    pub role: &'a RoleName,
    pub spec: &'a RoleSpec,
    /// Only there.
    pub zone: Option<&'a Zone>,
    /// The node it leaves: not that one, and its zone counts one member fewer.
    pub from: Option<&'a NodeId>,
}

pub(crate) struct Ledger<'a> {
    /// In order of id.
    accounts: Vec<Account<'a>>,
    takers: BTreeMap<&'a Zone, BTreeSet<Load>>,
    members: BTreeMap<(&'a RoleName, &'a Zone), usize>,
    full: BTreeSet<(&'a RoleName, &'a Zone)>,
}

impl<'a> Ledger<'a> {
    pub fn of(state: &'a ClusterState) -> Self {
        let accounts: Vec<Account<'a>> = state.nodes.iter().map(|(id, node)| Account { id, node, used_mib: 0, roles: Vec::new() }).collect();
        let mut ledger = Self { accounts, takers: BTreeMap::new(), members: BTreeMap::new(), full: BTreeSet::new() };
        for (id, slot) in &state.slots {
            if let (Some(holder), Some((role, spec))) = (&slot.holder, state.spec.roles.get_key_value(&id.role)) {
                ledger.enter(role, spec, holder);
            }
        }
        for (position, account) in ledger.accounts.iter().enumerate().filter(|(_, account)| account.takes_slots()) {
            ledger.takers.entry(&account.node.zone).or_default().insert(account.load(position));
        }
        ledger
    }

    fn position(&self, node: &NodeId) -> Option<usize> {
        self.accounts.binary_search_by(|account| account.id.cmp(node)).ok()
    }

    fn enter(&mut self, role: &'a RoleName, spec: &RoleSpec, node: &NodeId) -> Option<usize> {
        let position = self.position(node)?;
        let account = &mut self.accounts[position];
        account.used_mib = account.used_mib.saturating_add(u64::from(spec.memory_mib));
        account.roles.push(role);
        let there: &'a Node = account.node;
        *self.members.entry((role, &there.zone)).or_default() += 1;
        Some(position)
    }

    /// Gives a place away: granted, or promised to a slot on its way.
    pub fn take(&mut self, role: &'a RoleName, spec: &RoleSpec, node: &NodeId) {
        let Some(position) = self.position(node) else { return };
        let before = self.accounts[position].load(position);
        self.enter(role, spec, node);
        self.reorder(position, before);
    }

    pub fn free(&mut self, role: &'a RoleName, spec: &RoleSpec, node: &NodeId) {
        let Some(position) = self.position(node) else { return };
        let before = self.accounts[position].load(position);
        let account = &mut self.accounts[position];
        account.used_mib = account.used_mib.saturating_sub(u64::from(spec.memory_mib));
        if let Some(held) = account.roles.iter().position(|held| *held == role) {
            account.roles.swap_remove(held);
        }
        let there: &'a Node = account.node;
        if let Some(count) = self.members.get_mut(&(role, &there.zone)) {
            *count = count.saturating_sub(1);
        }
        self.full.clear();
        self.reorder(position, before);
    }

    fn reorder(&mut self, position: usize, before: Load) {
        let account = &self.accounts[position];
        if let Some(takers) = self.takers.get_mut(&account.node.zone)
            && takers.remove(&before)
        {
            takers.insert(account.load(position));
        }
    }

    /// Slots that a node holds or has been promised.
    pub fn held(&self, node: &NodeId) -> usize {
        self.position(node).map_or(0, |position| self.accounts[position].roles.len())
    }

    /// Members of a role by zone, in zones that have a node which takes slots.
    pub fn spread(&self, role: &RoleName) -> BTreeMap<&'a Zone, usize> {
        self.takers.keys().map(|zone| (*zone, self.members.get(&(role, *zone)).copied().unwrap_or(0))).collect()
    }

    /// Whether this very node would take it.
    pub fn takes(&self, seek: &Seek<'a>, node: &NodeId) -> bool {
        let account = self.position(node).map(|position| &self.accounts[position]);
        account.is_some_and(|account| {
            account.takes_slots() && account.has_room(seek) && seek.zone.is_none_or(|zone| account.node.zone == *zone) && seek.from != Some(account.id)
        })
    }

    /// The best place now.
    pub fn best(&mut self, seek: &Seek<'a>) -> Option<&'a NodeId> {
        let mut found: Option<Score> = None;
        for (zone, takers) in &self.takers {
            if seek.zone.is_some_and(|wanted| wanted != *zone) || self.full.contains(&(seek.role, *zone)) {
                continue;
            }
            let fits = |load: &&Load| {
                let account = &self.accounts[load.node];
                account.has_room(seek) && seek.from != Some(account.id)
            };
            let Some(load) = takers.iter().find(fits).copied() else {
                if seek.from.is_none() {
                    self.full.insert((seek.role, *zone));
                }
                continue;
            };
            let score = Score { same_role_in_zone: self.same_role_in_zone(seek, zone), load };
            if found.is_none_or(|best| score < best) {
                found = Some(score);
            }
        }
        found.map(|score| self.accounts[score.load.node].id)
    }

    fn same_role_in_zone(&self, seek: &Seek<'a>, zone: &'a Zone) -> usize {
        if !seek.spec.spread_zones || mutant!("zones-not-spread") {
            return 0;
        }
        let members = self.members.get(&(seek.role, zone)).copied().unwrap_or(0);
        let left = seek.from.and_then(|from| self.position(from)).is_some_and(|position| self.accounts[position].node.zone == *zone);
        members.saturating_sub(usize::from(left))
    }
}
