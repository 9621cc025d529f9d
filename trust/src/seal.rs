//! Sealing the root's key, so that it can lie in a bucket: AES-256-GCM under a key that only coordinators are given.
//! Left out: the key service of a cloud, which will take the place of the key where there is one.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

const KEY_BYTES: usize = 32;

/// A key that seals.
#[derive(Clone, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct SealingKey([u8; KEY_BYTES]);

/// It cannot be sealed or opened. Deliberately without detail.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not a key.
    #[error("the sealing key is not {KEY_BYTES} bytes in base64")]
    NotAKey,
    /// Another key sealed it, for another purpose, or it was changed.
    #[error("the seal does not open: it was made with another key, for another cluster, or it was changed")]
    Broken,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

impl SealingKey {
    /// A fresh one.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut key).map_err(|_| SealError::NoRandomness)?;
        Ok(Self(key))
    }

    /// From base64, as user data and files carry it.
    ///
    /// # Errors
    /// `NotAKey`.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| SealError::NotAKey)?;
        bytes.try_into().map(Self).map_err(|_| SealError::NotAKey)
    }

    /// As [`SealingKey::from_base64`] reads it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// A secret that all who have the key share without telling it to each other, in base64 (HMAC-SHA-256 over `purpose`).
    pub fn derive(&self, purpose: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        STANDARD.encode(hmac::sign(&key, format!("vp secret: {purpose}").as_bytes()))
    }

    fn cipher(&self) -> Result<LessSafeKey, SealError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| SealError::NotAKey)
    }

    /// Seals `secret` for one `purpose`, which opening must name too.
    ///
    /// # Errors
    /// No randomness.
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        // Random: one key seals a root once, far from the 2^32 messages at which random nonces would matter.
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::NoRandomness)?;
        let mut sealed = secret.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose.as_bytes()), &mut sealed)
            .map_err(|_| SealError::Broken)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what [`SealingKey::seal`] made.
    ///
    /// # Errors
    /// `Broken`.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Broken)?;
        let mut body = body.to_vec();
        let opened = self.cipher()?.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose.as_bytes()), &mut body);
        opened.map(|secret| secret.to_vec()).map_err(|_| SealError::Broken)
    }
}

impl TryFrom<String> for SealingKey {
    type Error = SealError;

    fn try_from(text: String) -> Result<Self, SealError> {
        Self::from_base64(&text)
    }
}

impl fmt::Debug for SealingKey {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_purpose_only() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal("dev", b"secret").unwrap();
        assert_eq!(key.open("dev", &sealed).unwrap(), b"secret");
        assert!(key.open("prod", &sealed).is_err());
        assert!(SealingKey::generate().unwrap().open("dev", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("dev", &changed).is_err(), "byte {at} changed");
        }
        assert!(key.open("dev", &sealed[..5]).is_err());
    }

    #[test]
    fn a_derived_secret_is_the_same_for_whoever_has_the_key_and_another_for_each_purpose_and_key() {
        let key = SealingKey::generate().unwrap();
        let again = SealingKey::from_base64(&key.to_base64()).unwrap();
        assert_eq!(key.derive("zookeeper of dev"), again.derive("zookeeper of dev"));
        assert_ne!(key.derive("zookeeper of dev"), key.derive("zookeeper of prod"));
        assert_ne!(key.derive("zookeeper of dev"), SealingKey::generate().unwrap().derive("zookeeper of dev"));
        assert_eq!(STANDARD.decode(key.derive("a")).unwrap().len(), KEY_BYTES);
    }

    #[test]
    fn two_seals_of_the_same_differ() {
        let key = SealingKey::generate().unwrap();
        assert_ne!(key.seal("dev", b"secret").unwrap(), key.seal("dev", b"secret").unwrap());
    }

    #[test]
    fn a_key_is_32_bytes_of_base64_and_never_printed() {
        let key = SealingKey::generate().unwrap();
        assert_eq!(SealingKey::from_base64(&format!(" {}\n", key.to_base64())).unwrap().0, key.0);
        assert!(SealingKey::from_base64("AAAA").is_err() && SealingKey::from_base64("%").is_err());
        assert!(!format!("{key:?}").contains(&key.to_base64()));
    }
}
