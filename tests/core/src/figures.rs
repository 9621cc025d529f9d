//! From measurements to a table: quantiles, medians, worst of the repeats, ratios, targets.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The `q`-quantile of sorted values.
pub fn quantile(sorted: &[u32], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().map_or(f64::NAN, f64::from)
}

/// The middle of the values, in any order.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    Higher,
    Lower,
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// vp's median over the peer's.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// vp's median.
    AtMost(f64),
    /// Shown for its own sake.
    Shown,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Id in docs/roadmap's targets, e.g. `A1`.
    pub id: String,
    pub what: String,
    pub unit: String,
    pub better: Better,
    pub target: Target,
    /// One value a repeat.
    pub vp: Vec<f64>,
    /// Who was measured beside it; empty: nobody.
    #[serde(default)]
    pub beside: String,
    /// Its values.
    #[serde(alias = "etcd")]
    pub peer: Vec<f64>,
}

impl Row {
    pub fn new(id: &str, what: impl Into<String>, unit: &str, better: Better, target: Target) -> Self {
        Self { id: id.to_owned(), what: what.into(), unit: unit.to_owned(), better, target, vp: Vec::new(), beside: String::new(), peer: Vec::new() }
    }

    /// The same, with a peer.
    #[must_use]
    pub fn beside(self, peer: &str) -> Self {
        Self { beside: peer.to_owned(), ..self }
    }

    fn worst(&self, values: &[f64]) -> f64 {
        match self.better {
            Better::Higher => values.iter().copied().fold(f64::INFINITY, f64::min),
            Better::Lower => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn cell(&self, values: &[f64]) -> String {
        if values.is_empty() { "–".to_owned() } else { format!("{} ({})", number(median(values)), number(self.worst(values))) }
    }

    /// vp's median over the peer's.
    pub fn ratio(&self) -> Option<f64> {
        (!self.vp.is_empty() && !self.peer.is_empty()).then(|| median(&self.vp) / median(&self.peer))
    }

    fn verdict(&self) -> (String, &'static str) {
        let judged = |met: Option<bool>| met.map_or("not measured", |met| if met { "met" } else { "**missed**" });
        match self.target {
            Target::RatioAtLeast(wanted) => (format!("≥ {wanted}×"), judged(self.ratio().map(|ratio| ratio >= wanted))),
            Target::RatioAtMost(wanted) => (format!("≤ {wanted}×"), judged(self.ratio().map(|ratio| ratio <= wanted))),
            Target::AtMost(wanted) => (format!("≤ {} {}", number(wanted), self.unit), judged((!self.vp.is_empty()).then(|| median(&self.vp) <= wanted))),
            Target::Shown => (String::new(), ""),
        }
    }
}

/// Rows that share their takings: each taking has a figure for every row, in their order.
pub fn filled<const ROWS: usize>(mut rows: [Row; ROWS], vp: &[[f64; ROWS]], peer: &[[f64; ROWS]]) -> [Row; ROWS] {
    for (at, row) in rows.iter_mut().enumerate() {
        row.vp = vp.iter().map(|figures| figures[at]).collect();
        row.peer = peer.iter().map(|figures| figures[at]).collect();
    }
    rows
}

/// Few digits, as people read them.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => {
            let digits = format!("{value:.0}");
            let head = digits.len() % 3;
            let mut grouped = digits[..head].to_owned();
            for part in digits.as_bytes()[head..].chunks(3) {
                if !grouped.is_empty() {
                    grouped.push(',');
                }
                grouped.push_str(&String::from_utf8_lossy(part));
            }
            grouped
        }
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The rows as a Markdown table: medians of the repeats, the worst one in parentheses.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        "| | what | unit | vp: median (worst) | beside | its median (worst) | vp/it | target | |\n|---|---|---|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let ratio = row.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}×"));
        let (target, verdict) = row.verdict();
        let (vp, peer) = (row.cell(&row.vp), row.cell(&row.peer));
        let _ = writeln!(text, "| {} | {} | {} | {vp} | {} | {peer} | {ratio} | {target} | {verdict} |", row.id, row.what, row.unit, row.beside);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_repeats_is_the_lowest_where_higher_is_better() {
        let mut row = Row::new("A1", "writes", "writes/s", Better::Higher, Target::RatioAtLeast(1.5));
        row.vp = vec![3000.0, 1000.0, 2000.0];
        row.peer = vec![1000.0, 900.0, 1100.0];
        assert_eq!(row.cell(&row.vp), "2,000 (1,000)");
        assert_eq!(row.verdict(), ("≥ 1.5×".to_owned(), "met"));
        row.target = Target::RatioAtLeast(2.5);
        assert_eq!(row.verdict().1, "**missed**");
    }

    #[test]
    fn a_figure_without_its_peer_is_not_measured() {
        let mut row = Row::new("A1", "p99", "ms", Better::Lower, Target::RatioAtMost(0.7));
        row.vp = vec![1.0];
        assert_eq!(row.verdict().1, "not measured");
        assert_eq!(row.cell(&row.peer), "–");
    }

    #[test]
    fn quantiles_are_of_the_values_themselves() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (51.0, 99.0, 100.0));
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(number(1_234_567.0), "1,234,567");
    }
}
