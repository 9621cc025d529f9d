//! A network namespace whose only way out is an interface that counts: what is not meant for this machine is seen there, whoever sent it.

use std::{net::UdpSocket, path::Path, process::Command, thread};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The interface everything takes that is not for this machine. Nobody listens at its other end.
const WAY_OUT: [&str; 6] = [
    "link set lo up",
    "link add out0 type veth peer in0",
    "link set in0 up",
    "link set out0 arp off up",
    "addr add 10.255.0.1/24 dev out0",
    "route add default dev out0",
];

/// Runs `work`, with everything it starts, in such a namespace, and gives what it found and how many packets wanted to leave the machine. Needs root.
///
/// # Errors
/// The namespace cannot be made, or its counter does not count.
pub fn counted<T: Send>(work: impl FnOnce() -> T + Send) -> anyhow::Result<(T, u64)> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            namespace()?;
            let before = sent()?;
            let found = work();
            let packets = sent()? - before;
            // The counter counts: one packet to a link-local address is one.
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "169.254.10.1:80")?;
            ensure!(sent()? == before + packets + 1, "the interface does not count what leaves");
            Ok((found, packets))
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn namespace() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace of its own needs root")?;
    // The kernel greets its IPv6 neighbours by itself; that is not ours to count.
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        if Path::new(&path).exists() {
            std::fs::write(path, "1")?;
        }
    }
    for line in WAY_OUT {
        ensure!(Command::new("ip").args(line.split(' ')).status()?.success(), "ip {line}");
    }
    Ok(())
}

fn sent() -> anyhow::Result<u64> {
    let answer = Command::new("ip").args(["-s", "-j", "link", "show", "out0"]).output()?;
    let parsed: Value = serde_json::from_slice(&answer.stdout)?;
    parsed[0]["stats64"]["tx"]["packets"].as_u64().context("ip counts no packets")
}
