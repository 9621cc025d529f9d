//! One durable write through a member's public gRPC service, whichever kind it is.

use tonic::Status;
use tonic::transport::Channel;

use crate::group::Kind;
use crate::wire::etcd::{PutRequest, kv_client::KvClient};
use crate::wire::registers::{WriteRequest, registers_client::RegistersClient};

/// A client of one member.
#[derive(Clone)]
pub enum Writer {
    /// The register service over the coordinators' log.
    Vp(RegistersClient<Channel>),
    /// etcd's key-value service.
    Etcd(KvClient<Channel>),
}

impl Writer {
    /// A client over an open connection.
    pub fn new(kind: Kind, channel: Channel) -> Self {
        match kind {
            Kind::Vp => Self::Vp(RegistersClient::new(channel)),
            Kind::Etcd => Self::Etcd(KvClient::new(channel)),
        }
    }

    /// Writes; returns once a majority has it on disk and the leader has applied it.
    ///
    /// # Errors
    /// The member's own answer.
    pub async fn write(&mut self, key: &str, value: &str) -> Result<(), Status> {
        match self {
            Self::Vp(client) => client.write(WriteRequest { key: key.to_owned(), value: value.to_owned() }).await.map(drop),
            Self::Etcd(client) => client.put(PutRequest { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }).await.map(drop),
        }
    }
}
