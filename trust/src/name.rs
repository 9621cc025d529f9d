//! The name in a certificate: which cluster, and who in it. Parsed from input, so that it refuses whatever it would not write.

use std::fmt;
use std::str::FromStr;

/// Longest part of a name, bytes: an instance id has 19, a region's name at most 30.
const LONGEST: usize = 64;

/// Who somebody is, in one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The cluster's name.
    pub cluster: String,
    /// Who in it.
    pub who: Who,
}

/// The three kinds of caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The agent of an instance.
    Node {
        /// EC2's id of it.
        instance_id: String,
    },
    /// A coordinator.
    Coordinator {
        /// Its id in the user data.
        id: u64,
    },
    /// A person, or a tool of one.
    Operator {
        /// What it may do.
        rank: Rank,
        /// For the record.
        name: String,
    },
}

/// What an operator may do; each rank includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Looks.
    Viewer,
    /// Changes what the cluster does: drain, cordon, move, scale.
    Operator,
    /// Everything.
    Admin,
}

impl Rank {
    /// All, from the least.
    pub const ALL: [Rank; 3] = [Rank::Viewer, Rank::Operator, Rank::Admin];

    /// Its word in names, folders and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that nobody here has written.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no name in a cluster")]
pub struct NameError(String);

impl Name {
    /// A node's.
    pub fn node(cluster: &str, instance_id: &str) -> Self {
        Self { cluster: cluster.to_owned(), who: Who::Node { instance_id: instance_id.to_owned() } }
    }

    /// A coordinator's.
    pub fn coordinator(cluster: &str, id: u64) -> Self {
        Self { cluster: cluster.to_owned(), who: Who::Coordinator { id } }
    }

    /// An operator's.
    pub fn operator(cluster: &str, rank: Rank, name: &str) -> Self {
        Self { cluster: cluster.to_owned(), who: Who::Operator { rank, name: name.to_owned() } }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vp://{}/", self.cluster)?;
        match &self.who {
            Who::Node { instance_id } => write!(f, "node/{instance_id}"),
            Who::Coordinator { id } => write!(f, "coordinator/{id}"),
            Who::Operator { rank, name } => write!(f, "operator/{rank}/{name}"),
        }
    }
}

impl fmt::Display for Who {
    /// For messages: "the admin ada", "instance i-0ab".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { instance_id } => write!(f, "instance {instance_id}"),
            Self::Coordinator { id } => write!(f, "coordinator {id}"),
            Self::Operator { rank, name } => write!(f, "the {rank} {name}"),
        }
    }
}

fn plain(part: &str) -> Option<String> {
    let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    (!part.is_empty() && part.len() <= LONGEST && letters).then(|| part.to_owned())
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parse = || {
            let mut parts = text.strip_prefix("vp://")?.split('/');
            let cluster = plain(parts.next()?)?;
            let who = match parts.next()? {
                "node" => Who::Node { instance_id: plain(parts.next()?)? },
                "coordinator" => Who::Coordinator { id: parts.next()?.parse().ok()? },
                "operator" => {
                    let word = parts.next()?;
                    let rank = Rank::ALL.into_iter().find(|rank| rank.as_str() == word)?;
                    Who::Operator { rank, name: plain(parts.next()?)? }
                }
                _ => return None,
            };
            let name = Name { cluster, who };
            // One spelling each: "coordinator/+1" or "coordinator/01" would be a second one for the same.
            (parts.next().is_none() && name.to_string() == text).then_some(name)
        };
        parse().ok_or_else(|| NameError(text.chars().take(120).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for name in [Name::node("dev", "i-0ab"), Name::coordinator("dev", 3), Name::operator("dev", Rank::Admin, "ada")] {
            assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        }
    }

    #[test]
    fn what_is_not_exactly_a_name_is_none() {
        for wrong in [
            "",
            "vp://",
            "vp://dev",
            "vp://dev/",
            "vp://dev/node",
            "vp://dev/node/",
            "vp://dev/node/i-1/x",
            "vp:///node/i-1",
            "vp://dev/node/i 1",
            "vp://dev/coordinator/x",
            "vp://dev/coordinator/+1",
            "vp://dev/coordinator/01",
            "vp://dev/operator/ada",
            "vp://dev/operator/root/ada",
            "vp://dev/operator/Admin/ada",
            "VP://dev/node/i-1",
            "spiffe://dev/node/i-1",
        ] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranks_include_the_ones_before() {
        assert!(Rank::Viewer < Rank::Operator && Rank::Operator < Rank::Admin);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_written_the_same(text in "(vp://)?[a-z0-9/+._-]{0,40}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
