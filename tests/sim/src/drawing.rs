//! Draws a run's history: as SVG, and as lines of text for a terminal.

use std::fmt::Write;

use crate::{
    clock::{SECOND, Time},
    network::Machine,
    picture::{History, Span},
    world::Outcome,
};

const LEFT: f64 = 170.0;
const WIDTH: f64 = 1200.0;
const ROW: f64 = 22.0;
const TEXT_COLUMNS: usize = 100;

/// A picture under way.
struct Drawing {
    out: String,
    y: f64,
    scale: f64,
}

impl Drawing {
    fn x(&self, at: Time) -> f64 {
        LEFT + at as f64 * self.scale
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.out, r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{escaped}</text>"#);
    }

    fn bar(&mut self, span: &Span, top: f64, height: f64, fill: &str, title: &str) {
        let (x, width) = (self.x(span.from), (self.x(span.to) - self.x(span.from)).max(1.5));
        let y = self.y + top;
        let _ = writeln!(
            self.out,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{fill}"><title>{title}: {:.2} to {:.2} s</title></rect>"#,
            seconds(span.from),
            seconds(span.to)
        );
    }

    /// Text inside a bar, where there is room for it.
    fn inside(&mut self, span: &Span, text: &str) {
        let width = self.x(span.to) - self.x(span.from);
        if width > 7.0 * text.len() as f64 {
            let (x, y) = (self.x(span.from) + 4.0, self.y + 15.0);
            self.text(x, y, "in", text);
        }
    }

    fn row(&mut self, label: &str) {
        let y = self.y + 15.0;
        self.text(8.0, y, "label", label);
    }

    fn heading(&mut self, text: &str) {
        self.y += 12.0;
        let y = self.y + 14.0;
        self.text(8.0, y, "heading", text);
        self.y += ROW;
    }
}

fn seconds(at: Time) -> f64 {
    at as f64 / SECOND as f64
}

/// A colour for each machine, so that a slot's moves are seen at a glance.
fn colour(machine: Machine) -> String {
    format!("hsl({} 62% 72%)", machine.wrapping_mul(67) % 360)
}

impl History {
    /// The whole run; bars have titles for a browser.
    pub fn svg(&self, outcome: &Outcome) -> String {
        let mut draw = Drawing { out: String::new(), y: 56.0, scale: WIDTH / self.end.max(1) as f64 };
        self.faults_svg(&mut draw);
        self.coordinators_svg(&mut draw);
        self.hosts_svg(&mut draw);
        self.slots_svg(&mut draw);
        let bottom = draw.y;
        self.axis(&mut draw, bottom, outcome.violation.as_ref().map(|(_, _, at)| *at));
        let (height, width) = (bottom + 46.0, LEFT + WIDTH + 30.0);
        let verdict = match &outcome.violation {
            None => "no rule broken".to_owned(),
            Some((rule, how, _)) => format!("BROKEN: {rule}: {how}"),
        };
        let mut head = String::new();
        let _ = writeln!(head, r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" font-family="sans-serif" font-size="12">"#);
        head.push_str("<style>.label{fill:#333}.heading{font-weight:bold;fill:#111}.in{fill:#222;font-size:11px}.axis{fill:#777;font-size:11px}.fault{fill:#922;font-size:11px}.title{font-size:16px;font-weight:bold}</style>\n");
        let _ = writeln!(head, r##"<rect width="100%" height="100%" fill="#fff"/>"##);
        let mut title = Drawing { out: head, y: 0.0, scale: 1.0 };
        title.text(
            8.0,
            24.0,
            "title",
            &format!("seed {}: {:.0} simulated seconds, {} elections, {} moves", outcome.seed, seconds(self.end), outcome.elections, outcome.moves),
        );
        title.text(8.0, 44.0, if outcome.violation.is_some() { "fault" } else { "axis" }, &verdict);
        format!("{}{}</svg>\n", title.out, draw.out)
    }

    /// Faults above everything, each in the first lane that is free.
    fn faults_svg(&self, draw: &mut Drawing) {
        if self.faults.is_empty() {
            return;
        }
        draw.heading("what goes wrong");
        let mut lanes: Vec<f64> = Vec::new();
        let top = draw.y;
        for (machines, span) in &self.faults {
            let names: Vec<String> = machines.iter().filter(|machine| **machine != 0).map(|machine| name(*machine)).collect();
            let text = if names.len() > 4 { format!("{} ({} machines)", span.text, names.len()) } else { format!("{} {}", span.text, names.join(" ")) };
            let from = draw.x(span.from);
            let free = lanes.iter().position(|until| *until < from).unwrap_or(lanes.len());
            let until = draw.x(span.to).max(from + 6.2 * text.len() as f64 + 8.0);
            if free == lanes.len() {
                lanes.push(until)
            } else {
                lanes[free] = until
            }
            draw.y = top + free as f64 * ROW;
            draw.bar(span, 3.0, ROW - 6.0, "#f3b8b0", &text);
            let (x, y) = (from + 3.0, draw.y + 15.0);
            draw.text(x, y, "fault", &text);
        }
        draw.y = top + lanes.len() as f64 * ROW;
    }

    fn coordinators_svg(&self, draw: &mut Drawing) {
        draw.heading("coordinators (green: leads)");
        for (id, spans) in &self.coordinators {
            draw.row(&format!("coordinator {id}, zone {id}"));
            for span in spans {
                draw.bar(span, 3.0, ROW - 6.0, "#dde3ea", "up");
            }
            for span in self.leading.get(id).into_iter().flatten() {
                draw.bar(span, 3.0, ROW - 6.0, "#5cb874", "leads");
                draw.inside(span, "leads");
            }
            self.mark(draw, *id);
            draw.y += ROW;
        }
    }

    fn hosts_svg(&self, draw: &mut Drawing) {
        draw.heading("instances (line: the agent runs)");
        let mut hosts: Vec<_> = self.hosts.iter().collect();
        hosts.sort_by_key(|(machine, (zone, _))| (*zone, **machine));
        for (machine, (zone, spans)) in hosts {
            draw.row(&format!("{}, zone {zone}", name(*machine)));
            for span in spans {
                draw.bar(span, 3.0, ROW - 6.0, &colour(*machine), "the machine lives");
            }
            for span in self.agents.get(machine).into_iter().flatten() {
                draw.bar(span, ROW / 2.0 - 1.5, 3.0, "#345", "agent");
            }
            self.mark(draw, *machine);
            draw.y += ROW;
        }
    }

    fn slots_svg(&self, draw: &mut Drawing) {
        draw.heading("slots: the process that runs (colour: on which instance)");
        for (slot, spans) in &self.slots {
            draw.row(&slot.to_string());
            for (_, machine, span) in spans {
                draw.bar(span, 3.0, ROW - 6.0, &colour(*machine), &format!("{slot} generation {} on {}", span.text, name(*machine)));
                draw.inside(span, &format!("{} g{}", name(*machine), span.text));
            }
            draw.y += ROW;
        }
    }

    /// A machine's own faults, along the foot of its row.
    fn mark(&self, draw: &mut Drawing, machine: Machine) {
        for (_, span) in self.faults.iter().filter(|(machines, _)| machines.contains(&machine)) {
            draw.bar(span, ROW - 5.0, 3.0, "#d33", &span.text);
        }
    }

    fn axis(&self, draw: &mut Drawing, bottom: f64, broken: Option<Time>) {
        let step = if seconds(self.end) > 100.0 { 10 } else { 5 };
        for at in (0..=seconds(self.end) as u64).step_by(step) {
            let x = draw.x(at * SECOND);
            let _ = writeln!(draw.out, r##"<line x1="{x:.1}" y1="60" x2="{x:.1}" y2="{bottom:.1}" stroke="#000" stroke-opacity="0.08"/>"##);
            draw.text(x - 6.0, bottom + 16.0, "axis", &format!("{at} s"));
        }
        if let Some(at) = broken {
            let x = draw.x(at);
            let _ = writeln!(draw.out, r##"<line x1="{x:.1}" y1="50" x2="{x:.1}" y2="{bottom:.1}" stroke="#d00" stroke-width="2"/>"##);
        }
    }

    /// The same for a terminal: a line a coordinator, an instance, a slot.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let column = self.end.max(1) / TEXT_COLUMNS as Time + 1;
        let mut line = |label: &str, at: &dyn Fn(Time) -> char| {
            let cells: String = (0..TEXT_COLUMNS).map(|cell| at(cell as Time * column + column / 2)).collect();
            let _ = writeln!(out, "{label:<16}|{cells}|");
        };
        let within = |spans: &[Span], at: Time| spans.iter().any(|span| span.from <= at && at < span.to);
        for (id, spans) in &self.coordinators {
            let leading = self.leading.get(id).map_or(&[][..], Vec::as_slice);
            line(&format!("coordinator {id}"), &|at| match (within(leading, at), within(spans, at)) {
                (true, _) => 'L',
                (_, true) => '-',
                _ => ' ',
            });
        }
        for (machine, (zone, spans)) in &self.hosts {
            let agents = self.agents.get(machine).map_or(&[][..], Vec::as_slice);
            line(&format!("{} {} (zone {zone})", letter(*machine), name(*machine)), &|at| match (within(spans, at), within(agents, at)) {
                (true, true) => '-',
                (true, false) => '.',
                _ => ' ',
            });
        }
        for (slot, spans) in &self.slots {
            line(&slot.to_string(), &|at| {
                let held = spans.iter().rev().find(|(_, _, span)| span.from <= at && at < span.to);
                held.map_or(' ', |(_, machine, _)| letter(*machine))
            });
        }
        line("faults", &|at| if self.faults.iter().any(|(_, span)| span.from <= at && at < span.to) { '!' } else { ' ' });
        let _ = writeln!(out, "{:<16}0 s{:>width$.0} s", "", seconds(self.end), width = TEXT_COLUMNS - 3);
        out
    }
}

fn name(machine: Machine) -> String {
    if machine < 100 { format!("c{machine}") } else { format!("i-{machine}") }
}

/// One letter an instance, for the slots' lines.
fn letter(machine: Machine) -> char {
    char::from(b'A' + (machine.saturating_sub(100) % 26) as u8)
}
