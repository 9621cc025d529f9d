//! A channel to a coordinator: TCP from a chosen address, TLS that checks who answers, HTTP/2 on top.
//!
//! One connection and no more: when it breaks the channel is over and the caller dials anew, since it has to say hello again anyway.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// How to get there.
#[derive(Clone)]
pub struct Way {
    /// The coordinator.
    pub to: SocketAddr,
    /// The address to call from; an instance's certificate is good from its own alone.
    pub from: Option<IpAddr>,
    /// Who we are and whom we trust: `tls::client`.
    pub tls: Arc<ClientConfig>,
    /// Time for all of it.
    pub within: Duration,
}

/// No channel. Split by what the caller does: try elsewhere, look for a liar, get another certificate.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody is there, or not in time.
    #[error("{to} is not reachable")]
    Unreachable {
        /// Where.
        to: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Somebody is there who is no coordinator of our cluster.
    #[error("whoever answers at {to} is no coordinator of this cluster")]
    Untrusted {
        /// Where.
        to: SocketAddr,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The coordinator does not take our certificate.
    #[error("{to} does not take this certificate: {}", reason(*alert))]
    Refused {
        /// Where.
        to: SocketAddr,
        /// Its word, as TLS has it.
        alert: AlertDescription,
    },
    /// HTTP/2.
    #[error("{to} does not speak HTTP/2")]
    Http {
        /// Where.
        to: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// TLS's word for a person.
fn reason(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "it is not good at this time",
        AlertDescription::UnknownCA => "another root has signed it",
        AlertDescription::CertificateRequired => "there is none",
        AlertDescription::BadCertificate => "it is of another cluster, or damaged",
        _ => "it is not acceptable",
    }
}

/// Opens one. `endpoint` carries what is to be said of HTTP/2 (keep-alive, windows); its address is not used.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(endpoint: Endpoint, way: &Way) -> Result<Channel, DialError> {
    let late = |_| DialError::Unreachable { to: way.to, source: io::ErrorKind::TimedOut.into() };
    let stream = timeout(way.within, secure(way)).await.map_err(late)??;
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is over"));
        std::future::ready(stream.map(TokioIo::new))
    });
    endpoint.connect_with_connector(connector).await.map_err(|source| DialError::Http { to: way.to, source })
}

async fn connect(way: &Way) -> io::Result<TcpStream> {
    let socket = if way.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = way.from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(way.to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn secure(way: &Way) -> Result<BufReader<TlsStream<TcpStream>>, DialError> {
    let stream = connect(way).await.map_err(|source| DialError::Unreachable { to: way.to, source })?;
    let shaken = TlsConnector::from(way.tls.clone()).connect(ServerName::IpAddress(way.to.ip().into()), stream).await;
    let mut stream = BufReader::new(shaken.map_err(|error| judge(way.to, error))?);
    // In TLS 1.3 our side is done before the other has looked at our certificate. Its first bytes (HTTP/2 settings, which a server sends unasked) say that
    // it has; a refusal is an alert in their place, and is told from a broken connection here and nowhere later.
    match stream.fill_buf().await {
        Ok([]) => Err(DialError::Unreachable { to: way.to, source: io::ErrorKind::ConnectionReset.into() }),
        Ok(_) => Ok(stream),
        Err(error) => Err(judge(way.to, error)),
    }
}

fn judge(to: SocketAddr, error: io::Error) -> DialError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => DialError::Refused { to, alert: *alert },
        Some(other) => DialError::Untrusted { to, source: other.clone() },
        None => DialError::Unreachable { to, source: error },
    }
}
