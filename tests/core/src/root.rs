//! A cluster's root as these tests have it: whoever holds it can be anybody, a coordinator, an operator, any node. Left out: enrolment; its own tests are
//! the attacks.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustls::ClientConfig;
use vp_trust::{Authority, Credentials, Name, Rank, Request, RootHash, SealingKey, Serial, request::Fresh, tls};

/// Where a program that is given a folder finds the sealed root, and the key to it.
const SEALED: &str = "root.json";
const KEY: &str = "seal.key";
/// Longer than any run.
const NODES: Duration = Duration::from_secs(24 * 3600);

/// The root.
pub struct Root {
    authority: Authority,
    key: SealingKey,
}

/// This machine's clock.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Root {
    /// A fresh one.
    ///
    /// # Errors
    /// No randomness.
    pub fn create(cluster: &str) -> anyhow::Result<Self> {
        Ok(Self { authority: Authority::create(cluster)?, key: SealingKey::generate()? })
    }

    /// Leaves it in a folder for [`Root::open`].
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(SEALED), self.sealed()?)?;
        Ok(fs::write(folder.join(KEY), self.key.to_base64())?)
    }

    /// What [`Root::save`] has left.
    ///
    /// # Errors
    /// It is not there, or another cluster's.
    pub fn open(cluster: &str, folder: &Path) -> anyhow::Result<Authority> {
        let read = |name| fs::read(folder.join(name)).with_context(|| format!("{name} in {}", folder.display()));
        let key = SealingKey::from_base64(&String::from_utf8_lossy(&read(KEY)?))?;
        Ok(Authority::open(cluster, &read(SEALED)?, &key, None)?)
    }

    /// As it lies in the cluster bucket.
    ///
    /// # Errors
    /// No randomness.
    pub fn sealed(&self) -> anyhow::Result<Vec<u8>> {
        Ok(self.authority.seal(&self.key)?)
    }

    /// What instances are told of it.
    pub fn hash(&self) -> RootHash {
        self.authority.hash()
    }

    /// What coordinators are told besides.
    pub fn sealing_key(&self) -> &SealingKey {
        &self.key
    }

    fn client(&self, own: &Credentials) -> anyhow::Result<Arc<ClientConfig>> {
        Ok(tls::client(self.hash(), Some(own))?)
    }

    /// To call as a coordinator, whom no clock locks out.
    ///
    /// # Errors
    /// No randomness.
    pub fn peer(&self) -> anyhow::Result<Arc<ClientConfig>> {
        self.client(&self.authority.coordinator(1)?)
    }

    /// A person's credentials, as of a time (Unix, seconds).
    ///
    /// # Errors
    /// No randomness.
    pub fn operator(&self, rank: Rank, name: &str, now_s: u64) -> anyhow::Result<Credentials> {
        Ok(self.authority.operator(rank, name, now_s)?)
    }

    /// To call as an admin.
    ///
    /// # Errors
    /// No randomness.
    pub fn admin(&self) -> anyhow::Result<Arc<ClientConfig>> {
        self.client(&self.operator(Rank::Admin, "tests", now_s())?)
    }

    /// A node's credentials, good from its address.
    ///
    /// # Errors
    /// No randomness.
    pub fn node(&self, instance_id: &str, address: IpAddr) -> anyhow::Result<Credentials> {
        let fresh = Fresh::new(&Name::node(self.authority.cluster(), instance_id))?;
        // Older than any that a coordinator issues.
        let serial = Serial { term: 0, count: 1 };
        let chain = self.authority.node(&Request::read(fresh.der())?, address, serial, now_s(), NODES)?;
        Ok(fresh.granted(chain))
    }

    /// To call as that node.
    ///
    /// # Errors
    /// No randomness.
    pub fn as_node(&self, instance_id: &str, address: IpAddr) -> anyhow::Result<Arc<ClientConfig>> {
        self.client(&self.node(instance_id, address)?)
    }
}
