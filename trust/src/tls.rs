//! How both sides are set up: TLS 1.3 alone, no session tickets (a resumed session would carry an old certificate past its end), HTTP/2 by ALPN.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};

use crate::RootHash;
use crate::credentials::Credentials;
use crate::verify::{ACoordinator, AHolderOf, AMember};

const HTTP2: &[u8] = b"h2";
/// Spoken by nothing else, so that a proof cannot be got from another TLS server with the same key.
pub(crate) const PROOF: &[u8] = b"vp-proof/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn hardened_server(mut config: ServerConfig, protocol: &[u8]) -> Arc<ServerConfig> {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

fn hardened_client(mut config: ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Who we want to reach is known by its certificate, not by a name, and need not be told on the wire.
    config.enable_sni = false;
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// A coordinator's server for those who have a certificate, and nobody else.
///
/// # Errors
/// The credentials do not fit together.
pub fn members_only(cluster: &str, root: &CertificateDer<'static>, own: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    let members = AMember::new(cluster, root, provider())?;
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?.with_client_cert_verifier(Arc::new(members));
    Ok(hardened_server(config.with_single_cert(own.chain().to_vec(), own.key())?, HTTP2))
}

/// A coordinator's server for those who have none yet.
///
/// # Errors
/// The credentials do not fit together.
pub fn anybody(own: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?.with_no_client_auth();
    Ok(hardened_server(config.with_single_cert(own.chain().to_vec(), own.key())?, HTTP2))
}

/// A client of the coordinators under `root`; without credentials it can only ask to be enrolled.
///
/// # Errors
/// The credentials do not fit together.
pub fn client(root: RootHash, own: Option<&Credentials>) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(ACoordinator { root, provider: provider() }));
    let config = match own {
        Some(own) => config.with_client_auth_cert(own.chain().to_vec(), own.key())?,
        None => config.with_no_client_auth(),
    };
    Ok(hardened_client(config, HTTP2))
}

/// The answering side of a proof: shows nothing but its key (RFC 7250).
pub(crate) fn proving(public_key: Vec<u8>, key: &[u8]) -> Result<Arc<ServerConfig>, Error> {
    let signer = provider().key_provider.load_private_key(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())))?;
    let shown = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public_key)], signer));
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?.with_no_client_auth();
    Ok(hardened_server(config.with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown))), PROOF))
}

/// The asking side of a proof: content with the holder of `public_key` (SubjectPublicKeyInfo, DER) alone.
pub(crate) fn asking(public_key: Vec<u8>) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let holder = AHolderOf { key: public_key, provider: provider() };
    Ok(hardened_client(config.dangerous().with_custom_certificate_verifier(Arc::new(holder)).with_no_client_auth(), PROOF))
}
