//! The three questions a handshake answers: is this server a coordinator of the cluster whose root I know the hash of, is this client somebody whom our
//! root has named, and does whoever answers at this address hold that key. TLS 1.3 only.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, RootCertStore, SignatureScheme};

use crate::RootHash;
use crate::certificate::Certificate;
use crate::name::Who;

/// Everybody's certificates are read alike; one that cannot be is one that we did not make.
fn read(der: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::read(der).map_err(|_| CertificateError::BadEncoding.into())
}

fn foreign() -> Error {
    CertificateError::UnknownIssuer.into()
}

fn old_protocol() -> Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

/// A coordinator of the cluster, told by the hash of its root. Any coordinator will do, whatever address it answers at: each of them could sign itself
/// any certificate, and nobody else has one that names a coordinator.
#[derive(Debug)]
pub(crate) struct ACoordinator {
    pub root: RootHash,
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ACoordinator {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = rest.iter().find(|one| RootHash::of(one) == self.root).ok_or_else(foreign)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let certificate = read(leaf)?;
        if !matches!(certificate.name.who, Who::Coordinator { .. }) {
            return Err(CertificateError::NotValidForName.into());
        }
        // Judged at a time at which it is good: see `authority` on coordinators' times.
        let then = UnixTime::since_unix_epoch(Duration::from_secs(certificate.not_before));
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(leaf)?, &roots, &[], then, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(old_protocol())
    }

    fn verify_tls13_signature(&self, message: &[u8], leaf: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Somebody whom our root has named, in our cluster, in time (coordinators at any time).
#[derive(Debug)]
pub(crate) struct AMember {
    cluster: String,
    signed: Arc<dyn ClientCertVerifier>,
}

impl AMember {
    pub(crate) fn new(cluster: &str, root: &CertificateDer<'static>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone())?;
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { cluster: cluster.to_owned(), signed: signed.map_err(|error| Error::General(error.to_string()))? })
    }
}

impl ClientCertVerifier for AMember {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, leaf: &CertificateDer<'_>, _: &[CertificateDer<'_>], now: UnixTime) -> Result<ClientCertVerified, Error> {
        let certificate = read(leaf)?;
        if certificate.name.cluster != self.cluster {
            return Err(CertificateError::NotValidForName.into());
        }
        let then = match certificate.name.who {
            Who::Coordinator { .. } => UnixTime::since_unix_epoch(Duration::from_secs(certificate.not_before)),
            _ => now,
        };
        // What else the client sent is not asked for: there is nothing between our root and what it signed.
        self.signed.verify_client_cert(leaf, &[], then)
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(old_protocol())
    }

    fn verify_tls13_signature(&self, message: &[u8], leaf: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// The holder of one key, whoever that is: for the proof in `proof`.
#[derive(Debug)]
pub(crate) struct AHolderOf {
    /// SubjectPublicKeyInfo, DER.
    pub key: Vec<u8>,
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AHolderOf {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if key.as_ref() == self.key { Ok(ServerCertVerified::assertion()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(old_protocol())
    }

    fn verify_tls13_signature(&self, message: &[u8], key: &CertificateDer<'_>, signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key.as_ref()), signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
