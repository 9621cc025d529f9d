//! A coordinator's door: TCP connections become TLS connections with a known caller, and strangers cannot use up what members need.
//!
//! ```text
//!  the door's thread: accept ─> may this address have one more? ─> handshake (in time; of too many the oldest gives way) ─┐
//!  the server's:                                                                             gRPC <─ Connection <────────┘
//! ```
//!
//! Handshakes have a thread of their own, so that however many come, those who are inside wait for none of them (docs/decisions/0041).
//! Bounds are per address and in all. What a connection holds is given back when it is dropped, whoever drops it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

mod connection;
mod crowd;
mod socket;

pub use connection::{Call, Caller, Connection};
use crowd::Crowd;
use socket::Socket;

/// What a door lets in at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time for a handshake.
    pub handshake: Duration,
    /// Time from the handshake to the first request that is let in: whoever only connects, or sends half a request, is gone by then.
    pub first_request: Duration,
    /// Longest life of a connection, for doors through which nobody needs to stay.
    pub life: Option<Duration>,
    /// Longest time without a call under way, as the server counts them by [`Caller::call`]: whoever answers pings and asks for nothing is gone by then.
    pub idle: Option<Duration>,
    /// Handshakes under way. One more makes the oldest give way: an honest one is done in milliseconds.
    pub handshakes: usize,
    /// Handshakes under way from one address.
    pub handshakes_per_address: usize,
    /// Connections in all, handshakes included.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
}

/// A door that is open; closed by its thread as soon as that sees that the stream of [`Listener::incoming`] was dropped.
pub struct Listener {
    listener: std::net::TcpListener,
    acceptor: TlsAcceptor,
    bounds: Bounds,
}

/// Connections that are through the door and wait for the server to take them.
const READY: usize = 64;
/// Between members' work (0) and that of roles (10) on a machine where all of them want the same processors.
const NICE: i32 = 5;
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
        Ok(Self { listener: socket.listen(BACKLOG)?.into_std()?, acceptor: TlsAcceptor::from(tls), bounds })
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Callers as they come, for `Server::serve_with_incoming`; to be polled by the runtime that serves them.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn incoming(self) -> io::Result<impl Stream<Item = Result<Connection, io::Error>>> {
        let (ready, shaken) = mpsc::channel(READY);
        let bounds = self.bounds;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("door".to_owned()).spawn(move || {
            give_way();
            if let Err(error) = runtime.block_on(self.run(ready)) {
                tracing::error!(%error, "the door does not open");
            }
        })?;
        Ok(ReceiverStream::new(shaken).filter_map(move |shaken: Shaken| std::future::ready(shaken.inside(&bounds).map(Ok))))
    }

    async fn run(self, ready: mpsc::Sender<Shaken>) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let crowd = Arc::new(Crowd::new(self.bounds));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return Ok(()),
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    let _ = timeout(PAUSE, ready.closed()).await;
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
    ready: mpsc::Sender<Shaken>,
}

impl Handshake {
    async fn run(self, stream: TcpStream, place: crowd::Place) {
        let _ = stream.set_nodelay(true);
        let stream = match timeout(self.bounds.handshake, self.acceptor.accept(Socket::new(stream))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(from = %self.from, %error, "handshake refused"),
            Err(_) => return tracing::debug!(from = %self.from, "handshake not done in time"),
        };
        let _ = self.ready.send(Shaken { stream, from: self.from, place: place.shaken() }).await;
    }
}

/// Whose handshake is done.
struct Shaken {
    stream: TlsStream<Socket>,
    from: SocketAddr,
    place: crowd::Place,
}

impl Shaken {
    /// Goes over to the runtime that calls this. None: it broke meanwhile, or its certificate is not read.
    fn inside(mut self, bounds: &Bounds) -> Option<Connection> {
        if let Err(error) = self.stream.get_mut().0.adopt() {
            tracing::debug!(from = %self.from, %error, "connection broken after its handshake");
            return None;
        }
        let connection = Connection::new(self.stream, self.from.ip(), self.place, bounds);
        if connection.is_none() {
            tracing::debug!(from = %self.from, "certificate not read");
        }
        connection
    }
}

/// The calling thread works for strangers: where processors are short, it gives way to those that work for members.
pub fn give_way() {
    // SAFETY: plain system call; on Linux it changes the calling thread alone. Where it fails strangers only press more on those inside.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICE) };
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::{Authority, tls};

    const LONG: Duration = Duration::from_secs(60);
    /// Room for everybody: only time can run out.
    const BOUNDS: Bounds = Bounds {
        handshake: Duration::from_millis(200),
        first_request: LONG,
        life: None,
        idle: None,
        handshakes: 9,
        handshakes_per_address: 9,
        connections: 9,
        connections_per_address: 9,
    };

    #[tokio::test]
    async fn a_handshake_that_takes_too_long_is_ended_however_few_are_at_the_door() {
        let own = Authority::create("dev").unwrap().coordinator(1).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), tls::anybody(&own).unwrap(), BOUNDS).unwrap();
        let to = listener.address().unwrap();
        let _incoming = listener.incoming().unwrap();
        let mut stream = TcpStream::connect(to).await.unwrap();
        // The beginning of a hello, and nothing more.
        stream.write_all(&[22, 3, 1]).await.unwrap();
        let read = timeout(LONG / 2, stream.read(&mut [0])).await.expect("it is ended");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}
