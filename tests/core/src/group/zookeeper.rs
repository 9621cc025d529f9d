//! ZooKeeper as a peer, with its defaults (it syncs each transaction) but for the number of connections from one address, which it bounds at 60.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where clients reach a member.
pub const CLIENT_PORT: u16 = 2181;

/// A member of the group at `addresses`, after its configuration is written beside `disk`.
///
/// # Errors
/// The configuration cannot be written.
pub fn command(jars: &Path, member: usize, addresses: &[IpAddr], disk: &Path) -> anyhow::Result<Command> {
    let settings = disk.with_extension("cfg");
    let mut text = format!(
        "dataDir={}\nclientPort={CLIENT_PORT}\nclientPortAddress={}\ntickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n",
        disk.display(),
        addresses[member]
    );
    for (other, address) in addresses.iter().enumerate() {
        text.push_str(&format!("server.{}={address}:2888:3888\n", other + 1));
    }
    fs::write(&settings, text).with_context(|| settings.display().to_string())?;
    fs::write(disk.join("myid"), (member + 1).to_string()).with_context(|| disk.display().to_string())?;
    let mut command = Command::new("java");
    // The heap that its own start script gives.
    command.arg("-Xmx1000m").arg("-cp").arg(jars.join("*")).arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(settings);
    Ok(command)
}

/// What a member says of itself: whether it leads, and its newest transaction.
///
/// # Errors
/// It does not answer, or serves no requests.
pub async fn status(address: SocketAddr) -> anyhow::Result<(bool, u64)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"srvr").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).with_context(|| format!("no {name} in '{text}'"));
    let transaction = value("Zxid")?.trim_start_matches("0x");
    Ok((value("Mode")? == "leader", u64::from_str_radix(transaction, 16)?))
}
