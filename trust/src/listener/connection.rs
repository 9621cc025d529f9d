//! A connection whose caller is known. It ends by itself when its caller asks for nothing that is allowed within its time.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

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
}

impl Caller {
    /// A caller that no connection stands behind.
    pub fn new(certificate: Option<Certificate>, from: IpAddr) -> Self {
        Self { certificate, from, welcome: Arc::default() }
    }

    /// A request of it is let in: its connection may stay.
    pub fn welcome(&self) {
        self.welcome.store(true, Ordering::Relaxed);
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
}

impl Connection {
    /// None when the certificate cannot be read, which the handshake should have refused.
    pub(super) fn new(stream: TlsStream<Socket>, from: IpAddr, place: Place, first_request: Instant, end: Option<Instant>) -> Option<Self> {
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = match shown {
            Some(leaf) => Some(Certificate::read(leaf).ok()?),
            None => None,
        };
        let sleep = |until| Box::pin(tokio::time::sleep_until(until));
        let caller = Caller::new(certificate, from);
        Some(Self { stream, caller, _place: place, probation: Some(sleep(first_request)), end: end.map(sleep) })
    }

    /// Whether its time is up. Asked whatever the server is about to do: a caller that reads nothing keeps it from reading too.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.caller.welcome.load(Ordering::Relaxed) {
            self.probation = None;
        }
        let mut rung = |alarm: &mut Option<Pin<Box<Sleep>>>| alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready());
        // Both are polled, so that both wake this task.
        rung(&mut self.probation) | rung(&mut self.end)
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
