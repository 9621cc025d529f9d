//! The cluster on one screen, and the tables of nodes, services and slots that it shares with `nodes` and `roles`.

use std::fmt::Write;

use super::model::{Node, Service, Slot, Status};
use super::table::{Cell, Table};
use super::units::{size, span};
use crate::terminal::{Screen, Tone};

/// One screen: health, coordinators, nodes, services, what moves, what alarms. `wide` adds the slots.
pub fn screen(status: &Status, screen: &Screen, wide: bool) -> String {
    let mut text = String::new();
    headline(&mut text, status, screen);
    let reachable = status.coordinators.iter().filter(|c| c.reachable).count();
    section(&mut text, screen, "COORDINATORS", &format!("{reachable} of {}", status.coordinators.len()));
    text.push_str(&coordinators(status, screen));
    let ready = status.nodes.iter().filter(|n| n.lifecycle == "ready").count();
    section(&mut text, screen, "NODES", &format!("{ready} of {} ready", status.nodes.len()));
    text.push_str(&nodes(&status.nodes, screen, wide));
    let serving: Option<Vec<bool>> = status.services.iter().map(|service| service.serving).collect();
    let counted = serving.map_or_else(|| "?".to_owned(), |serving| serving.iter().filter(|serves| **serves).count().to_string());
    section(&mut text, screen, "SERVICES", &format!("{counted} of {} serving", status.services.len()));
    text.push_str(&services(&status.services, screen));
    if wide {
        section(&mut text, screen, "SLOTS", "");
        text.push_str(&slots(&status.slots, screen, true));
    } else {
        unwell(&mut text, status, screen);
    }
    list(&mut text, screen, "MOVES", &status.moves, Tone::Warn);
    list(&mut text, screen, "ALARMS", &status.alarms, Tone::Bad);
    text
}

fn headline(text: &mut String, status: &Status, screen: &Screen) {
    let (tone, word) = match status.health {
        "healthy" => (Tone::Good, "HEALTHY"),
        "degraded" => (Tone::Warn, "DEGRADED"),
        "no_tolerance" => (Tone::Bad, "NO TOLERANCE LEFT"),
        "quorum_lost" => (Tone::Bad, "QUORUM LOST"),
        _ => (Tone::Warn, "HEALTH UNKNOWN"),
    };
    let leader = status.leader.map_or_else(|| "no leader".to_owned(), |id| format!("leader coordinator {id}"));
    let age = if status.age_ms == u64::MAX {
        format!(", as coordinator {} knew it some time ago", status.answered_by.unwrap_or_default())
    } else if status.age_ms > 0 {
        format!(", as coordinator {} knew it {} ago", status.answered_by.unwrap_or_default(), span(status.age_ms))
    } else {
        String::new()
    };
    let facts = format!("revision {}, term {}, {leader}{age}", status.revision, status.term);
    line(text, &format!("{}  {}  {}", screen.paint(Tone::Bold, &status.cluster), screen.paint(tone, word), screen.paint(Tone::Dim, &facts)));
    for reason in &status.reasons {
        line(text, &format!("  {reason}"));
    }
}

/// Coordinators: who leads, who follows, who is on its way.
pub fn coordinators(status: &Status, screen: &Screen) -> String {
    let mut table = Table::new(&["ID", "STATE", "ADDRESS", "ZONE", "INSTANCE", "MEMBER", "APPLIED"]).indented(2);
    for one in &status.coordinators {
        let state = match (one.leader, one.reachable, one.standing.as_deref()) {
            (true, ..) => Cell::new(Tone::Good, "leads"),
            (false, true, _) => Cell::from("follows"),
            (false, false, Some("learner" | "joining")) => Cell::new(Tone::Warn, "joining"),
            (false, false, _) => Cell::new(Tone::Bad, "unreachable"),
        };
        table.row(vec![
            one.id.to_string().into(),
            state,
            one.address.as_str().into(),
            one.zone.as_str().into(),
            one.instance.clone().unwrap_or_default().into(),
            one.member.map(|member| member.to_string()).unwrap_or_default().into(),
            one.applied.map(|a| a.to_string()).unwrap_or_default().into(),
        ]);
    }
    table.render(screen)
}

/// Nodes, by zone.
pub fn nodes(nodes: &[Node], screen: &Screen, wide: bool) -> String {
    let short: &[&str] = &["ZONE", "INSTANCE", "ADDRESS", "STATE", "CPU", "MEMORY", "SLOTS"];
    let long: &[&str] = &["ZONE", "INSTANCE", "ADDRESS", "STATE", "CPU", "MEMORY", "TYPE", "DISK FREE", "HEARD", "SESSION", "AGENT", "AGENT RSS", "SLOTS"];
    let mut table = Table::new(if wide { long } else { short }).indented(2);
    let mut zone = "";
    for node in nodes {
        let shown_zone = if node.zone == zone { "" } else { node.zone.as_str() };
        zone = &node.zone;
        let memory = match (node.memory_used_bytes, node.memory_total_bytes) {
            (Some(used), Some(total)) if total > 0 && !wide => format!("{} %", (u128::from(used) * 100).div_ceil(u128::from(total))),
            (Some(used), Some(total)) if total > 0 => format!("{} of {}", size(used), size(total)),
            _ => String::new(),
        };
        let mut row: Vec<Cell> = vec![
            shown_zone.into(),
            node.instance.as_str().into(),
            node.address.as_str().into(),
            lifecycle(node),
            node.cpu_used_permille.map(|p| format!("{} %", p.div_ceil(10))).unwrap_or_default().into(),
            memory.into(),
        ];
        if wide {
            row.extend([
                Cell::from(node.instance_type.as_str()),
                node.disk_free_bytes.map(size).unwrap_or_default().into(),
                node.silent_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", span(ms))).into(),
                node.session.to_string().into(),
                node.agent_version.as_str().into(),
                node.agent_rss_bytes.map(size).unwrap_or_default().into(),
            ]);
        }
        row.push(node.slots.join(" ").into());
        table.row(row);
    }
    table.render(screen)
}

fn lifecycle(node: &Node) -> Cell {
    let tone = match node.lifecycle.as_str() {
        "ready" => Tone::Good,
        "lost" | "fenced" => Tone::Bad,
        _ => Tone::Warn,
    };
    let silent = node.silent_ms.filter(|ms| *ms >= 2_000).map(|ms| format!(", silent {}", span(ms)));
    let cordoned = if node.cordoned && node.lifecycle != "draining" { ", cordoned" } else { "" };
    Cell::new(if silent.is_some() && tone == Tone::Good { Tone::Warn } else { tone }, format!("{}{cordoned}{}", node.lifecycle, silent.unwrap_or_default()))
}

/// Services with how many more failures each survives.
pub fn services(services: &[Service], screen: &Screen) -> String {
    let mut table = Table::new(&["SERVICE", "STATE", "HEALTHY", "SURVIVES", "FENCING"]).indented(2);
    for service in services {
        let state = match service.serving {
            Some(true) => Cell::new(Tone::Good, "serving"),
            Some(false) => Cell::new(Tone::Bad, "not serving"),
            None => Cell::from("?"),
        };
        let well = if service.healthy.is_none_or(|healthy| healthy >= service.wanted) { Tone::Plain } else { Tone::Warn };
        let healthy = service.healthy.map_or_else(|| "?".to_owned(), |healthy| healthy.to_string());
        let survives = match (service.serving, service.tolerates) {
            (None, _) | (_, None) => Cell::from("?"),
            (Some(false), _) => Cell::from("-"),
            // One slot that moves survives nothing at the instant, and that is how it is meant.
            (_, Some(0)) if service.wanted > 1 => Cell::new(Tone::Bad, "no failure"),
            (_, Some(0)) => Cell::from("moves"),
            (_, Some(1)) => Cell::from("1 failure"),
            (_, Some(n)) => Cell::from(format!("{n} failures")),
        };
        table.row(vec![
            service.role.as_str().into(),
            state,
            Cell::new(well, format!("{healthy} of {}", service.wanted)),
            survives,
            service.fencing.as_str().into(),
        ]);
    }
    table.render(screen)
}

/// Slots with holder, generation and phase; `wide` adds member id, volume and pid.
pub fn slots(slots: &[Slot], screen: &Screen, wide: bool) -> String {
    let heading = ["SLOT", "STATE", "INSTANCE", "ZONE", "GENERATION", "MEMBER", "VOLUME", "PID", "RESTARTS", "FACTS", "MESSAGE"];
    // An empty column is not printed.
    let only_wide = |text: String| Cell::from(if wide { text } else { String::new() });
    let mut table = Table::new(&heading).indented(2);
    for slot in slots {
        let facts: Vec<String> = slot.facts.iter().map(|(k, v)| format!("{k}={v}")).collect();
        table.row(vec![
            slot.slot.as_str().into(),
            phase(slot),
            slot.instance.clone().unwrap_or_else(|| "nowhere".to_owned()).into(),
            slot.zone.clone().unwrap_or_default().into(),
            slot.generation.to_string().into(),
            only_wide(slot.member_id.to_string()),
            only_wide(slot.volume.clone().unwrap_or_default()),
            only_wide(slot.pid.map(|pid| pid.to_string()).unwrap_or_default()),
            if slot.restarts == 0 { Cell::from("") } else { Cell::new(Tone::Warn, slot.restarts.to_string()) },
            facts.join(" ").into(),
            slot.message.as_str().into(),
        ]);
    }
    table.render(screen)
}

fn phase(slot: &Slot) -> Cell {
    let tone = match slot.phase {
        "healthy" => Tone::Good,
        "waiting" | "starting" | "stopping" => Tone::Warn,
        _ => Tone::Bad,
    };
    Cell::new(tone, slot.phase)
}

/// On the one screen only the slots that are not well have a line of their own.
fn unwell(text: &mut String, status: &Status, screen: &Screen) {
    let unwell: Vec<&Slot> = status.slots.iter().filter(|s| s.phase != "healthy").collect();
    if unwell.is_empty() {
        return;
    }
    section(text, screen, "SLOTS THAT ARE NOT HEALTHY", "");
    let mut table = Table::new(&["SLOT", "STATE", "INSTANCE", "MESSAGE"]).indented(2);
    for slot in unwell {
        let holder = slot.instance.clone().unwrap_or_else(|| "nowhere".to_owned());
        table.row(vec![slot.slot.as_str().into(), phase(slot), holder.into(), slot.message.as_str().into()]);
    }
    text.push_str(&table.render(screen));
}

fn list(text: &mut String, screen: &Screen, title: &str, lines: &[String], tone: Tone) {
    if lines.is_empty() {
        return;
    }
    section(text, screen, title, "");
    for one in lines {
        line(text, &format!("  {}", screen.paint(tone, one)));
    }
}

fn section(text: &mut String, screen: &Screen, title: &str, count: &str) {
    text.push('\n');
    let title = screen.paint(Tone::Bold, title);
    line(text, &if count.is_empty() { title } else { format!("{title}  {count}") });
}

fn line(text: &mut String, content: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", content.trim_end());
}

#[cfg(test)]
mod tests {
    use vp_proto::v1;

    use super::*;

    /// A cluster in which one node has just been lost.
    fn wounded() -> Status {
        let slot = |role: &str, index| Some(v1::SlotRef { role: role.to_owned(), index });
        let node = |id: &str, zone: &str, lifecycle: &str, silent_ms| v1::NodeStatus {
            instance_id: id.to_owned(),
            address: "127.38.1.20".to_owned(),
            zone: zone.to_owned(),
            instance_type: "t3.small".to_owned(),
            lifecycle: lifecycle.to_owned(),
            session: 3,
            silent_ms,
            heard: true,
            measures: Some(v1::NodeMeasures { cpu_used_permille: 121, memory_used_bytes: 512 << 20, memory_total_bytes: 2 << 30, ..Default::default() }),
            slots: vec![v1::SlotRef { role: "kafka".to_owned(), index: 1 }],
            ..Default::default()
        };
        let raw = v1::ClusterStatus {
            cluster: "dev".to_owned(),
            revision: 412,
            term: 3,
            leader_id: 1,
            health: v1::Health::Degraded.into(),
            reasons: vec!["kafka has 2 of 3 members".to_owned()],
            coordinators: vec![
                v1::CoordinatorStatus { id: 2, address: "127.38.2.10:7400".to_owned(), zone: "b".to_owned(), reachable: false, ..Default::default() },
                v1::CoordinatorStatus {
                    id: 1,
                    address: "127.38.1.10:7400".to_owned(),
                    zone: "a".to_owned(),
                    leader: true,
                    reachable: true,
                    applied: 412,
                    ..Default::default()
                },
            ],
            nodes: vec![node("i-2", "us-east-1b", "lost", 6_500), node("i-1", "us-east-1a", "ready", 40)],
            services: vec![
                v1::ServiceStatus { role: "kafka".to_owned(), wanted: 3, placed: 2, healthy: 2, tolerates: 0, serving: true, fencing: "quorum".to_owned() },
                v1::ServiceStatus { role: "stream".to_owned(), wanted: 1, placed: 1, healthy: 1, tolerates: 0, serving: true, fencing: "exclusive".to_owned() },
            ],
            slots: vec![
                v1::SlotStatus { slot: slot("kafka", 2), phase: v1::Phase::Waiting.into(), message: "volume vol-2".to_owned(), ..Default::default() },
                v1::SlotStatus { slot: slot("kafka", 1), phase: v1::Phase::Healthy.into(), instance_id: "i-1".to_owned(), ..Default::default() },
            ],
            moves: vec!["kafka-2 from i-2: waits for terminated".to_owned()],
            alarms: vec![],
            ..Default::default()
        };
        Status::from(raw)
    }

    /// Told by a follower, which does not hear agents, a healthy cluster looked dead.
    #[test]
    fn what_a_follower_does_not_hear_is_not_known() {
        let kafka = v1::ServiceStatus { role: "kafka".to_owned(), wanted: 3, placed: 3, ..Default::default() };
        let status = Status::from(v1::ClusterStatus { services: vec![kafka], ..Default::default() });
        let text = services(&status.services, &Screen::plain());
        assert!(text.contains("? of 3") && !text.contains("not serving"), "{text}");
        assert_eq!(serde_json::to_value(&status.services[0]).unwrap()["serving"], serde_json::Value::Null);
    }

    #[test]
    fn a_wounded_cluster_fits_one_screen_and_names_what_is_wrong() {
        let golden = "\
dev  DEGRADED  revision 412, term 3, leader coordinator 1
  kafka has 2 of 3 members

COORDINATORS  1 of 2
  ID  STATE        ADDRESS           ZONE  APPLIED
  1   leads        127.38.1.10:7400  a     412
  2   unreachable  127.38.2.10:7400  b

NODES  1 of 2 ready
  ZONE        INSTANCE  ADDRESS      STATE               CPU   MEMORY  SLOTS
  us-east-1a  i-1       127.38.1.20  ready               13 %  25 %    kafka-1
  us-east-1b  i-2       127.38.1.20  lost, silent 6.5 s  13 %  25 %    kafka-1

SERVICES  2 of 2 serving
  SERVICE  STATE    HEALTHY  SURVIVES    FENCING
  kafka    serving  2 of 3   no failure  quorum
  stream   serving  1 of 1   moves       exclusive

SLOTS THAT ARE NOT HEALTHY
  SLOT     STATE    INSTANCE  MESSAGE
  kafka-2  waiting  nowhere   volume vol-2

MOVES
  kafka-2 from i-2: waits for terminated
";
        assert_eq!(screen(&wounded(), &Screen::plain(), false), golden);
    }

    #[test]
    fn no_line_ends_with_blanks_and_no_colour_is_used_off_a_terminal() {
        let text = screen(&wounded(), &Screen::plain(), true);
        assert!(text.lines().all(|l| l == l.trim_end()), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
