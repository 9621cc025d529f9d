//! A link that can be bad: a TCP forwarder between two members, each direction of which can be cut or slowed while connections stay open. A cut direction
//! is silent, as a network's is: nothing is refused, bytes wait and come late or never. Needs no root; TLS passes through it untouched.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// One direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    #[default]
    Open,
    /// Nothing passes.
    Cut,
    /// Every piece is so late.
    Slow(Duration),
}

/// Both directions, and how often connections were broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    forth: Flow,
    back: Flow,
    breaks: u64,
}

/// A running link; ends when dropped.
pub struct Proxy {
    condition: watch::Sender<Condition>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on `at` and forwards to `target`.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn start(at: SocketAddr, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))?;
        let (condition, seen) = watch::channel(Condition::default());
        let task = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                tokio::spawn(forward(stream, from.ip(), target, seen.clone()));
            }
        });
        Ok(Self { condition, task })
    }

    /// From now on, what goes to the target and what comes back.
    pub fn set(&self, forth: Flow, back: Flow) {
        self.condition.send_modify(|condition| (condition.forth, condition.back) = (forth, back));
    }

    /// Breaks every connection there is.
    pub fn reset(&self) {
        self.condition.send_modify(|condition| condition.breaks += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.reset();
    }
}

/// On, from the address that called: a node's certificate is good from its own alone, and a member is answered where it calls from.
async fn reach(target: SocketAddr, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(target).await
}

async fn forward(stream: TcpStream, from: IpAddr, target: SocketAddr, mut condition: watch::Receiver<Condition>) {
    let breaks = condition.borrow().breaks;
    // While nothing passes, nobody is reached either.
    if condition.wait_for(|now| now.forth != Flow::Cut).await.is_err() {
        return;
    }
    let Ok(there) = reach(target, from).await else { return };
    let _ = (stream.set_nodelay(true), there.set_nodelay(true));
    let ((from_here, to_here), (from_there, to_there)) = (stream.into_split(), there.into_split());
    let forth = copy(from_here, to_there, condition.clone(), |now| now.forth);
    let back = copy(from_there, to_here, condition.clone(), |now| now.back);
    tokio::select! {
        () = forth => {}
        () = back => {}
        _ = condition.wait_for(|now| now.breaks != breaks) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut condition: watch::Receiver<Condition>, of: fn(&Condition) -> Flow) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let Ok(flow) = condition.wait_for(|now| of(now) != Flow::Cut).await.map(|now| of(&now)) else { return };
        if let Flow::Slow(late) = flow {
            sleep(late).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    async fn echo(at: SocketAddr) {
        let listener = TcpListener::bind(at).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
    }

    #[tokio::test]
    async fn a_cut_direction_is_silent_and_what_waited_comes_late() {
        let (at, target) = (SocketAddr::from(([127, 119, 0, 1], 7001)), SocketAddr::from(([127, 119, 0, 2], 7001)));
        echo(target).await;
        let proxy = Proxy::start(at, target).await.unwrap();
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut byte = [0];
        stream.write_all(b"a").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        proxy.set(Flow::Open, Flow::Cut);
        stream.write_all(b"b").await.unwrap();
        assert!(timeout(Duration::from_millis(100), stream.read_exact(&mut byte)).await.is_err(), "nothing comes back, nothing is refused");
        proxy.set(Flow::Open, Flow::Open);
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, *b"b");
        proxy.reset();
        assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)), "broken on purpose");
    }
}
