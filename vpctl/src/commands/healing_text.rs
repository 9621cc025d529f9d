//! A drill's report for people: the stages with their times, the slots, what was waited for, what is missing.

use super::healing::Report;
use crate::terminal::{Screen, Tone};
use crate::view::table::{Cell, Table};
use crate::view::units::span;

/// From the kill to a new holder for every slot whose gate is open.
const PLACED_BUDGET_MS: u64 = 10_000;

/// The report as text.
pub fn text(report: &Report, screen: &Screen) -> String {
    let how = if report.silent { "SIGKILL, nobody told" } else { "terminated through EC2" };
    let mut text = format!("{}\n  killed: {how}\n\n", screen.paint(Tone::Bold, &report.what));
    let mut stages = Vec::new();
    let mut stage = |name: &'static str, at: Option<u64>, meaning: &str| stages.push((at, name, meaning.to_owned()));
    stage("detected", report.detected_ms, "the cluster knows");
    stage("terminated", report.terminated_ms, "EC2: no process of it is left");
    if report.led_ms.is_some() {
        stage("led", report.led_ms, "another coordinator leads");
    }
    if !report.slots.is_empty() {
        stage("fenced", report.fenced_ms, "the old holder is proven to be gone");
        let within = if report.placed_ms.is_some_and(|ms| ms <= PLACED_BUDGET_MS) { "within" } else { "over" };
        stage("placed", report.placed_ms, &format!("every slot has a new holder ({within} the budget of {})", span(PLACED_BUDGET_MS)));
        stage("healthy", report.healthy_ms, "every slot serves again");
    }
    stage("restored", report.restored_ms, "the cluster tolerates as much as before");
    // EC2 may know before the cluster does, or after; what was not seen comes last.
    stages.sort_by_key(|(at, ..)| at.unwrap_or(u64::MAX));
    let mut table = Table::new(&["STAGE", "AFTER", "MEANING"]).indented(2);
    for (at, name, meaning) in stages {
        let at = at.map_or_else(|| Cell::new(Tone::Bad, "not seen"), |at| span(at).into());
        table.row(vec![name.into(), at, meaning.as_str().into()]);
    }
    text.push_str(&table.render(screen));
    if !report.slots.is_empty() {
        text.push_str(&format!("\n{}\n{}", screen.paint(Tone::Bold, "SLOTS (from STARTED to HEALTHY: the role's own start)"), slots(report, screen)));
    }
    let mut waits = Table::new(&["WANTED", "CLOSED BY", "WAITED"]).indented(2);
    for wait in &report.waits {
        waits.row(vec![wait.subject.as_str().into(), wait.closed_by.as_str().into(), span(wait.waited_ms).into()]);
    }
    if !report.waits.is_empty() {
        text.push_str(&format!("\n{}\n{}", screen.paint(Tone::Bold, "WAITS OF GATES (part of the times above)"), waits.render(screen)));
    }
    if !report.missing.is_empty() {
        text.push_str(&format!("\n{}\n", screen.paint(Tone::Bad, "NOT RESTORED")));
    }
    for missing in &report.missing {
        text.push_str(&format!("  {missing}\n"));
    }
    text
}

fn slots(report: &Report, screen: &Screen) -> String {
    let mut table = Table::new(&["SLOT", "TO", "PLACED", "STARTED", "HEALTHY", "PROOF"]).indented(2);
    for slot in &report.slots {
        let after = |at: Option<u64>| at.map_or_else(|| Cell::new(Tone::Bad, "not yet"), |at| span(at).into());
        let to = slot.to.clone().unwrap_or_else(|| "nowhere".to_owned());
        let proof = slot.proof.clone().unwrap_or_default();
        table.row(vec![slot.slot.as_str().into(), to.into(), after(slot.placed_ms), after(slot.started_ms), after(slot.healthy_ms), proof.into()]);
    }
    table.render(screen)
}

#[cfg(test)]
mod tests {
    use super::super::healing::{SlotHealing, Wait};
    use super::*;

    #[test]
    fn the_report_reads_from_the_kill_to_what_is_missing() {
        let report = Report {
            instance: "i-1".to_owned(),
            what: "i-1 (us-east-1a, 127.38.1.20)".to_owned(),
            silent: true,
            terminated_ms: Some(4_200),
            detected_ms: Some(6_000),
            fenced_ms: Some(6_100),
            placed_ms: Some(6_300),
            healthy_ms: None,
            led_ms: None,
            restored_ms: None,
            slots: vec![SlotHealing {
                slot: "kafka-1".to_owned(),
                to: Some("i-2".to_owned()),
                placed_ms: Some(6_300),
                started_ms: Some(11_400),
                healthy_ms: None,
                proof: Some("terminated".to_owned()),
            }],
            waits: vec![Wait { subject: "kafka-1".to_owned(), closed_by: "its session lives".to_owned(), from_ms: 6_300, waited_ms: 5_000 }],
            missing: vec!["kafka-1 is not healthy yet".to_owned()],
        };
        let golden = "\
i-1 (us-east-1a, 127.38.1.20)
  killed: SIGKILL, nobody told

  STAGE       AFTER     MEANING
  terminated  4.2 s     EC2: no process of it is left
  detected    6.0 s     the cluster knows
  fenced      6.1 s     the old holder is proven to be gone
  placed      6.3 s     every slot has a new holder (within the budget of 10.0 s)
  healthy     not seen  every slot serves again
  restored    not seen  the cluster tolerates as much as before

SLOTS (from STARTED to HEALTHY: the role's own start)
  SLOT     TO   PLACED  STARTED  HEALTHY  PROOF
  kafka-1  i-2  6.3 s   11.4 s   not yet  terminated

WAITS OF GATES (part of the times above)
  WANTED   CLOSED BY          WAITED
  kafka-1  its session lives  5.0 s

NOT RESTORED
  kafka-1 is not healthy yet
";
        assert_eq!(text(&report, &Screen::plain()), golden);
    }
}
