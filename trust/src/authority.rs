//! The cluster's root: made once, sealed, opened by coordinators, and what they mint under it.
//!
//! | holder | good for | judged by time |
//! |---|---|---|
//! | node | the lifetime in the user data (an hour), back-dated | yes: it is what a stolen one is worth |
//! | operator | a year, since ever | yes |
//! | coordinator | for ever | no: whoever has a coordinator's key has opened the root's too, so its expiry would protect nothing, and a clock that jumped would lock members out |

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::RootHash;
use crate::certificate::{OTHER, Serial};
use crate::credentials::Credentials;
use crate::name::{Name, Rank};
use crate::request::Request;
use crate::seal::{SealError, SealingKey};

/// A fresh certificate is good this long before it was made, so that clocks may differ by as much.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// Certificates of people; `vpctl dev up` renews them.
const OPERATOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Signs certificates of one cluster.
pub struct Authority {
    cluster: String,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A root that cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Sealing or opening.
    #[error("the cluster's root")]
    Seal(#[from] SealError),
    /// What was opened is not a root.
    #[error("the cluster's root cannot be read: {0}")]
    Malformed(String),
    /// It is not the one in the user data.
    #[error("the sealed root has the hash {found}, the user data says {wanted}: they are of different clusters")]
    Other {
        /// The hash of what was opened.
        found: RootHash,
        /// The hash that was asked for.
        wanted: RootHash,
    },
    /// Signing.
    #[error("a certificate cannot be made")]
    Mint(#[from] rcgen::Error),
}

/// The root as it lies in the cluster bucket.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    /// DER, base64: no secret.
    root: String,
    /// The key's PKCS#8, sealed, base64.
    key: String,
}

fn purpose(cluster: &str, root: &RootHash) -> String {
    format!("vp root key, cluster {cluster}, root {root}")
}

fn subject(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Before every clock, also one that has never been set.
fn ever() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
}

/// RFC 5280's "no well-defined end".
fn never() -> OffsetDateTime {
    date_time_ymd(9999, 12, 31)
}

fn root_parameters(cluster: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject(&format!("vp root of {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (parameters.not_before, parameters.not_after) = (ever(), never());
    parameters
}

impl Authority {
    /// A fresh root.
    ///
    /// # Errors
    /// No randomness.
    pub fn create(cluster: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let parameters = root_parameters(cluster);
        let root = parameters.self_signed(&key)?.der().clone();
        Ok(Self { cluster: cluster.to_owned(), root, issuer: Issuer::new(parameters, key) })
    }

    /// The root and its key, sealed: what is put into the cluster bucket.
    ///
    /// # Errors
    /// No randomness.
    pub fn seal(&self, with: &SealingKey) -> Result<Vec<u8>, AuthorityError> {
        let key = with.seal(&purpose(&self.cluster, &self.hash()), self.issuer.key().serialized_der())?;
        let sealed = Sealed { root: STANDARD.encode(&self.root), key: STANDARD.encode(key) };
        serde_json::to_vec_pretty(&sealed).map_err(|error| AuthorityError::Malformed(error.to_string()))
    }

    /// Opens what [`Authority::seal`] made; with a hash, only that root.
    ///
    /// # Errors
    /// Another key, another cluster, another root, or damage.
    pub fn open(cluster: &str, sealed: &[u8], with: &SealingKey, wanted: Option<RootHash>) -> Result<Self, AuthorityError> {
        let malformed = |error: &dyn std::error::Error| AuthorityError::Malformed(error.to_string());
        let sealed: Sealed = serde_json::from_slice(sealed).map_err(|error| malformed(&error))?;
        let root = CertificateDer::from(STANDARD.decode(&sealed.root).map_err(|error| malformed(&error))?);
        let found = RootHash::of(&root);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            return Err(AuthorityError::Other { found, wanted });
        }
        let key = STANDARD.decode(&sealed.key).map_err(|error| malformed(&error))?;
        let key = with.open(&purpose(cluster, &found), &key)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { cluster: cluster.to_owned(), root, issuer: Issuer::new(root_parameters(cluster), key) })
    }

    /// What instances pin.
    pub fn hash(&self) -> RootHash {
        RootHash::of(&self.root)
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The cluster whose names it signs.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Certificate and root for the node that made `request`, good from [`BACKDATED`] before `now_s` (Unix time) for `lifetime`, from one address. Only
    /// the request's key is taken: name, address and times are the caller's to know.
    ///
    /// # Errors
    /// Signing failed.
    pub fn node(
        &self,
        request: &Request,
        address: IpAddr,
        serial: Serial,
        now_s: u64,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let mut parameters = parameters(&request.name, &[ExtendedKeyUsagePurpose::ClientAuth])?;
        parameters.subject_alt_names.push(SanType::IpAddress(address));
        parameters.serial_number = Some(serial.to_bytes().into());
        (parameters.not_before, parameters.not_after) = (at(now_s.saturating_sub(BACKDATED.as_secs())), at(now_s.saturating_add(lifetime.as_secs())));
        self.sign(&parameters, &request.key)
    }

    /// Credentials of a coordinator, which keeps them in its memory only.
    ///
    /// # Errors
    /// No randomness.
    pub fn coordinator(&self, id: u64) -> Result<Credentials, AuthorityError> {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let mut parameters = parameters(&Name::coordinator(&self.cluster, id), &usages)?;
        (parameters.not_before, parameters.not_after) = (ever(), never());
        self.complete(parameters)
    }

    /// Credentials of a person, good for a year after `now_s` (Unix time).
    ///
    /// # Errors
    /// No randomness.
    pub fn operator(&self, rank: Rank, name: &str, now_s: u64) -> Result<Credentials, AuthorityError> {
        let mut parameters = parameters(&Name::operator(&self.cluster, rank, name), &[ExtendedKeyUsagePurpose::ClientAuth])?;
        (parameters.not_before, parameters.not_after) = (ever(), at(now_s.saturating_add(OPERATOR.as_secs())));
        self.complete(parameters)
    }

    fn complete(&self, mut parameters: CertificateParams) -> Result<Credentials, AuthorityError> {
        let mut random = [0; 15];
        SystemRandom::new().fill(&mut random).map_err(|_| SealError::NoRandomness)?;
        parameters.serial_number = Some([&[OTHER][..], &random].concat().into());
        let key = KeyPair::generate()?;
        Ok(Credentials::new(self.sign(&parameters, &key)?, key.serialized_der()))
    }

    fn sign(&self, parameters: &CertificateParams, key: &impl PublicKeyData) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let leaf = parameters.signed_by(key, &self.issuer)?;
        Ok(vec![leaf.der().clone(), self.root.clone()])
    }
}

fn parameters(name: &Name, usages: &[ExtendedKeyUsagePurpose]) -> Result<CertificateParams, AuthorityError> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject(&name.who.to_string());
    parameters.subject_alt_names = vec![SanType::URI(name.to_string().try_into()?)];
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = usages.to_vec();
    Ok(parameters)
}

fn at(unix_s: u64) -> OffsetDateTime {
    i64::try_from(unix_s).ok().and_then(|unix_s| OffsetDateTime::from_unix_timestamp(unix_s).ok()).unwrap_or_else(never)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Certificate;
    use crate::name::Who;
    use crate::request;

    #[test]
    fn a_sealed_root_opens_for_its_cluster_key_and_hash_only() {
        let (authority, key) = (Authority::create("dev").unwrap(), SealingKey::generate().unwrap());
        let sealed = authority.seal(&key).unwrap();
        let hash = authority.hash();
        let opened = Authority::open("dev", &sealed, &key, Some(hash)).unwrap();
        assert_eq!(opened.root(), authority.root());
        let other = Authority::create("dev").unwrap();
        assert!(matches!(Authority::open("dev", &sealed, &key, Some(other.hash())), Err(AuthorityError::Other { .. })));
        assert!(matches!(Authority::open("prod", &sealed, &key, Some(hash)), Err(AuthorityError::Seal(_))));
        assert!(matches!(Authority::open("dev", &sealed, &SealingKey::generate().unwrap(), Some(hash)), Err(AuthorityError::Seal(_))));
        assert!(matches!(Authority::open("dev", b"{}", &key, None), Err(AuthorityError::Malformed(_))));
        // A root swapped in beside a true key does not open either: the seal is over the root's hash.
        let swapped = String::from_utf8(sealed).unwrap().replace(&STANDARD.encode(authority.root()), &STANDARD.encode(other.root()));
        assert!(matches!(Authority::open("dev", swapped.as_bytes(), &key, None), Err(AuthorityError::Seal(_))));
    }

    #[test]
    fn a_nodes_certificate_says_who_where_and_when_whatever_its_request_wished() {
        let authority = Authority::create("dev").unwrap();
        let fresh = request::Fresh::new(&Name::node("dev", "i-1")).unwrap();
        let request = Request::read(fresh.der()).unwrap();
        let serial = Serial { term: 4, count: 9 };
        let chain = authority.node(&request, IpAddr::from([127, 1, 1, 20]), serial, 1_000_000, Duration::from_secs(3600)).unwrap();
        let read = Certificate::read(&chain[0]).unwrap();
        assert_eq!(read.name, Name::node("dev", "i-1"));
        assert_eq!((read.serial, read.address), (Some(serial), Some(IpAddr::from([127, 1, 1, 20]))));
        assert_eq!((read.not_before, read.not_after), (1_000_000 - 300, 1_000_000 + 3600));
        assert_eq!(chain[1], *authority.root());
    }

    #[test]
    fn people_and_coordinators_are_named_and_have_no_serial() {
        let authority = Authority::create("dev").unwrap();
        let ada = authority.operator(Rank::Viewer, "ada", 1_000_000).unwrap();
        let read = Certificate::read(ada.leaf()).unwrap();
        assert_eq!(read.name.who, Who::Operator { rank: Rank::Viewer, name: "ada".to_owned() });
        assert_eq!((read.serial, read.not_before), (None, 0));
        let third = authority.coordinator(3).unwrap();
        assert_eq!(Certificate::read(third.leaf()).unwrap().name.who, Who::Coordinator { id: 3 });
    }
}
