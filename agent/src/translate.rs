//! From the wire into the agent's own words. What comes over the wire is checked here; a slot with an unsafe name is
//! left out with a warning.

use std::collections::BTreeMap;

use vp_proto::v1;

use crate::catalogue::Fencing;
use crate::reconcile::Assignment;
use crate::render::Member;
use crate::slot::Slot;

/// A desired set in the agent's words.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// For `reconcile`.
    pub assignments: BTreeMap<Slot, Assignment>,
    /// For templates: member id and params.
    pub details: BTreeMap<Slot, (u32, BTreeMap<String, String>)>,
    /// Role → its placed slots, in the order of their numbers.
    pub members: BTreeMap<String, Vec<Member>>,
}

fn slot(wire: Option<&v1::SlotRef>) -> Option<Slot> {
    let slot = Slot::try_from(wire?);
    slot.inspect_err(|error| tracing::warn!(%error, "slot left out")).ok()
}

/// A volume's id becomes a folder's name.
fn safe_volume(id: &str) -> bool {
    id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Translates; `roles` are those of the catalogue, each of which gets a list of members, empty or not.
pub fn wanted<'a>(desired: &v1::Desired, roles: impl Iterator<Item = &'a String>) -> Wanted {
    let mut wanted = Wanted { members: roles.map(|role| (role.clone(), Vec::new())).collect(), ..Wanted::default() };
    for assignment in &desired.assignments {
        let Some(slot) = slot(assignment.slot.as_ref()) else { continue };
        if !safe_volume(&assignment.volume_id) {
            tracing::warn!(%slot, volume = assignment.volume_id, "slot left out: its volume has no safe name");
            continue;
        }
        let params = assignment.params.clone().into_iter().collect();
        wanted.details.insert(slot.clone(), (assignment.member_id, params));
        let entry = Assignment {
            generation: assignment.generation,
            fencing: Fencing::from_wire(&assignment.fencing),
            volume: Some(assignment.volume_id.clone()).filter(|volume| !volume.is_empty()),
            start: assignment.start,
            waiting_on: assignment.waiting_on.clone(),
            stop: assignment.stop,
        };
        wanted.assignments.insert(slot, entry);
    }
    for member in &desired.members {
        let Some(slot) = slot(member.slot.as_ref()) else { continue };
        if member.address.parse::<std::net::IpAddr>().is_err() {
            tracing::warn!(%slot, address = member.address, "member left out: its address is none");
            continue;
        }
        let entry = Member {
            name: slot.to_string(),
            index: slot.index(),
            member_id: member.member_id,
            address: member.address.clone(),
            zone: member.zone.clone(),
            generation: member.generation,
        };
        wanted.members.entry(slot.role().to_owned()).or_default().push(entry);
    }
    for members in wanted.members.values_mut() {
        members.sort_by_key(|member| member.index);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(role: &str, volume: &str) -> v1::Assignment {
        let slot = Some(v1::SlotRef { role: role.into(), index: 1 });
        v1::Assignment { slot, generation: 3, volume_id: volume.into(), fencing: "quorum".into(), ..v1::Assignment::default() }
    }

    #[test]
    fn names_that_would_leave_their_folder_are_left_out() {
        let assignments = vec![assignment("kafka", "vol-1"), assignment("../x", ""), assignment("spark", "../../etc")];
        let wanted = wanted(&v1::Desired { assignments, ..v1::Desired::default() }, std::iter::empty());
        let names: Vec<_> = wanted.assignments.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["kafka-1"]);
    }

    #[test]
    fn an_unknown_fencing_word_is_taken_for_the_strictest() {
        let assignments = vec![v1::Assignment { fencing: "loose".into(), ..assignment("kafka", "") }];
        let wanted = wanted(&v1::Desired { assignments, ..v1::Desired::default() }, std::iter::empty());
        assert!(wanted.assignments.values().all(|a| a.fencing == Fencing::Exclusive));
    }

    #[test]
    fn every_role_of_the_catalogue_has_a_list_of_members() {
        let wanted = wanted(&v1::Desired::default(), [&"zookeeper".to_owned()].into_iter());
        assert_eq!(wanted.members["zookeeper"], vec![]);
    }
}
