//! What an operator orders and does not wait for: cordon, move, scale, apply, the brake, and a word for the forgotten. The coordinators carry it on; `plan` and `explain` show how far.

use std::path::Path;

use vp_proto::v1::{Accepted, MoveRequest};

use super::drain::node_named;
use super::explain::slot_ref;
use crate::arguments::{BrakeCommand, Format, MoveArguments};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::terminal::{Screen, Tone};
use crate::view;
use crate::view::model::{Brake, Order};

/// Says that an order about `subject` was taken; people are told `words`.
pub fn tell(screen: &Screen, format: Format, order: &str, subject: &str, words: &str, accepted: Accepted) -> Result<u8, Failure> {
    let order =
        Order { order: order.to_owned(), subject: subject.to_owned(), revision: accepted.revision, note: Some(accepted.note).filter(|note| !note.is_empty()) };
    view::show(screen, format, &order, |order| {
        let note = order.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        format!("{words} revision {}{note}\n", order.revision)
    })?;
    Ok(0)
}

/// Keeps new slots off a node, or lets them come again.
pub async fn cordon(cluster: &Cluster, screen: &Screen, format: Format, node: &str, undo: bool) -> Result<u8, Failure> {
    let instance = node_named(&cluster.status().await?, node)?;
    tell(screen, format, "cordon", &instance, "cordon accepted at", cluster.cordon(&instance, undo).await?)
}

/// Wants a slot elsewhere, or takes that back.
pub async fn move_slot(cluster: &Cluster, screen: &Screen, format: Format, words: MoveArguments) -> Result<u8, Failure> {
    let MoveArguments { slot, to, empty_disk, undo } = words;
    let (name, slot) = (slot.clone(), Some(slot_ref(&slot)?));
    let instance_id = match to {
        Some(to) => node_named(&cluster.status().await?, &to)?,
        None => String::new(),
    };
    let asked = MoveRequest { slot, instance_id, empty_disk, undo, ..MoveRequest::default() };
    tell(screen, format, "move", &name, "move accepted at", cluster.move_slot(asked).await?)
}

/// Wants another number of slots of a role.
pub async fn scale(cluster: &Cluster, screen: &Screen, format: Format, role: &str, wanted: u32) -> Result<u8, Failure> {
    tell(screen, format, "scale", role, "scale accepted at", cluster.scale(role, wanted).await?)
}

/// Wants what a file says.
pub async fn apply(cluster: &Cluster, screen: &Screen, format: Format, file: &Path) -> Result<u8, Failure> {
    let yaml = std::fs::read_to_string(file).map_err(Failure::file(file))?;
    let accepted = cluster.apply(&yaml).await.map_err(|failure| failure.in_file(file))?;
    tell(screen, format, "apply", "spec", "spec accepted at", accepted)
}

/// Shows the brake, or releases it for the nodes that are silent now.
pub async fn brake(cluster: &Cluster, screen: &Screen, format: Format, command: BrakeCommand) -> Result<u8, Failure> {
    match command {
        BrakeCommand::Show => {
            let brake = Brake::from(cluster.brake().await?);
            view::show(screen, format, &brake, |brake| brake_text(brake, screen))?;
            Ok(0)
        }
        BrakeCommand::Release { by } => {
            let accepted = cluster.release_brake(&named(by)?).await?;
            tell(screen, format, "brake release", "brake", "release accepted at", accepted)
        }
    }
}

/// Says that a lost instance, which EC2 has forgotten, is gone. Takes its whole id: a beginning that is unique today is too little for that.
pub async fn gone(cluster: &Cluster, screen: &Screen, format: Format, instance: &str, by: Option<String>) -> Result<u8, Failure> {
    let accepted = cluster.declare_gone(instance, &named(by)?).await?;
    tell(screen, format, "gone", instance, "word accepted at", accepted)
}

/// Who says something that is written down with a name.
fn named(by: Option<String>) -> Result<String, Failure> {
    let by = by.or_else(|| std::env::var("USER").ok()).filter(|by| !by.is_empty());
    by.ok_or_else(|| Failure::Usage("nobody is named: say who with --by NAME".to_owned()))
}

fn brake_text(brake: &Brake, screen: &Screen) -> String {
    let word = if brake.closed { "CLOSED" } else { "OPEN" };
    let why = brake.reason.as_deref().unwrap_or("silence is believed");
    let mut text = format!("{}  {why}\n", screen.paint(Tone::Bold, word));
    if !brake.silent.is_empty() {
        text.push_str(&format!("  silent now: {}\n", brake.silent.join(", ")));
    }
    if let Some(by) = &brake.released_by {
        text.push_str(&format!("  released by {by} for {}\n", brake.released.join(", ")));
    }
    for gate in &brake.gates {
        text.push_str(&format!("  {}: {}; opens when {}\n", gate.subject, gate.closed_by, gate.opens_when));
    }
    if brake.closed {
        text.push_str("  `vpctl brake release` says that the silent ones are really gone\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brake(closed: bool) -> Brake {
        let silent = if closed { vec!["i-1".to_owned(), "i-2".to_owned()] } else { Vec::new() };
        let reason = closed.then(|| "3 of 5 nodes of the cluster fell silent together".to_owned());
        Brake { closed, reason, silent, released_by: None, released_unix_ms: None, released: Vec::new(), gates: Vec::new() }
    }

    #[test]
    fn an_open_brake_is_one_line() {
        assert_eq!(brake_text(&brake(false), &Screen::plain()), "OPEN  silence is believed\n");
    }

    #[test]
    fn a_closed_brake_says_who_is_silent_and_what_opens_it() {
        let text = brake_text(&brake(true), &Screen::plain());
        assert!(text.starts_with("CLOSED  3 of 5 nodes of the cluster fell silent together\n"), "{text}");
        assert!(text.contains("silent now: i-1, i-2") && text.contains("vpctl brake release"), "{text}");
    }
}
