//! The call back: whoever answers at an instance's address holds the key of the certificate request that came in its name.
//!
//! The proof is a TLS 1.3 handshake and nothing else. The agent listens on a fixed port of its own address and shows only the request's public key; its
//! signature over the handshake, with fresh randomness of both sides, cannot be replayed or had from elsewhere. No format of our own, nothing to parse.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::request::Fresh;
use crate::tls;

/// Port of an instance's own address at which its agent answers.
pub const PORT: u16 = 7402;
/// How long one caller of an agent may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Callers at once.
const SLOTS: usize = 16;

/// The proof was not had.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Nobody answers there, or not in time.
    #[error("nobody answers at {0}")]
    Silent(SocketAddr),
    /// Somebody else answers there.
    #[error("whoever answers at {address} does not hold the request's key")]
    Other {
        /// Where.
        address: SocketAddr,
        /// What the handshake said.
        source: std::io::Error,
    },
    /// TLS could not be set up.
    #[error("the call back cannot be made")]
    Setup(#[from] rustls::Error),
}

/// The coordinator's side: asks at `address`, from `own`.
///
/// # Errors
/// No proof.
pub async fn ask(address: IpAddr, own: IpAddr, public_key: Vec<u8>, within: Duration) -> Result<(), ProofError> {
    let address = SocketAddr::new(address, PORT);
    let connector = TlsConnector::from(tls::asking(public_key)?);
    let asked = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.and_then(|socket| socket.bind(SocketAddr::new(own, 0)).map(|()| socket));
        let stream = match socket {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        let stream = stream.map_err(|_| ProofError::Silent(address))?;
        let handshake = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await;
        let answered = handshake.map_err(|source| ProofError::Other { address, source })?;
        // A server that agrees on no protocol is not refused by TLS: it is another one than ours.
        if answered.get_ref().1.alpn_protocol() != Some(tls::PROOF) {
            return Err(ProofError::Other { address, source: std::io::Error::other("it speaks another protocol") });
        }
        Ok(())
    };
    timeout(within, asked).await.map_err(|_| ProofError::Silent(address))?
}

/// The agent's side: answers at its own address until dropped.
pub struct Answering {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Answering {
    /// Takes the port; nobody else on the instance can have it meanwhile.
    ///
    /// # Errors
    /// The port is taken, or TLS cannot be set up.
    pub async fn bind(own: IpAddr, request: &Fresh) -> std::io::Result<Self> {
        let config = tls::proving(request.public_key(), request.key()).map_err(std::io::Error::other)?;
        Ok(Self { listener: TcpListener::bind(SocketAddr::new(own, PORT)).await?, acceptor: TlsAcceptor::from(config) })
    }

    /// Answers whoever is a `coordinator`, for ever; hangs up on everybody else. Each handshake is the whole answer.
    pub async fn run(self, coordinator: impl Fn(IpAddr) -> bool) {
        // More than coordinators there are: one that hangs must not stand in the others' way.
        let slots = Arc::new(tokio::sync::Semaphore::new(SLOTS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, from)) if coordinator(from.ip()) => stream,
                Ok(_) => continue,
                Err(_) => {
                    // Out of descriptors, say: that passes, or the session's end is noticed elsewhere.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let acceptor = self.acceptor.clone();
            tokio::spawn(async move {
                let _ = timeout(ANSWER, acceptor.accept(stream)).await;
                drop(slot);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 131, 7, 20));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 131, 7, 21));
    const COORDINATOR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 131, 7, 10));

    fn fresh() -> Fresh {
        Fresh::new(&Name::node("dev", "i-1")).unwrap()
    }

    #[tokio::test]
    async fn only_the_holder_of_the_requests_key_at_the_instances_address_is_proof() {
        let (true_one, other) = (fresh(), fresh());
        let within = Duration::from_secs(5);
        let nobody = ask(HERE, COORDINATOR, true_one.public_key(), within).await;
        assert!(matches!(nobody, Err(ProofError::Silent(_))));
        let answering = tokio::spawn(Answering::bind(HERE, &true_one).await.unwrap().run(|from| from == COORDINATOR));
        ask(HERE, COORDINATOR, true_one.public_key(), within).await.unwrap();
        // A thief's request, with the thief's key: the true agent answers, and it is not the thief's key.
        assert!(matches!(ask(HERE, COORDINATOR, other.public_key(), within).await, Err(ProofError::Other { .. })));
        // The thief answers too, but not there.
        let thief = tokio::spawn(Answering::bind(ELSEWHERE, &other).await.unwrap().run(|from| from == COORDINATOR));
        assert!(matches!(ask(HERE, COORDINATOR, other.public_key(), within).await, Err(ProofError::Other { .. })));
        answering.abort();
        thief.abort();
    }

    /// Who shows the right key and does not hold it, and who holds it and answers something else: both would pass for the instance.
    #[tokio::test]
    async fn a_key_that_is_shown_and_not_held_and_another_protocol_under_it_are_no_proof() {
        let (victim, thief) = (fresh(), fresh());
        let shown = tls::proving(victim.public_key(), thief.key()).unwrap();
        let mut other = (*tls::proving(victim.public_key(), victim.key()).unwrap()).clone();
        other.alpn_protocols = Vec::new();
        for (host, config) in [(23, shown), (24, Arc::new(other))] {
            let own = IpAddr::from([127, 131, 7, host]);
            let listener = TcpListener::bind(SocketAddr::new(own, PORT)).await.unwrap();
            let answering = tokio::spawn(Answering { listener, acceptor: TlsAcceptor::from(config) }.run(|from| from == COORDINATOR));
            let answer = ask(own, COORDINATOR, victim.public_key(), Duration::from_secs(5)).await;
            assert!(matches!(answer, Err(ProofError::Other { .. })), "{host}: {answer:?}");
            answering.abort();
        }
    }

    #[tokio::test]
    async fn strangers_and_a_coordinator_that_says_nothing_do_not_stand_in_the_way() {
        let request = fresh();
        let own = IpAddr::from([127, 131, 7, 22]);
        let answering = tokio::spawn(Answering::bind(own, &request).await.unwrap().run(|from| from == COORDINATOR));
        let mut idle = Vec::new();
        for from in [HERE, COORDINATOR] {
            for _ in 0..SLOTS - 1 {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::new(from, 0)).unwrap();
                idle.push(socket.connect(SocketAddr::new(own, PORT)).await.unwrap());
            }
        }
        ask(own, COORDINATOR, request.public_key(), Duration::from_secs(2)).await.unwrap();
        answering.abort();
    }
}
