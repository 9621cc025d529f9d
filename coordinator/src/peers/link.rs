//! One outgoing stream to another member: dialled, kept, dialled again. A refused connection is word of a death (docs/decisions/0020).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fail::fail_point;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use vp_proto::MAX_MESSAGE_BYTES;
use vp_proto::v1::Envelope;
use vp_proto::v1::peers_client::PeersClient;
use vp_trust::DialError;

use crate::raft::RaftHandle;
use crate::trust::Trust;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// From "the leader's process has ended" to standing for election: time for the others to learn it, then one after another, so that votes are not split.
const STAND_AFTER: Duration = Duration::from_millis(10);
const STAND_APART: Duration = Duration::from_millis(40);

pub(super) struct Parcel {
    pub envelope: Envelope,
    pub snapshot: bool,
}

/// One outgoing stream.
pub(super) struct Link {
    pub peer: u64,
    pub address: SocketAddr,
    pub trust: Arc<Trust>,
    /// How many members stood for election before this one when the stream was made, if the peer were gone.
    pub rank: u32,
    pub parcels: mpsc::Receiver<Parcel>,
}

impl Link {
    pub async fn run(mut self, raft: RaftHandle) {
        let endpoint = Endpoint::from_static("http://coordinator")
            .http2_keep_alive_interval(Duration::from_millis(500))
            .keep_alive_timeout(Duration::from_secs(1))
            .keep_alive_while_idle(true);
        let way = self.trust.way(self.address, Duration::from_secs(1));
        let mut backoff = BACKOFF_MIN;
        loop {
            fail_point!("peers::connect");
            match vp_trust::dial(endpoint.clone(), &way).await {
                Ok(channel) => {
                    tracing::info!(peer = self.peer, "peer connected");
                    let connected = Instant::now();
                    if !self.stream(PeersClient::new(channel), &raft).await {
                        return;
                    }
                    tracing::info!(peer = self.peer, "peer disconnected");
                    // At once, to tell a process that has ended from a connection that broke; not again and again.
                    backoff = if connected.elapsed() > BACKOFF_MAX { Duration::ZERO } else { BACKOFF_MIN };
                }
                Err(error @ (DialError::Untrusted { .. } | DialError::Refused { .. })) => {
                    tracing::warn!(peer = self.peer, error = &error as &dyn std::error::Error, "peer is not of this cluster");
                }
                Err(error) => {
                    tracing::debug!(peer = self.peer, error = &error as &dyn std::error::Error, "peer not reachable");
                    if refused(&error) {
                        raft.report_gone(self.peer);
                        let (raft, wait) = (raft.clone(), STAND_AFTER + STAND_APART * self.rank);
                        tokio::spawn(async move {
                            tokio::time::sleep(wait).await;
                            raft.stand();
                        });
                    }
                }
            }
            raft.report_unreachable(self.peer);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
            // What queued up meanwhile is stale.
            loop {
                match self.parcels.try_recv() {
                    Ok(parcel) if parcel.snapshot => raft.report_snapshot(self.peer, false),
                    Ok(_) => {}
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    /// Sends until the connection breaks (true) or the raft thread has ended (false).
    async fn stream(&mut self, client: PeersClient<tonic::transport::Channel>, raft: &RaftHandle) -> bool {
        fail_point!("peers::stream", |_| true);
        let mut client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (stream, envelopes) = mpsc::channel(16);
        let call = client.send(ReceiverStream::new(envelopes));
        tokio::pin!(call);
        loop {
            let parcel = tokio::select! {
                outcome = &mut call => {
                    if let Err(status) = outcome {
                        tracing::debug!(peer = self.peer, %status, "peer stream ended");
                    }
                    return true;
                }
                parcel = self.parcels.recv() => parcel,
            };
            let Some(parcel) = parcel else { return false };
            let sent = tokio::select! {
                _ = &mut call => false,
                sent = stream.send(parcel.envelope) => sent.is_ok(),
            };
            if parcel.snapshot {
                raft.report_snapshot(self.peer, sent);
            }
            if !sent {
                return true;
            }
        }
    }
}

/// Whether the machine is there and says that nobody listens on the port. A machine that is gone, or cut off, says nothing.
fn refused(error: &DialError) -> bool {
    matches!(error, DialError::Unreachable { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused)
}
