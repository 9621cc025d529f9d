//! A node's wish for a certificate (PKCS#10): made by the agent with a fresh key, read by the coordinator, which believes nothing in it but the key.

use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::credentials::Credentials;
use crate::name::Name;

/// Largest request that is read, bytes; ours have some 300.
pub const LARGEST: usize = 4096;

/// A request that is not as an agent makes it.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Too long, not PKCS#10, or not signed with its own key.
    #[error("the certificate request cannot be read, or is not signed with its own key")]
    Malformed,
    /// RSA, Ed25519 and others.
    #[error("the certificate request's key is not ECDSA P-256")]
    Key,
    /// None, or more than one, or none of ours.
    #[error("the certificate request does not name exactly one member of a cluster")]
    Name,
    /// Ours could not be made.
    #[error("no certificate request can be made")]
    Unmade(#[from] rcgen::Error),
}

/// A request as a coordinator reads it: signed with the key that it names.
pub struct Request {
    /// Who the certificate is wished for. Only a wish.
    pub name: Name,
    pub(crate) key: rcgen::PublicKey,
}

impl Request {
    /// Reads one and verifies its own signature.
    ///
    /// # Errors
    /// What it lacks.
    pub fn read(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > LARGEST {
            return Err(RequestError::Malformed);
        }
        let read = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der)).map_err(|_| RequestError::Malformed)?;
        if read.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError::Key);
        }
        let [SanType::URI(uri)] = read.params.subject_alt_names.as_slice() else { return Err(RequestError::Name) };
        let name = uri.as_str().parse().map_err(|_| RequestError::Name)?;
        Ok(Self { name, key: read.public_key })
    }

    /// SubjectPublicKeyInfo of its key, DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }
}

/// A request as an agent makes it, with its key.
pub struct Fresh {
    key: KeyPair,
    der: CertificateSigningRequestDer<'static>,
}

impl Fresh {
    /// A fresh key, and the request for a certificate on `name`.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(name: &Name) -> Result<Self, RequestError> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(name.to_string().try_into()?)];
        let der = parameters.serialize_request(&key)?.der().clone();
        Ok(Self { key, der })
    }

    /// The request.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The key, PKCS#8: for the proof that whoever answers at the instance's address holds it.
    pub fn key(&self) -> &[u8] {
        self.key.serialized_der()
    }

    /// SubjectPublicKeyInfo of the key, DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// Key and certificate together.
    pub fn granted(&self, chain: Vec<CertificateDer<'static>>) -> Credentials {
        Credentials::new(chain, self.key.serialized_der())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_names(names: Vec<SanType>, algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = names;
        parameters.serialize_request(&key).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.to_owned().try_into().unwrap())
    }

    #[test]
    fn a_request_is_read_as_it_was_made() {
        let fresh = Fresh::new(&Name::node("dev", "i-1")).unwrap();
        let read = Request::read(fresh.der()).unwrap();
        assert_eq!(read.name, Name::node("dev", "i-1"));
        assert_eq!(read.public_key(), fresh.public_key());
    }

    #[test]
    fn a_changed_request_is_refused_or_says_the_same() {
        let fresh = Fresh::new(&Name::node("dev", "i-1")).unwrap();
        let mut same = 0;
        for at in 0..fresh.der().len() {
            let mut changed = fresh.der().to_vec();
            changed[at] ^= 1;
            // Around the signature there is a bit or two that mean nothing; all that is signed means something.
            if let Ok(read) = Request::read(&changed) {
                assert_eq!((read.name.clone(), read.public_key()), (Name::node("dev", "i-1"), fresh.public_key()), "byte {at}");
                same += 1;
            }
        }
        assert!(same < 5, "{same} bytes that mean nothing");
    }

    #[test]
    fn another_kind_of_key_no_name_and_two_names_are_refused() {
        let good = "vp://dev/node/i-1";
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        assert!(matches!(Request::read(&with_names(vec![uri(good)], &rcgen::PKCS_ED25519)), Err(RequestError::Key)));
        assert!(matches!(Request::read(&with_names(vec![uri(good)], &rcgen::PKCS_ECDSA_P384_SHA384)), Err(RequestError::Key)));
        assert!(matches!(Request::read(&with_names(vec![], p256)), Err(RequestError::Name)));
        assert!(matches!(Request::read(&with_names(vec![uri(good), uri("vp://dev/node/i-2")], p256)), Err(RequestError::Name)));
        assert!(matches!(Request::read(&with_names(vec![uri("https://dev")], p256)), Err(RequestError::Name)));
        assert!(matches!(Request::read(&vec![0x30; LARGEST + 1]), Err(RequestError::Malformed)));
    }
}
