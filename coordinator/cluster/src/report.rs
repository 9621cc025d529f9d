//! What is wanted and not done, and why: every refusal to act is a closed gate with the name of what opens it.

/// Something wanted and not done: which gate is closed and what would open it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gate {
    pub subject: String,
    pub closed_by: String,
    pub opens_when: String,
}

impl Gate {
    pub fn new(subject: impl ToString, closed_by: impl Into<String>, opens_when: impl Into<String>) -> Self {
        Self { subject: subject.to_string(), closed_by: closed_by.into(), opens_when: opens_when.into() }
    }
}

/// Every want that is not done, with its closed gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub gates: Vec<Gate>,
}
