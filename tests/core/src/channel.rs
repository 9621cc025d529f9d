//! How every client here reaches a server: the one place that knows about transport security, keep-alive and source addresses. Everything of ours is reached
//! over TLS, under whose certificate the caller says; a peer as its group says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Error};

/// Whose certificate is shown; none: in the clear.
pub type Tls = Option<Arc<ClientConfig>>;

const WITHIN: Duration = Duration::from_secs(1);

/// A connection that is up, bound to `from` when given.
///
/// # Errors
/// Nobody answers there within a second, or not under a certificate of the cluster.
pub async fn open(address: SocketAddr, from: Option<IpAddr>, tls: Tls) -> Result<Channel, Error> {
    let endpoint = endpoint(address, from)?;
    match tls {
        Some(tls) => endpoint.connect_with_connector(tower::service_fn(move |_| secure(address, from, tls.clone()))).await,
        None => endpoint.connect().await,
    }
}

/// A connection that is made when first used, and again after it broke.
///
/// # Errors
/// Never for a socket address.
pub fn lazy(address: SocketAddr, tls: Tls) -> Result<Channel, Error> {
    let endpoint = endpoint(address, None)?;
    Ok(match tls {
        Some(tls) => endpoint.connect_with_connector_lazy(tower::service_fn(move |_| secure(address, None, tls.clone()))),
        None => endpoint.connect_lazy(),
    })
}

fn endpoint(address: SocketAddr, from: Option<IpAddr>) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.local_address(from).connect_timeout(WITHIN).tcp_nodelay(true))
}

async fn secure(address: SocketAddr, from: Option<IpAddr>, tls: Arc<ClientConfig>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let shaken = async {
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(ServerName::IpAddress(address.ip().into()), stream).await
    };
    Ok(TokioIo::new(tokio::time::timeout(WITHIN, shaken).await??))
}
