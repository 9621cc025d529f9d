//! Identifiers: newtypes, so that one kind is never passed for another.

use std::{fmt, str::FromStr};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub String);

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A node: the EC2 instance id, never used twice.
    NodeId
);
name!(
    /// An availability zone, e.g. `us-east-1a`.
    Zone
);
name!(
    /// A role of the catalogue, e.g. `kafka`.
    RoleName
);
name!(
    /// An EC2 volume id.
    VolumeId
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The Raft index at which a state was reached. Never goes back.
    Revision
);
number!(
    /// The Raft index at which a slot's holder was granted: the fencing token. 0: never granted.
    Generation
);
number!(
    /// The Raft index at which a node registered; a later registration of the same instance is a new session.
    Session
);
number!(
    /// A coordinator's id in its Raft group. Never given twice, so that a disk that forgot what it promised cannot vote again.
    MemberId
);

/// An identity that outlives machines: role and index from 1, written `kafka-2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct SlotId {
    pub role: RoleName,
    pub index: u32,
}

impl SlotId {
    pub fn new(role: &str, index: u32) -> Self {
        Self { role: role.into(), index }
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.index)
    }
}

impl From<SlotId> for String {
    fn from(slot: SlotId) -> Self {
        slot.to_string()
    }
}

/// The text is not a slot name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a slot: expected ROLE-INDEX, for example kafka-2")]
pub struct NotASlot(String);

impl TryFrom<String> for SlotId {
    type Error = NotASlot;
    fn try_from(text: String) -> Result<Self, NotASlot> {
        text.parse()
    }
}

impl FromStr for SlotId {
    type Err = NotASlot;
    fn from_str(text: &str) -> Result<Self, NotASlot> {
        let bad = || NotASlot(text.to_owned());
        let (role, index) = text.rsplit_once('-').ok_or_else(bad)?;
        let index: u32 = index.parse().map_err(|_| bad())?;
        if role.is_empty() || index == 0 {
            return Err(bad());
        }
        Ok(Self::new(role, index))
    }
}
