//! A coordinator's door: TCP connections become TLS connections with a known caller, and strangers cannot use up what members need.
//!
//! ```text
//!  accept ─> may this address have one more? ─> handshake (in time; of too many the oldest gives way) ─> Connection ─> gRPC
//! ```
//!
//! Bounds are per address and in all. What a connection holds is given back when it is dropped, whoever drops it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

mod connection;
mod crowd;

pub use connection::{Caller, Connection};
use crowd::Crowd;

/// What a door lets in at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time for a handshake.
    pub handshake: Duration,
    /// Time from the handshake to the first request that is let in: whoever only connects, or sends half a request, is gone by then.
    pub first_request: Duration,
    /// Longest life of a connection, for doors through which nobody needs to stay.
    pub life: Option<Duration>,
    /// Handshakes under way. One more makes the oldest give way: an honest one is done in milliseconds.
    pub handshakes: usize,
    /// Handshakes under way from one address.
    pub handshakes_per_address: usize,
    /// Connections in all, handshakes included.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
}

/// A door that is open; closed when the stream of [`Listener::incoming`] is dropped.
pub struct Listener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    bounds: Bounds,
}

/// Connections that are through the door and wait for the server to take them.
const READY: usize = 64;
/// After an error that has nothing to do with one connection (no descriptors left).
const PAUSE: Duration = Duration::from_millis(50);

impl Listener {
    /// Opens a door.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn bind(address: SocketAddr, tls: Arc<ServerConfig>, bounds: Bounds) -> io::Result<Self> {
        let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, acceptor: TlsAcceptor::from(tls), bounds })
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Callers as they come, for `Server::serve_with_incoming`.
    pub fn incoming(self) -> impl Stream<Item = Result<Connection, io::Error>> {
        let (ready, connections) = mpsc::channel(READY);
        tokio::spawn(self.run(ready));
        ReceiverStream::new(connections)
    }

    async fn run(self, ready: mpsc::Sender<Result<Connection, io::Error>>) {
        let crowd = Arc::new(Crowd::new(self.bounds));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Turned away without a word: it costs us least.
            let Some(place) = crowd.enter(from.ip()) else { continue };
            let handshake = Handshake { acceptor: self.acceptor.clone(), bounds: self.bounds, from, ready: ready.clone() };
            place.during(|place| tokio::spawn(handshake.run(stream, place)).abort_handle());
        }
    }
}

/// Connections that the kernel holds for us: enough for a thousand agents that come at once.
const BACKLOG: u32 = 1024;

struct Handshake {
    acceptor: TlsAcceptor,
    bounds: Bounds,
    from: SocketAddr,
    ready: mpsc::Sender<Result<Connection, io::Error>>,
}

impl Handshake {
    async fn run(self, stream: TcpStream, place: crowd::Place) {
        let _ = stream.set_nodelay(true);
        let stream = match timeout(self.bounds.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(from = %self.from, %error, "handshake refused"),
            Err(_) => return tracing::debug!(from = %self.from, "handshake not done in time"),
        };
        let now = Instant::now();
        let Some(connection) =
            Connection::new(stream, self.from.ip(), place.shaken(), now + self.bounds.first_request, self.bounds.life.map(|life| now + life))
        else {
            return tracing::debug!(from = %self.from, "certificate not read");
        };
        let _ = self.ready.send(Ok(connection)).await;
    }
}

/// An address as bounds count it: IPv6 hosts own a /64 each.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => {
            let mut segments = six.segments();
            segments[4..].fill(0);
            IpAddr::from(segments)
        }
    }
}
