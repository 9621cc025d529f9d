//! This coordinator's part in the cluster's trust: it opens the sealed root, names itself with it, keeps the doors, and calls the others.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};
use vp_cloud::s3::{ObjectStore, StoreError};
use vp_trust::{Authority, AuthorityError, Bounds, Credentials, Listener, Way, tls};

use crate::settings::Settings;

/// Where the sealed root lies in the cluster bucket, beside the coordinators' claims.
pub const KEY: &str = "trust/root.json";
/// The bucket may come up after us.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the cluster's root cannot be used")]
    Authority(#[from] AuthorityError),
    #[error("TLS cannot be set up with this coordinator's certificate")]
    Tls(#[from] rustls::Error),
}

/// The opened root and what follows from it.
pub struct Trust {
    pub authority: Authority,
    /// In memory only, fresh with every start.
    own: Credentials,
    client: Arc<rustls::ClientConfig>,
    address: IpAddr,
}

impl Trust {
    /// Waits for the sealed root and opens it.
    ///
    /// # Errors
    /// It is not the one that the user data names, or the key does not open it: waiting would not help.
    pub async fn load(store: &ObjectStore, settings: &Settings) -> Result<Self, TrustError> {
        let data = &settings.user_data;
        let sealed = loop {
            match store.get(&data.buckets.cluster, KEY).await {
                Ok((sealed, _)) => break sealed,
                Err(error @ StoreError::NotFound { .. }) => warn!(%error, "no sealed root yet: whoever brings the cluster up puts it there"),
                Err(error) => warn!(error = &error as &dyn std::error::Error, "sealed root not readable yet"),
            }
            tokio::time::sleep(AGAIN).await;
        };
        let authority = Authority::open(&data.cluster, &sealed, &data.trust.sealing_key, Some(data.trust.root_sha256))?;
        info!(root = %authority.hash(), "root opened");
        Self::new(authority, u64::from(settings.me.id), settings.me.address.into())
    }

    /// With an opened root, as coordinator `id` (its number in the user data, which all instances of its place share) at `address`.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(authority: Authority, id: u64, address: IpAddr) -> Result<Self, TrustError> {
        let own = authority.coordinator(id)?;
        let client = tls::client(authority.hash(), Some(&own))?;
        Ok(Self { authority, own, client, address })
    }

    /// How to call another coordinator.
    pub fn way(&self, to: SocketAddr, within: Duration) -> Way {
        Way { to, from: Some(self.address), tls: self.client.clone(), within }
    }

    /// Opens the door for whoever has a certificate.
    ///
    /// # Errors
    /// The port is taken.
    pub fn members(&self, port: u16, bounds: Bounds) -> io::Result<Listener> {
        let config = tls::members_only(self.authority.cluster(), self.authority.root(), &self.own).map_err(io::Error::other)?;
        Listener::bind(SocketAddr::new(self.address, port), config, bounds)
    }

    /// Opens the door for whoever has none yet.
    ///
    /// # Errors
    /// The port is taken.
    pub fn enrolment(&self, port: u16, bounds: Bounds) -> io::Result<Listener> {
        let config = tls::anybody(&self.own).map_err(io::Error::other)?;
        Listener::bind(SocketAddr::new(self.address, port), config, bounds)
    }

    /// This coordinator's own address.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}
