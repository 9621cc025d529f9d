//! The leader's conversation with ZooKeeper: reads the member list, and carries out the `reconfig` that `vp_cluster::ensemble` decides. What Kafka keeps
//! there is read and written in `kafka_records`.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::time::timeout;
use tracing::{info, warn};
use vp_cluster::{
    ClusterState, RoleName,
    ensemble::{self, Reconfig},
    kafka::{self, Reassignment},
    observe::EnsembleSeen,
    state::Membership,
};
use vp_trust::SealingKey;
use zookeeper_client::{Acls, Client, CreateMode, EnsembleUpdate};

use crate::{kafka_records, leader::Leader};

const ROUND: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(3);
const SESSION: Duration = Duration::from_secs(6);
/// Where the coordinators write to see that a member list is active and not only committed. Its content is the version written under.
const WRITTEN: &str = "/vp";

/// ZooKeeper's administrator: the password is the coordinators' alone, made from the key that only they are given; members only know its digest.
#[derive(Clone)]
pub struct Administrator {
    password: String,
}

impl Administrator {
    /// The administrator of this cluster.
    pub fn of(key: &SealingKey, cluster: &str) -> Self {
        Self { password: key.derive(&format!("zookeeper administrator of {cluster}")) }
    }

    /// `super:BASE64(SHA-1(super:PASSWORD))`, as ZooKeeper's DigestAuthenticationProvider wants it.
    pub fn digest(&self) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("super:{}", self.password).as_bytes());
        format!("super:{}", STANDARD.encode(hash))
    }
}

pub struct ZooKeeper {
    pub leader: Arc<Leader>,
    pub administrator: Administrator,
}

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

impl ZooKeeper {
    /// Runs for ever; does nothing while another coordinator leads or no ensemble is founded.
    pub async fn run(self) {
        let mut connected: Option<(String, Client)> = None;
        loop {
            tokio::time::sleep(ROUND).await;
            let state = self.leader.state();
            let Some(role) = founded(&state).filter(|_| self.leader.leads()) else {
                connected = None;
                continue;
            };
            let addresses = addresses(&state, &role);
            if addresses.is_empty() {
                continue;
            }
            if connected.as_ref().is_none_or(|(to, _)| *to != addresses) {
                connected = self.connect(&addresses).await.map(|client| (addresses.clone(), client));
            }
            let Some((_, client)) = &connected else {
                self.forget();
                continue;
            };
            match timeout(PATIENCE, self.round(client, &role)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(%error, "zookeeper not read");
                    self.forget();
                    connected = None;
                }
                Err(_) => {
                    warn!("zookeeper does not answer");
                    self.forget();
                    connected = None;
                }
            }
        }
    }

    fn forget(&self) {
        let mut seen = self.leader.world.lock();
        seen.zookeeper = None;
        seen.kafka = None;
    }

    async fn connect(&self, addresses: &str) -> Option<Client> {
        let connector = Client::connector()
            .with_session_timeout(SESSION)
            .with_connection_timeout(Duration::from_secs(1))
            .with_fail_eagerly()
            .with_auth("digest", format!("super:{}", self.administrator.password).as_bytes());
        match timeout(PATIENCE, connector.connect(addresses)).await {
            Ok(Ok(client)) => Some(client),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    async fn round(&self, client: &Client, role: &RoleName) -> Result<(), Failure> {
        let (data, _) = client.get_config().await?;
        let mut ensemble = parse_config(&String::from_utf8_lossy(&data));
        if let Some(seen) = &mut ensemble {
            seen.active_version = self.written_under(client, seen.version).await?;
        }
        let kafka = kafka_records::read_all(client).await?;
        let (throttled, reassigning) = (kafka.throttled_topics, kafka.seen.reassigning);
        let changed = {
            let mut seen = self.leader.world.lock();
            let changed = seen.zookeeper != ensemble || seen.kafka.as_ref() != Some(&kafka.seen);
            seen.zookeeper = ensemble;
            seen.kafka = Some(kafka.seen);
            changed
        };
        if changed {
            self.leader.wake.notify_one();
        }
        let (state, obs) = (self.leader.state(), self.leader.observations());
        if let Some(change) = ensemble::next(&state, &obs, role) {
            self.reconfigure(client, &change).await;
        }
        let moved = match kafka::next(&state, &obs) {
            Some(step) => self.reassign(client, &step).await,
            None if !reassigning => kafka_records::lift_throttle(client, &throttled).await,
            None => Ok(()),
        };
        // The next round tries again; what was read is as good as before.
        moved.unwrap_or_else(|error| warn!(%error, "kafka's partitions not moved"));
        Ok(())
    }

    async fn reassign(&self, client: &Client, step: &Reassignment) -> Result<(), Failure> {
        kafka_records::reassign(client, step).await?;
        info!(partitions = step.partitions.len(), "partitions reassigned");
        let names: Vec<String> = step.partitions.iter().map(|((topic, number), replicas)| format!("{topic}-{number} to {replicas:?}")).collect();
        self.leader.note("partitions reassigned", "kafka", names.join(", ")).await;
        Ok(())
    }

    /// The newest version under which a write went through. A write is made once a version: rule 4, a `sync` is not enough.
    async fn written_under(&self, client: &Client, version: u64) -> Result<u64, Failure> {
        if self.leader.world.lock().zookeeper.as_ref().is_some_and(|seen| seen.active_version >= version) {
            return Ok(version);
        }
        let text = version.to_string();
        match client.set_data(WRITTEN, text.as_bytes(), None).await {
            Ok(_) => {}
            Err(zookeeper_client::Error::NoNode) => {
                client.create(WRITTEN, text.as_bytes(), &CreateMode::Persistent.with_acls(Acls::creator_all())).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(version)
    }

    async fn reconfigure(&self, client: &Client, change: &Reconfig) {
        let joining: Vec<String> = change.add.iter().map(|(member, address)| server_line(*member, address, true)).collect();
        let leaving: Vec<String> = change.remove.iter().map(u32::to_string).collect();
        let update = EnsembleUpdate::Incremental { joinings: joining.iter().map(String::as_str), leavings: leaving.iter().map(String::as_str) };
        let version = i64::try_from(change.if_version).ok();
        match client.update_ensemble(update, version).await {
            Ok(_) => {
                info!(slot = %change.slot, added = ?change.add, removed = ?change.remove, "ensemble reconfigured");
                let added = change.add.iter().map(|(member, address)| format!("member {member} at {address}"));
                let removed = change.remove.iter().map(|member| format!("member {member} removed"));
                self.leader.note("ensemble reconfigured", &change.slot, added.chain(removed).collect::<Vec<_>>().join(", ")).await;
            }
            // NewConfigNoQuorum: not in sync yet; BadVersion: decided on an old list. Both are looked at again next round.
            Err(error) => warn!(slot = %change.slot, %error, "reconfig refused; looked at again"),
        }
    }
}

/// One line of ZooKeeper's member list (ports as in `roles/zookeeper`).
pub fn server_line(member: u32, address: &str, votes: bool) -> String {
    let kind = if votes { "participant" } else { "observer" };
    format!("server.{member}={address}:2888:3888:{kind};{address}:2181")
}

fn founded(state: &ClusterState) -> Option<RoleName> {
    let (role, _) = state.spec.roles.iter().find(|(_, role)| role.membership == Membership::ZooKeeper)?;
    let founded = state.ensembles.get(role).is_some_and(|ensemble| !ensemble.founders.is_empty());
    founded.then(|| role.clone())
}

fn addresses(state: &ClusterState, role: &RoleName) -> String {
    let members: Vec<String> = state.slots_of(role).filter_map(|(_, slot)| Some(format!("{}:2181", state.holder(slot)?.1.address))).collect();
    members.join(",")
}

/// `/zookeeper/config`: `server.1=127.0.0.1:2888:3888:participant;…` lines and `version=` in hexadecimal.
pub fn parse_config(text: &str) -> Option<EnsembleSeen> {
    let mut seen = EnsembleSeen::default();
    let mut versioned = false;
    for line in text.lines() {
        if let Some(version) = line.strip_prefix("version=") {
            seen.version = u64::from_str_radix(version.trim(), 16).ok()?;
            versioned = true;
        } else if let Some((id, rest)) = line.strip_prefix("server.").and_then(|line| line.split_once('=')) {
            let address = rest.split(':').next().unwrap_or_default();
            match rest.split(';').next().and_then(|part| part.rsplit(':').next()) {
                Some("participant") => drop(seen.voters.insert(id.parse().ok()?, address.to_owned())),
                Some("observer") => drop(seen.observers.insert(id.parse().ok()?)),
                _ => {}
            }
        }
    }
    versioned.then_some(seen)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_member_list_is_read_as_zookeeper_writes_it() {
        let text = "server.1=127.37.1.20:2888:3888:participant;127.37.1.20:2181\n\
                    server.4=127.37.2.20:2888:3888:participant;0.0.0.0:2181\n\
                    server.5=127.37.3.20:2888:3888:observer;127.37.3.20:2181\nversion=10000000a";
        let seen = parse_config(text).unwrap();
        assert_eq!(seen.version, 0x1_0000_000a);
        let voters: Vec<_> = seen.voters.iter().map(|(id, address)| (*id, address.as_str())).collect();
        assert_eq!(voters, [(1, "127.37.1.20"), (4, "127.37.2.20")], "an observer has no vote");
        assert_eq!(seen.observers, [5].into());
    }

    #[test]
    fn a_list_that_cannot_be_understood_is_no_list() {
        for text in ["", "server.1=a:1:2:participant;a:3", "server.x=a:1:2:participant;a:3\nversion=1", "version=zz", "version="] {
            assert_eq!(parse_config(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_into_a_list_is_read_back() {
        let text = format!("{}\n{}\nversion=3", server_line(7, "127.37.1.9", true), server_line(8, "127.37.1.8", false));
        assert_eq!(parse_config(&text).unwrap().voters, BTreeMap::from([(7, "127.37.1.9".to_owned())]));
    }

    #[test]
    fn the_digest_is_the_one_of_zookeepers_own_provider() {
        // base64(SHA-1("super:test")), computed with another program.
        let administrator = Administrator { password: "test".to_owned() };
        assert_eq!(administrator.digest(), "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
    }
}
