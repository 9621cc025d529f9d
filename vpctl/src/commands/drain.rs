//! `drain`: everything moves off an instance before it is taken away; also which node a person means.

use std::time::Duration;

use tokio::time::Instant;
use vp_proto::v1::ClusterStatus;

use super::orders::tell;
use crate::arguments::{DrainArguments, Format};
use crate::cluster::Cluster;
use crate::failure::{EXIT_DEGRADED, EXIT_INTERRUPTED, Failure};
use crate::terminal::{Screen, spinner};

const LOOK: Duration = Duration::from_millis(500);

/// Drains a node or takes a drain back; with `wait`, until it carries nothing.
pub async fn drain(cluster: &Cluster, screen: &Screen, format: Format, words: DrainArguments) -> Result<u8, Failure> {
    let DrainArguments { node, undo, wait, timeout } = words;
    let instance = node_named(&cluster.status().await?, &node)?;
    let done = format!("{instance} {}", if undo { "takes slots again as of" } else { "is being drained as of" });
    tell(screen, format, "drain", &instance, &done, cluster.drain(&instance, undo).await?)?;
    if !wait {
        return Ok(0);
    }
    tokio::select! {
        code = until_empty(cluster, screen, &instance, Duration::from_secs(timeout)) => code,
        _ = tokio::signal::ctrl_c() => {
            screen.note(&format!("the drain goes on; look with `vpctl nodes`, take it back with `vpctl drain {instance} --undo`"));
            Ok(EXIT_INTERRUPTED)
        }
    }
}

async fn until_empty(cluster: &Cluster, screen: &Screen, instance: &str, timeout: Duration) -> Result<u8, Failure> {
    let bars = screen.bars();
    let bar = spinner(&bars, instance);
    let until = Instant::now() + timeout;
    let mut last = None;
    loop {
        // A leader that changes meanwhile is no reason to stop looking.
        if let Ok(status) = cluster.status().await {
            let left: Vec<String> = match status.nodes.iter().find(|n| n.instance_id == instance) {
                Some(node) => node.slots.iter().map(ToString::to_string).collect(),
                None => Vec::new(),
            };
            if left.is_empty() {
                bar.finish_and_clear();
                screen.note(&format!("{instance} carries nothing any more"));
                return Ok(0);
            }
            let text = format!("still carries {}", left.join(" "));
            if !screen.is_live() && last.as_ref() != Some(&text) {
                screen.note(&format!("{instance} {text}"));
            }
            bar.set_message(text.clone());
            last = Some(text);
        }
        if Instant::now() >= until {
            bar.finish_and_clear();
            let text = last.unwrap_or_else(|| "could not be looked at".to_owned());
            screen.note(&format!("{instance} {text} after {} s; `vpctl plan` says what each waits for", timeout.as_secs()));
            return Ok(EXIT_DEGRADED);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The instance id of the node a person means: the id, a beginning of it that is unique, or its address.
pub fn node_named(status: &ClusterStatus, name: &str) -> Result<String, Failure> {
    if let Some(node) = status.nodes.iter().find(|n| n.instance_id == name || n.address == name) {
        return Ok(node.instance_id.clone());
    }
    let mut found = status.nodes.iter().filter(|n| !name.is_empty() && n.instance_id.starts_with(name));
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node.instance_id.clone()),
        (Some(_), Some(_)) => Err(Failure::Usage(format!("more than one node begins with {name:?}: give more of the id"))),
        _ => Err(Failure::Missing { what: "node", name: name.to_owned(), look: "vpctl nodes" }),
    }
}

#[cfg(test)]
mod tests {
    use vp_proto::v1::NodeStatus;

    use super::*;

    #[test]
    fn a_node_is_found_by_id_unique_beginning_or_address_and_never_by_a_guess() {
        let node = |id: &str, address: &str| NodeStatus { instance_id: id.to_owned(), address: address.to_owned(), ..Default::default() };
        let status = ClusterStatus { nodes: vec![node("i-0ab", "127.38.1.20"), node("i-0cd", "127.38.1.21")], ..Default::default() };
        for name in ["i-0ab", "i-0a", "127.38.1.20"] {
            assert_eq!(node_named(&status, name).expect(name), "i-0ab");
        }
        assert_eq!(node_named(&status, "i-0").expect_err("two begin so").exit_code(), 64);
        assert_eq!(node_named(&status, "").expect_err("nothing is named").exit_code(), 1);
        assert_eq!(node_named(&status, "i-9").expect_err("there is none").exit_code(), 1);
    }
}
