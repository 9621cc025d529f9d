//! Why a command ended without its answer: what happened, what to do next, and the exit code.

use std::path::Path;

use vp_cloud::error::CloudError;
use vp_cloud::s3::StoreError;
use vp_localcloud::region::RegionError;

/// The command could not do what it was asked (also: no coordinator answers, a job failed).
pub const EXIT_FAILED: u8 = 1;
/// Something is left to be done: degraded, or a drill that did not end well.
pub const EXIT_DEGRADED: u8 = 2;
/// The next failure stops something.
pub const EXIT_NO_TOLERANCE: u8 = 3;
/// The coordinators, or a service, have no quorum.
pub const EXIT_QUORUM_LOST: u8 = 4;
/// The words were wrong (sysexits' EX_USAGE).
pub const EXIT_USAGE: u8 = 64;
/// Ended by Ctrl-C, as a shell counts it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// A command's end without its answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// Nothing says where the cluster is.
    #[error("no cluster is known: {reason}")]
    Nowhere { reason: String },
    /// There is nothing to prove oneself with.
    #[error("no certificate to show the coordinators: {reason}")]
    NoCertificate { reason: String },
    /// Coordinator and certificate are not of one cluster, or the certificate's time is over.
    #[error("{reason}")]
    Untrusted { reason: String },
    /// No coordinator answered.
    #[error("no coordinator answers ({tried})")]
    Unreachable { tried: String },
    /// Coordinators answer, but none leads.
    #[error("no coordinator leads ({tried})")]
    Leaderless { tried: String },
    /// The coordinator said no.
    #[error("{0}")]
    Refused(String),
    /// Sent, and never answered: nobody knows if it took effect.
    #[error("{what}: outcome unknown")]
    Unknown { what: String },
    /// A thing by that name does not exist.
    #[error("{what} {name} does not exist")]
    Missing { what: &'static str, name: String, look: &'static str },
    /// What was asked for is not possible now.
    #[error("{what}")]
    NotNow { what: String, next: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A local file.
    #[error("{path}")]
    File { path: String, source: std::io::Error },
    /// Something that others wrote and that is not as agreed.
    #[error("{what} is not as agreed: {reason}")]
    Malformed { what: String, reason: String },
}

impl Failure {
    /// The exit code this ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Region(RegionError::Invalid(_) | RegionError::Spec(_)) => EXIT_USAGE,
            _ => EXIT_FAILED,
        }
    }

    /// What a person does next, when there is something to do.
    pub fn next_step(&self) -> Option<String> {
        let text = match self {
            Self::Usage(_) => "vpctl --help lists the commands",
            Self::Nowhere { .. } => "bring one up with `vpctl dev up`, or name its coordinators with --coordinators HOST:PORT,… or $VP_COORDINATORS",
            Self::NoCertificate { .. } => "name the folder of one with --certificate DIR or $VP_CERTIFICATE (certificate.pem and key.pem are in it)",
            Self::Untrusted { .. } => "`vpctl dev up` renews a local region's certificates; for another cluster name its own with --certificate DIR",
            Self::Unreachable { .. } => "for a local region: `vpctl dev status`, then `vpctl dev up` repairs it; otherwise check --coordinators",
            Self::Leaderless { .. } => "`vpctl status` shows which coordinators are missing; a majority must live",
            Self::Unknown { .. } => "look before asking again: `vpctl status`, `vpctl events`",
            Self::Missing { look, .. } => return Some(format!("`{look}` lists what there is")),
            Self::NotNow { next, .. } => return Some(next.clone()),
            Self::Store(StoreError::Unreachable { .. }) => "is the S3 service up? for a local region: `vpctl dev status`",
            Self::Store(StoreError::Denied { .. }) => "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`vpctl dev env` prints a local region's)",
            Self::Cloud(CloudError::Unreachable { .. }) => "is the AWS endpoint up? for a local region: `vpctl dev status`",
            Self::Cloud(CloudError::Denied { .. }) => "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`vpctl dev env` prints a local region's)",
            Self::Region(RegionError::Malformed { .. }) => "`vpctl dev down` takes away what is left of the region, also without its record",
            Self::Region(RegionError::Forgotten { .. }) => "the region cannot be mended: `vpctl dev down`, then `vpctl dev up`",
            Self::Region(RegionError::Spec(_)) => "docs/contracts.md, section 2, shows a spec with its keys",
            Self::Region(RegionError::Service { .. } | RegionError::Aws { .. } | RegionError::Store { .. }) => {
                "`vpctl dev status` shows what runs, `vpctl dev logs` what it said; `vpctl dev up` goes on from where it stopped"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// What is wrong with a spec, or was refused of it, told with the file it came from.
    pub fn in_file(self, path: &Path) -> Self {
        let named = |reason: String| format!("{}: {reason}", path.display());
        match self {
            Self::Region(RegionError::Spec(reason)) => Self::Region(RegionError::Spec(named(reason))),
            Self::Refused(reason) => Self::Refused(named(reason)),
            other => other,
        }
    }

    /// A closure for `map_err` on a local file's trouble.
    pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { path, source }
    }
}

/// The whole chain of causes in one line, layers joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wrong_words_end_with_64() {
        assert_eq!(Failure::Usage("x".to_owned()).exit_code(), 64);
        assert_eq!(Failure::Region(RegionError::Invalid("x".to_owned())).exit_code(), 64);
        assert_eq!(Failure::Region(RegionError::Spec("x".to_owned())).exit_code(), 64);
        assert_eq!(Failure::Unreachable { tried: "a".to_owned() }.exit_code(), 1);
        assert_eq!(Failure::Nowhere { reason: "x".to_owned() }.exit_code(), 1);
    }

    #[test]
    fn the_file_of_a_spec_is_named_and_nothing_else_is_blamed_on_it() {
        let told = |failure: Failure| chain(&failure.in_file(Path::new("wanted.yaml")));
        assert_eq!(told(Failure::Region(RegionError::Spec("line 2, column 3: no".to_owned()))), "wanted.yaml: line 2, column 3: no");
        assert_eq!(told(Failure::Refused("apply: no".to_owned())), "wanted.yaml: apply: no");
        assert_eq!(told(Failure::Region(RegionError::Invalid("lease_ms is 5".to_owned()))), "lease_ms is 5");
    }

    #[test]
    fn the_chain_names_every_layer_once() {
        let failure = Failure::file(Path::new("a.mp4"))(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&failure), "a.mp4: disk on fire");
    }
}
