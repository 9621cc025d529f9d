//! Attacks on who one is: no certificate, another root's, an old one, a stolen one, one that was never signed by the root; and on whom one talks to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use vp_proto::COORDINATOR_PORT;
use vp_tests::cell::machine::open;
use vp_tests::cell::{self, dial, now_s};
use vp_trust::request::Fresh;
use vp_trust::{Authority, Bounds, Credentials, DialError, Listener, Name, Rank, Request, Serial, Way, tls};

use super::{attack, cell, honest, refused};

/// Dials the first coordinator under some credentials; what came of it.
async fn knock(own: Option<&Credentials>) -> Result<(), DialError> {
    dial(&cell().way(cell().coordinator(1), cell().elsewhere(20), own).unwrap()).await.map(drop)
}

fn is_refused(outcome: Result<(), DialError>) {
    assert!(matches!(outcome, Err(DialError::Refused { .. })), "{outcome:?}");
}

/// A node's credentials by an authority, dated as told.
fn node(authority: &Authority, name: &Name, now_s: u64) -> Credentials {
    let fresh = Fresh::new(name).unwrap();
    let request = Request::read(fresh.der()).unwrap();
    let serial = Serial { term: 1, count: 1 };
    fresh.granted(authority.node(&request, cell().elsewhere(20), serial, now_s, Duration::from_secs(3600)).unwrap())
}

#[test]
fn nobody_without_a_certificate_gets_through_the_members_door() {
    attack(async { is_refused(knock(None).await) });
}

#[test]
fn a_certificate_of_another_root_is_refused_whatever_it_says() {
    attack(async {
        let other = Authority::create(cell::CLUSTER).unwrap();
        for own in [other.operator(Rank::Admin, "eve", now_s()).unwrap(), other.coordinator(2).unwrap(), node(&other, &cell().name("i-1"), now_s())] {
            is_refused(knock(Some(&own)).await);
        }
    });
}

#[test]
fn a_certificate_that_signed_itself_as_a_coordinator_is_refused() {
    attack(async {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI(Name::coordinator(cell::CLUSTER, 1).to_string().try_into().unwrap())];
        let own = parameters.self_signed(&key).unwrap().der().clone();
        is_refused(knock(Some(&Credentials::new(vec![own.clone(), own], key.serialized_der()))).await);
    });
}

#[test]
fn an_expired_certificate_and_one_of_the_future_are_refused() {
    attack(async {
        for when in [now_s() - 3700, now_s() + 3700, 0, now_s() + 10 * 365 * 24 * 3600] {
            is_refused(knock(Some(&node(&cell().authority, &cell().name("i-when"), when))).await);
        }
        is_refused(knock(Some(&cell().authority.operator(Rank::Admin, "ada", now_s() - 366 * 24 * 3600).unwrap())).await);
    });
}

#[test]
fn a_certificate_of_another_cluster_under_the_same_root_is_refused() {
    attack(async { is_refused(knock(Some(&node(&cell().authority, &Name::node("prod", "i-1"), now_s()))).await) });
}

#[test]
fn a_certificate_signed_by_a_nodes_key_is_refused() {
    attack(async {
        // A node plays authority: it signs a coordinator's name and shows its own true certificate as the one between.
        let key = KeyPair::generate().unwrap();
        let mut csr = CertificateParams::default();
        csr.subject_alt_names = vec![SanType::URI(cell().name("i-ca").to_string().try_into().unwrap())];
        let request = Request::read(csr.serialize_request(&key).unwrap().der()).unwrap();
        let chain = cell().authority.node(&request, cell().elsewhere(20), Serial { term: 1, count: 1 }, now_s(), Duration::from_secs(600)).unwrap();
        let issuer = Issuer::from_ca_cert_der(&chain[0], key).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI(Name::coordinator(cell::CLUSTER, 1).to_string().try_into().unwrap())];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let forged_key = KeyPair::generate().unwrap();
        let forged = parameters.signed_by(&forged_key, &issuer).unwrap();
        let credentials = Credentials::new([vec![forged.der().clone()], chain].concat(), forged_key.serialized_der());
        is_refused(knock(Some(&credentials)).await);
    });
}

/// Shows a chain with a key that does not belong to it.
#[derive(Debug)]
struct Mismatched(Arc<CertifiedKey>);

impl ResolvesClientCert for Mismatched {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[test]
fn a_seen_certificate_is_worth_nothing_without_its_key() {
    attack(async {
        let (_, victims) = honest("i-seen").await;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let shown = Arc::new(CertifiedKey::new(victims.chain().to_vec(), signer));
        let way = cell().way(cell().coordinator(1), cell().elsewhere(20), None).unwrap();
        let mut config = ClientConfig::clone(&way.tls);
        config.client_auth_cert_resolver = Arc::new(Mismatched(shown));
        let outcome = dial(&Way { tls: Arc::new(config), ..way }).await;
        assert!(matches!(outcome, Err(DialError::Refused { .. })), "{:?}", outcome.err());
    });
}

#[test]
fn a_stolen_certificate_with_its_key_is_worth_nothing_at_another_address() {
    attack(async {
        let (victim, stolen) = honest("i-stolen").await;
        victim.session(cell(), &stolen).await.unwrap();
        refused(open(cell(), cell().elsewhere(21), &stolen, victim.hello()).await.map(|_| ()), Code::PermissionDenied, "does not call from");
    });
}

#[test]
fn a_stolen_certificate_is_worth_nothing_once_its_instance_has_enrolled_again() {
    attack(async {
        let (victim, stolen) = honest("i-renewed").await;
        let mut session = victim.session(cell(), &stolen).await.unwrap();
        let newer = victim.enrol(cell()).await.unwrap();
        refused(open(cell(), victim.address, &stolen, victim.hello()).await.map(|_| ()), Code::Unauthenticated, "newer certificate");
        // The session that was open goes on; a rotation drops none.
        session.beat(Default::default(), Duration::from_secs(2)).await.unwrap();
        victim.session(cell(), &newer).await.unwrap();
        refused(open(cell(), victim.address, &stolen, victim.hello()).await.map(|_| ()), Code::Unauthenticated, "newer certificate");
    });
}

async fn raw(config: ClientConfig) -> std::io::Result<Vec<u8>> {
    let to = SocketAddr::new(cell().coordinator(1), COORDINATOR_PORT);
    let stream = tokio::net::TcpStream::connect(to).await?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(to.ip().into()), stream).await?;
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await??;
    answer.truncate(read);
    Ok(answer)
}

#[test]
fn an_older_tls_is_not_spoken() {
    attack(async {
        let admin = cell().operator(Rank::Admin).unwrap();
        let roots = {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(cell().authority.root().clone()).unwrap();
            roots
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        drop(admin);
        let said = raw(config).await.unwrap_err().to_string();
        assert!(said.contains("ProtocolVersion"), "{said}");
    });
}

#[test]
fn another_protocol_than_http2_is_not_spoken() {
    attack(async {
        let admin = cell().operator(Rank::Admin).unwrap();
        let mut config = ClientConfig::clone(&tls::client(cell().authority.hash(), Some(&admin)).unwrap());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        assert!(raw(config).await.is_err());
    });
}

#[test]
fn plaintext_gets_no_answer() {
    attack(async {
        for port in [COORDINATOR_PORT, vp_proto::ENROLMENT_PORT] {
            for words in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x05\x01\x00"] {
                let mut stream = tokio::net::TcpStream::connect((cell().coordinator(1), port)).await.unwrap();
                stream.write_all(words).await.unwrap();
                let mut answer = Vec::new();
                // It may hang up with what we sent unread: a reset is as good as an end.
                let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
                // At most a TLS alert (type 21): nothing of HTTP.
                assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
            }
        }
    });
}

#[test]
fn a_node_that_poses_as_a_coordinator_is_seen_through() {
    attack(async {
        let bounds = Bounds {
            handshake: Duration::from_secs(2),
            first_request: Duration::from_secs(2),
            life: None,
            idle: None,
            handshakes: 8,
            handshakes_per_address: 8,
            connections: 8,
            connections_per_address: 8,
        };
        let other = Authority::create(cell::CLUSTER).unwrap();
        let admin = cell().operator(Rank::Admin).unwrap();
        // With its own certificate of our root, and with a coordinator's of another root.
        for (host, pose) in [(30, node(&cell().authority, &cell().name("i-pose"), now_s())), (31, other.coordinator(1).unwrap())] {
            let at = SocketAddr::new(cell().elsewhere(host), COORDINATOR_PORT);
            let listener = Listener::bind(at, tls::anybody(&pose).unwrap(), bounds).unwrap();
            let door = tokio::spawn(async move {
                let mut incoming = std::pin::pin!(listener.incoming().unwrap());
                while futures::StreamExt::next(&mut incoming).await.is_some() {}
            });
            for own in [None, Some(&admin)] {
                let outcome = dial(&cell().way(at.ip(), cell().elsewhere(20), own).unwrap()).await.map(drop);
                assert!(matches!(outcome, Err(DialError::Untrusted { .. })), "{outcome:?}");
            }
            door.abort();
        }
    });
}

#[test]
fn a_client_that_pins_another_root_turns_away_from_our_coordinators() {
    attack(async {
        let other = Authority::create(cell::CLUSTER).unwrap();
        let way = Way { tls: tls::client(other.hash(), None).unwrap(), ..cell().enrolment_way(cell().coordinator(1), cell().elsewhere(20)).unwrap() };
        let outcome = dial(&way).await.map(drop);
        assert!(matches!(outcome, Err(DialError::Untrusted { .. })), "{outcome:?}");
    });
}
