//! etcd as a peer, with its defaults: in the clear, as its own benchmarks have it, or secured as vp is, every connection under TLS and both ends under a
//! certificate.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Where clients reach a member.
pub const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const HTTP_PORT: u16 = 2381;

/// A root, and one certificate under it for all members and clients of a group.
pub struct Certificates {
    root: PathBuf,
    own: PathBuf,
    key: PathBuf,
    /// How clients connect.
    pub client: Arc<ClientConfig>,
}

impl Certificates {
    /// Makes them for members at these addresses; their files lie in `folder`.
    ///
    /// # Errors
    /// No randomness, or the folder cannot be written.
    pub fn create(folder: &Path, addresses: impl Iterator<Item = IpAddr>) -> anyhow::Result<Self> {
        let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&root_key)?;
        let mut own = CertificateParams::default();
        // The loopback's own address too: that is where a member's connection comes from, and etcd holds its certificate against that.
        own.subject_alt_names = addresses.chain([IpAddr::V4(Ipv4Addr::LOCALHOST)]).map(SanType::IpAddress).collect();
        let own = own.signed_by(&key, &Issuer::new(parameters, root_key))?;
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map(|()| path)
        };
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone())?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own.der().clone()], secret)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { root: file("root.pem", root.pem())?, own: file("own.pem", own.pem())?, key: file("key.pem", key.serialize_pem())?, client: Arc::new(client) })
    }
}

/// A member of the group at `addresses`.
pub fn command(program: &Path, member: usize, addresses: &[IpAddr], disk: &Path, certificates: Option<&Certificates>) -> Command {
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let client = format!("{scheme}://{}:{CLIENT_PORT}", addresses[member]);
    let peer = |member: usize| format!("{scheme}://{}:{PEER_PORT}", addresses[member]);
    let all: Vec<String> = (0..addresses.len()).map(|other| format!("m{other}={}", peer(other))).collect();
    let mut command = Command::new(program);
    command.args(["--name", &format!("m{member}"), "--data-dir"]).arg(disk);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)]);
    command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new", "--log-level", "warn"]);
    if let Some(Certificates { root, own, key, .. }) = certificates {
        // HTTP apart from gRPC: under TLS on one port etcd serves both by Go's HTTP server, at a third of the speed.
        command.args(["--listen-client-http-urls", &format!("{scheme}://{}:{HTTP_PORT}", addresses[member])]);
        command.args(["--client-cert-auth", "--trusted-ca-file"]).arg(root).arg("--cert-file").arg(own).arg("--key-file").arg(key);
        command.args(["--peer-client-cert-auth", "--peer-trusted-ca-file"]).arg(root).arg("--peer-cert-file").arg(own).arg("--peer-key-file").arg(key);
    }
    command
}
