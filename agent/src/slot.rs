//! A slot's name inside the agent: ordered, printable, safe as a folder name.

use std::fmt;

use serde::{Deserialize, Serialize};
use vp_proto::v1::{SlotGeneration, SlotRef};

/// (role, index): the identity that outlives machines; shown and stored as `role-index`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Slot {
    role: String,
    index: u32,
}

/// A name that is no slot's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not the name of a slot: lower-case letters, digits and hyphens, then -INDEX")]
pub struct BadSlot(String);

impl Slot {
    /// Checks that the role's name is safe as a folder and host name (it comes over the wire).
    ///
    /// # Errors
    /// [`BadSlot`] when it is not.
    pub fn new(role: &str, index: u32) -> Result<Self, BadSlot> {
        let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let starts = role.starts_with(|c: char| c.is_ascii_lowercase());
        if !starts || role.len() > 48 || role.ends_with('-') || !role.chars().all(safe) {
            return Err(BadSlot(format!("{role}-{index}")));
        }
        Ok(Self { role: role.to_owned(), index })
    }

    /// The role's name, also its folder's in the catalogue.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The slot's number within its role.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The slot on the wire.
    pub fn to_wire(&self) -> SlotRef {
        SlotRef { role: self.role.clone(), index: self.index }
    }

    /// The slot at a generation on the wire.
    pub fn at(&self, generation: u64) -> SlotGeneration {
        SlotGeneration { slot: Some(self.to_wire()), generation }
    }
}

impl TryFrom<&SlotRef> for Slot {
    type Error = BadSlot;
    fn try_from(wire: &SlotRef) -> Result<Self, BadSlot> {
        Self::new(&wire.role, wire.index)
    }
}

impl TryFrom<String> for Slot {
    type Error = BadSlot;
    fn try_from(name: String) -> Result<Self, BadSlot> {
        let bad = || BadSlot(name.clone());
        let (role, index) = name.rsplit_once('-').ok_or_else(bad)?;
        Self::new(role, index.parse().map_err(|_| bad())?)
    }
}

impl From<Slot> for String {
    fn from(slot: Slot) -> Self {
        slot.to_string()
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_name_reads_back_as_the_slot() {
        let slot = Slot::new("spark-master", 2).unwrap();
        assert_eq!(Slot::try_from(slot.to_string()), Ok(slot));
    }

    #[test]
    fn a_role_name_that_leaves_its_folder_is_refused() {
        for role in ["", "..", "a/b", "../etc", "-a", "a-", "A", "a b", "1a"] {
            assert!(Slot::new(role, 1).is_err(), "{role}");
        }
    }
}
