//! The register service: writes are proposed and answered once applied, reads wait for a ReadIndex round that began after they came in.

use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use vp_cluster::{ClusterState, Command};
use vp_coordinator::machine::Entry;
use vp_coordinator::raft::{ProposeError, RaftHandle, ReadError};
use vp_core_tests::wire::registers::{
    MemberRequest, MemberResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse, registers_server::Registers as RegistersService,
};

use crate::machine::{Registers, Write};

/// What the log makes, and how it is read.
pub enum Content {
    /// The cluster's state: a register's value is its newest event.
    Cluster(watch::Receiver<Arc<ClusterState>>),
    Registers(Registers),
}

pub struct RegistersApi {
    pub raft: RaftHandle,
    pub content: Content,
    /// The planted bug.
    pub stale_reads: bool,
}

impl Content {
    fn command(&self, key: String, value: String) -> Result<Vec<u8>, Status> {
        let encoded = match self {
            // Exactly as a coordinator proposes a command.
            Self::Cluster(_) => {
                let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
                serde_json::to_vec(&Entry { unix_ms, request: None, command: Command::Note { kind: "write".to_owned(), subject: key, detail: value } })
            }
            Self::Registers(_) => serde_json::to_vec(&Write { key, value }),
        };
        encoded.map_err(|error| Status::invalid_argument(error.to_string()))
    }

    fn read(&self, key: &str) -> String {
        match self {
            Self::Cluster(state) => {
                let state = state.borrow().clone();
                state.events.iter().rev().find(|event| event.subject == key).map(|event| event.detail.clone()).unwrap_or_default()
            }
            Self::Registers(registers) => registers.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default(),
        }
    }
}

#[tonic::async_trait]
impl RegistersService for RegistersApi {
    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let WriteRequest { key, value } = request.into_inner();
        match self.raft.propose(self.content.command(key, value)?).await {
            Ok(applied) => Ok(Response::new(WriteResponse { index: applied.index })),
            Err(error @ ProposeError::NotLeader { .. }) => Err(Status::failed_precondition(error.to_string())),
            Err(error @ ProposeError::UnknownOutcome) => Err(Status::unknown(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        if self.stale_reads {
            return Ok(Response::new(ReadResponse { value: self.content.read(&request.into_inner().key) }));
        }
        match self.raft.read_index().await {
            Ok(_) => Ok(Response::new(ReadResponse { value: self.content.read(&request.into_inner().key) })),
            Err(error @ ReadError::NotLeader { .. }) => Err(Status::failed_precondition(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn member(&self, _: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        let status = self.raft.status();
        let leads = status.leads();
        Ok(Response::new(MemberResponse { id: status.id, term: status.term, leader_id: status.leader, leads, applied: status.applied, commit: status.commit }))
    }
}
