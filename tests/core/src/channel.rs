//! How every client here reaches a server: the one place that knows about transport security, keep-alive and source addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

/// A connection that is up, bound to `from` when given.
///
/// # Errors
/// Nobody answers there within a second.
pub async fn open(address: SocketAddr, from: Option<IpAddr>) -> Result<Channel, Error> {
    endpoint(address, from)?.connect().await
}

/// A connection that is made when first used, and again after it broke.
///
/// # Errors
/// Never for a socket address.
pub fn lazy(address: SocketAddr) -> Result<Channel, Error> {
    Ok(endpoint(address, None)?.connect_lazy())
}

fn endpoint(address: SocketAddr, from: Option<IpAddr>) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.local_address(from).connect_timeout(Duration::from_secs(1)).tcp_nodelay(true))
}
