//! `plan` and `explain`: what the coordinator is about to do, what it waits for, and why.

use vp_proto::v1::SlotRef;

use super::events;
use crate::arguments::Format;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::terminal::{Screen, Tone};
use crate::view::model::{Explanation, Gate, Plan};
use crate::view::table::Table;
use crate::view::{self, status};

/// Prints the plan and the closed gates.
pub async fn plan(cluster: &Cluster, screen: &Screen, format: Format) -> Result<u8, Failure> {
    let plan = Plan::from(cluster.plan().await?);
    view::show(screen, format, &plan, |plan| plan_text(plan, screen))?;
    Ok(0)
}

fn plan_text(plan: &Plan, screen: &Screen) -> String {
    let mut text = format!("{}  at revision {}\n", screen.paint(Tone::Bold, "PLAN"), plan.revision);
    if plan.actions.is_empty() {
        text.push_str(if plan.gates.is_empty() { "  nothing to do: everything is as wanted\n" } else { "  nothing can be done now\n" });
    }
    for action in &plan.actions {
        text.push_str(&format!("  {action}\n"));
    }
    text + &gates(&plan.gates, screen)
}

fn gates(gates: &[Gate], screen: &Screen) -> String {
    if gates.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["WANTED", "CLOSED BY", "OPENS WHEN"]).indented(2);
    for gate in gates {
        table.row(vec![gate.subject.as_str().into(), gate.closed_by.as_str().into(), gate.opens_when.as_str().into()]);
    }
    format!("\n{}\n{}", screen.paint(Tone::Bold, "WAITING"), table.render(screen))
}

/// Prints all that is known of one slot.
pub async fn explain(cluster: &Cluster, screen: &Screen, format: Format, slot: &str) -> Result<u8, Failure> {
    let explanation = Explanation::from(cluster.explain(slot_ref(slot)?).await?);
    view::show(screen, format, &explanation, |e| explanation_text(e, screen))?;
    Ok(0)
}

fn explanation_text(explanation: &Explanation, screen: &Screen) -> String {
    let mut text = String::new();
    if let Some(slot) = &explanation.slot {
        text.push_str(&status::slots(std::slice::from_ref(slot), screen, true));
        if let Some(proof) = &slot.last_proof {
            text.push_str(&format!("  proof for the last move: {proof}\n"));
        }
    }
    if !explanation.sentences.is_empty() {
        text.push('\n');
    }
    for sentence in &explanation.sentences {
        text.push_str(&format!("  {sentence}\n"));
    }
    text.push_str(&gates(&explanation.gates, screen));
    if !explanation.history.is_empty() {
        text.push_str(&format!("\n{}\n", screen.paint(Tone::Bold, "HISTORY")));
    }
    for event in &explanation.history {
        text.push_str(&format!("{}\n", events::line(event, screen, 2)));
    }
    text
}

/// `spark-worker-2` is role `spark-worker`, index 2.
pub fn slot_ref(name: &str) -> Result<SlotRef, Failure> {
    let parts = name.rsplit_once('-').filter(|(role, _)| !role.is_empty());
    let parts = parts.and_then(|(role, index)| Some(SlotRef { role: role.to_owned(), index: index.parse().ok()? }));
    parts.ok_or_else(|| Failure::Usage(format!("{name:?} is not a slot: ROLE-INDEX is, e.g. kafka-2 (`vpctl roles` lists them)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_role_may_have_hyphens() {
        let slot = slot_ref("spark-worker-2").expect("a slot");
        assert_eq!((slot.role.as_str(), slot.index), ("spark-worker", 2));
        for wrong in ["kafka", "kafka-", "-1", "kafka-x", ""] {
            assert_eq!(slot_ref(wrong).expect_err(wrong).exit_code(), 64, "{wrong}");
        }
    }

    #[test]
    fn an_empty_plan_says_so_in_words() {
        let plan = Plan { revision: 9, actions: vec![], gates: vec![] };
        assert_eq!(plan_text(&plan, &Screen::plain()), "PLAN  at revision 9\n  nothing to do: everything is as wanted\n");
    }

    #[test]
    fn a_closed_gate_says_what_opens_it() {
        let gate = Gate { subject: "kafka-2".to_owned(), closed_by: "no proof".to_owned(), opens_when: "EC2 says terminated".to_owned() };
        let plan = Plan { revision: 9, actions: vec![], gates: vec![gate] };
        let golden = "PLAN  at revision 9\n  nothing can be done now\n\nWAITING\n  WANTED   CLOSED BY  OPENS WHEN\n  kafka-2  no proof   EC2 says terminated\n";
        assert_eq!(plan_text(&plan, &Screen::plain()), golden);
    }
}
