//! One durable write through a member's public service, whichever kind it is.

use std::net::SocketAddr;

use anyhow::Context;
use tonic::transport::Channel;
use zookeeper_client::{Acls, Client as ZooKeeperClient, CreateMode, Error as ZooKeeperError};

use crate::channel::{self, Tls};
use crate::group::Kind;
use crate::wire::etcd::{PutRequest, kv_client::KvClient};
use crate::wire::registers::{WriteRequest, registers_client::RegistersClient};

/// A client of one member; copies share its connection.
#[derive(Clone)]
pub enum Writer {
    /// The register service over the coordinators' log.
    Vp(RegistersClient<Channel>),
    /// etcd's key-value service.
    Etcd(KvClient<Channel>),
    /// A session with ZooKeeper.
    ZooKeeper(ZooKeeperClient),
}

impl Writer {
    /// A client over a connection of its own, which is up.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(kind: Kind, address: SocketAddr, tls: Tls) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Vp => Self::Vp(RegistersClient::new(channel::open(address, None, tls).await?)),
            Kind::Etcd | Kind::SecureEtcd => Self::Etcd(KvClient::new(channel::open(address, None, tls).await?)),
            Kind::ZooKeeper => Self::ZooKeeper(ZooKeeperClient::connect(&address.to_string()).await?),
        })
    }

    /// A client whose connection is made when it first writes, and again after it broke; none for ZooKeeper, whose sessions are made at once.
    pub fn lazy(kind: Kind, address: SocketAddr, tls: Tls) -> Option<Self> {
        let channel = channel::lazy(address, tls).ok()?;
        match kind {
            Kind::Vp => Some(Self::Vp(RegistersClient::new(channel))),
            Kind::Etcd | Kind::SecureEtcd => Some(Self::Etcd(KvClient::new(channel))),
            Kind::ZooKeeper => None,
        }
    }

    /// Writes; returns once a majority has it on disk and the leader has applied it.
    ///
    /// # Errors
    /// The member's own answer.
    pub async fn write(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        match self {
            Self::Vp(client) => client.write(WriteRequest { key: key.to_owned(), value: value.to_owned() }).await.map(drop)?,
            Self::Etcd(client) => client.put(PutRequest { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }).await.map(drop)?,
            Self::ZooKeeper(client) => {
                let path = format!("/{key}");
                match client.set_data(&path, value.as_bytes(), None).await {
                    Err(ZooKeeperError::NoNode) => {
                        let for_all = CreateMode::Persistent.with_acls(Acls::anyone_all());
                        client.create(&path, value.as_bytes(), &for_all).await.map(drop).context("create")?;
                    }
                    written => written.map(drop)?,
                }
            }
        }
        Ok(())
    }
}
