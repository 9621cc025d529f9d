//! A connection whose caller is known. It ends by itself when its caller asks for nothing that is allowed within its time, and when it has not for too long.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Bounds;
use super::crowd::Place;
use super::socket::Socket;
use crate::certificate::Certificate;

/// Who is on the other side; every request carries it among its extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What its certificate says; none on a door that asks for none.
    pub certificate: Option<Certificate>,
    /// Where it calls from.
    pub from: IpAddr,
    welcome: Arc<AtomicBool>,
    calls: Calls,
}

impl Caller {
    /// A caller that no connection stands behind.
    pub fn new(certificate: Option<Certificate>, from: IpAddr) -> Self {
        Self { certificate, from, welcome: Arc::default(), calls: Calls::none() }
    }

    /// A request of it is let in: its connection may stay.
    pub fn welcome(&self) {
        self.welcome.store(true, Ordering::Relaxed);
    }

    /// A call of it is let in: its connection may stay, and is not idle before the call is over.
    #[must_use = "the call is over when this is dropped"]
    pub fn call(&self) -> Call {
        self.welcome();
        self.calls.lock().under_way += 1;
        Call { calls: self.calls.clone() }
    }

    /// Since when no call of it is under way; none while one is.
    pub fn quiet_since(&self) -> Option<Instant> {
        let counted = self.calls.lock();
        (counted.under_way == 0).then_some(counted.quiet_since)
    }
}

/// A call that is under way; over when dropped.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counted = self.calls.lock();
        counted.under_way -= 1;
        counted.quiet_since = Instant::now();
    }
}

/// The calls of one connection.
#[derive(Clone, Debug)]
struct Calls(Arc<Mutex<Counted>>);

#[derive(Debug)]
struct Counted {
    under_way: usize,
    /// When the last one was over. Kept, since a short call begins and ends without the connection being asked in between.
    quiet_since: Instant,
}

impl Calls {
    fn none() -> Self {
        Self(Arc::new(Mutex::new(Counted { under_way: 0, quiet_since: Instant::now() })))
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings when there may have been no call for too long. Not set anew at each call: when it rings it is looked at how long it has been.
struct Idle {
    bound: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl Idle {
    fn is_over(&mut self, caller: &Caller, cx: &mut Context<'_>) -> bool {
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let until = caller.quiet_since().unwrap_or(now) + self.bound;
            if until <= now {
                return true;
            }
            self.alarm.as_mut().reset(until);
        }
        false
    }
}

/// What the gRPC server reads and writes.
pub struct Connection {
    stream: TlsStream<Socket>,
    caller: Caller,
    _place: Place,
    /// Until the caller is welcome this is when it ends.
    probation: Option<Pin<Box<Sleep>>>,
    end: Option<Pin<Box<Sleep>>>,
    idle: Option<Idle>,
}

impl Connection {
    /// None when the certificate cannot be read, which the handshake should have refused.
    pub(super) fn new(stream: TlsStream<Socket>, from: IpAddr, place: Place, bounds: &Bounds) -> Option<Self> {
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = match shown {
            Some(leaf) => Some(Certificate::read(leaf).ok()?),
            None => None,
        };
        let sleep = |time| Box::pin(tokio::time::sleep(time));
        Some(Self {
            stream,
            caller: Caller::new(certificate, from),
            _place: place,
            probation: Some(sleep(bounds.first_request)),
            end: bounds.life.map(sleep),
            idle: bounds.idle.map(|bound| Idle { bound, alarm: sleep(bound) }),
        })
    }

    /// Whether its time is up. Asked whatever the server is about to do: a caller that reads nothing keeps it from reading too.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.caller.welcome.load(Ordering::Relaxed) {
            self.probation = None;
        }
        let idle = self.idle.as_mut().is_some_and(|idle| idle.is_over(&self.caller, cx));
        let mut rung = |alarm: &mut Option<Pin<Box<Sleep>>>| alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready());
        // All are polled, so that all wake this task.
        rung(&mut self.probation) | rung(&mut self.end) | idle
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use rustls::pki_types::ServerName;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;
    use tokio::time::timeout;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::authority::Authority;
    use crate::listener::Listener;
    use crate::tls;

    const IDLE: Duration = Duration::from_millis(100);
    /// Far more than a test takes.
    const LONG: Duration = Duration::from_secs(60);

    const BOUNDS: Bounds = Bounds {
        handshake: LONG,
        first_request: LONG,
        life: None,
        idle: Some(IDLE),
        handshakes: 1,
        handshakes_per_address: 1,
        connections: 1,
        connections_per_address: 1,
    };

    /// A connection that is through the door, and its other end, which says nothing.
    async fn connected() -> (Connection, tokio_rustls::client::TlsStream<TcpStream>) {
        let authority = Authority::create("dev").unwrap();
        let own = authority.coordinator(1).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), tls::anybody(&own).unwrap(), BOUNDS).unwrap();
        let to = listener.address().unwrap();
        let mut incoming = std::pin::pin!(listener.incoming().unwrap());
        let client = TlsConnector::from(tls::client(authority.hash(), None).unwrap());
        let other = async {
            let stream = TcpStream::connect(to).await.unwrap();
            client.connect(ServerName::IpAddress(to.ip().into()), stream).await.unwrap()
        };
        let (connection, other) = tokio::join!(incoming.next(), other);
        (connection.unwrap().unwrap(), other)
    }

    /// Reads until the connection ends by itself.
    async fn ended(connection: &mut Connection) -> io::ErrorKind {
        let read = timeout(LONG / 2, connection.read(&mut [0])).await;
        read.expect("it ends").expect_err("nobody has said anything").kind()
    }

    async fn lives(connection: &mut Connection, time: Duration) -> bool {
        timeout(time, connection.read(&mut [0])).await.is_err()
    }

    #[tokio::test]
    async fn a_connection_without_a_call_under_way_is_closed_after_the_idle_time() {
        let begun = Instant::now();
        let (mut connection, _other) = connected().await;
        connection.connect_info().welcome();
        assert_eq!(ended(&mut connection).await, io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= IDLE, "after {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_connection_with_an_open_stream_lives_on_and_has_its_time_again_once_that_is_over() {
        let (mut connection, _other) = connected().await;
        let caller = connection.connect_info();
        let (stream, another) = (caller.call(), caller.call());
        assert!(lives(&mut connection, IDLE * 3).await);
        drop(another);
        assert!(lives(&mut connection, IDLE * 3).await, "one of two is over");
        let over = Instant::now();
        drop(stream);
        assert_eq!(ended(&mut connection).await, io::ErrorKind::TimedOut);
        assert!(over.elapsed() >= IDLE, "after {:?}", over.elapsed());
    }

    #[tokio::test]
    async fn the_idle_time_starts_anew_after_each_call_however_short() {
        let (mut connection, _other) = connected().await;
        let caller = connection.connect_info();
        let mut over = Instant::now();
        for _ in 0..3 {
            // The connection is not asked meanwhile: it learns of none of these calls while they are under way.
            tokio::time::sleep(IDLE / 2).await;
            over = Instant::now();
            drop(caller.call());
        }
        assert_eq!(ended(&mut connection).await, io::ErrorKind::TimedOut);
        assert!(over.elapsed() >= IDLE, "after {:?}", over.elapsed());
    }
}
