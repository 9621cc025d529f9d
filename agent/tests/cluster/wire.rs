//! A wire between the agent and its leader of which each direction can be cut alone. A cut one is silent, as a network's is: nothing is refused, bytes wait.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Wire {
    forth: watch::Sender<bool>,
    back: watch::Sender<bool>,
}

impl Wire {
    pub fn open() -> Self {
        Self { forth: watch::Sender::new(true), back: watch::Sender::new(true) }
    }

    pub fn set(&self, forth: bool, back: bool) {
        self.forth.send_replace(forth);
        self.back.send_replace(back);
    }

    pub async fn carry(self, listener: TcpListener, target: SocketAddr) {
        while let Ok((here, from)) = listener.accept().await {
            let (forth, back) = (self.forth.subscribe(), self.back.subscribe());
            tokio::spawn(async move {
                if let Ok(there) = reach(target, from.ip()).await {
                    between(here, there, forth, back).await;
                }
            });
        }
    }
}

/// From the address that called: a node's certificate is good from its own alone.
async fn reach(target: SocketAddr, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(target).await
}

async fn between(here: TcpStream, there: TcpStream, forth: watch::Receiver<bool>, back: watch::Receiver<bool>) {
    let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
    tokio::select! {
        () = copy(from_here, to_there, forth) => {}
        () = copy(from_there, to_here, back) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
