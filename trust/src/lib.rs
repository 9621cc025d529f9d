//! Who may talk to whom: the cluster's root, the certificates under it, and TLS connections that check them.
//!
//! One root key signs everything. Its hash is in the user data of every instance, so the first call of a machine is to somebody it can check already;
//! the key itself is sealed and only coordinators can open it. A certificate says in one name who its holder is: `vp://CLUSTER/node/INSTANCE`,
//! `vp://CLUSTER/coordinator/ID` or `vp://CLUSTER/operator/RANK/NAME`.
//!
//! ```text
//!  authority ── mints ──> credentials (certificate + key) ──> tls ──┬─ dial ─────> a channel to a coordinator
//!   (sealed)                     name, serial, address              └─ listener ─> connections, each with its caller, all bounded
//! ```
//!
//! Left out: what a caller may ask for (the coordinator's `api::admission`), and whether an instance is one of ours (its `identity`).

pub mod authority;
pub mod certificate;
pub mod credentials;
pub mod dial;
pub mod listener;
pub mod name;
pub mod proof;
pub mod request;
pub mod seal;
pub mod tls;
mod verify;

pub use authority::{Authority, AuthorityError};
pub use certificate::{Certificate, Serial};
pub use credentials::{Credentials, CredentialsError};
pub use dial::{DialError, Way, dial};
pub use listener::{Bounds, Call, Caller, Listener, give_way};
pub use name::{Name, Rank, Who};
pub use request::{Request, RequestError};
pub use seal::SealingKey;

/// SHA-256 of a root certificate's DER: what an instance knows of its cluster before its first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct RootHash([u8; 32]);

impl RootHash {
    /// The hash of a root certificate.
    pub fn of(root: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, root);
        Self(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

impl std::fmt::Display for RootHash {
    /// 64 hex digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Not 64 hex digits.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no SHA-256: 64 hex digits are one")]
pub struct NotAHash(String);

impl std::str::FromStr for RootHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let refuse = || NotAHash(text.chars().take(80).collect());
        let digits = text.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 64 {
            return Err(refuse());
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            let (high, low) = value(pair[0]).zip(value(pair[1])).ok_or_else(refuse)?;
            *byte = high << 4 | low;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for RootHash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_hash_is_read_as_it_is_written() {
        let hash = RootHash::of(b"root");
        assert_eq!(hash.to_string().parse::<RootHash>().unwrap(), hash);
        for wrong in ["", "ab", &"g".repeat(64), &"ä".repeat(32), &hash.to_string()[1..]] {
            assert!(wrong.parse::<RootHash>().is_err(), "{wrong}");
        }
    }
}
