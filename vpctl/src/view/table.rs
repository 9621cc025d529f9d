//! Columns of text: cells padded to the widest of their column, coloured after they were measured. On a terminal too narrow the text
//! of the last column goes on below itself.

use crate::terminal::{Screen, Tone};

/// One cell and what it means.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell of that tone.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Rows under a heading; nothing is printed for a column that is empty in every row.
#[derive(Debug, Clone, Default)]
pub struct Table {
    indent: usize,
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with column names.
    pub fn new(heading: &[&'static str]) -> Self {
        Self { indent: 0, heading: heading.to_vec(), rows: Vec::new() }
    }

    /// The same, moved to the right.
    pub fn indented(mut self, columns: usize) -> Self {
        self.indent = columns;
        self
    }

    /// Adds a row, as many cells as the heading has.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The text, one line a row, without blanks at the ends of lines.
    pub fn render(&self, screen: &Screen) -> String {
        let widest = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.text.chars().count()).max();
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|c| match widest(c).unwrap_or(0) {
                0 => 0,
                cells => cells.max(self.heading[c].chars().count()),
            })
            .collect();
        let last = widths.iter().rposition(|width| *width > 0);
        let left = self.indent + widths.iter().take(last.unwrap_or(0)).filter(|w| **w > 0).map(|w| w + 2).sum::<usize>();
        let heading = self.heading.iter().map(|h| Cell::new(Tone::Dim, *h)).collect();
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = " ".repeat(self.indent);
            let mut blanks = 0;
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if width == 0 {
                    continue;
                }
                if last == Some(column) && screen.columns().is_some() {
                    let (lines, after) = screen.fitted(&cell.text, left, self.indent + 4);
                    let painted: Vec<String> = lines.iter().map(|one| screen.paint(cell.tone, one)).collect();
                    if lines.first().is_some_and(|first| !first.is_empty()) {
                        line.push_str(&" ".repeat(blanks));
                    }
                    line.push_str(&painted.join(&format!("\n{}", " ".repeat(after))));
                    continue;
                }
                if !cell.text.is_empty() {
                    line.push_str(&" ".repeat(blanks));
                    line.push_str(&screen.paint(cell.tone, &cell.text));
                    blanks = 0;
                }
                blanks += width - cell.text.chars().count() + 2;
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_narrow_terminal_the_last_column_goes_on_below() {
        let mut table = Table::new(&["NODE", "SLOTS"]).indented(2);
        table.row(vec!["i-a43c514aa875f4e31".into(), "kafka-1 spark-master-1 spark-worker-1".into()]);
        table.row(vec!["i-2".into(), "".into()]);
        let beside = "  NODE                 SLOTS\n  i-a43c514aa875f4e31  kafka-1 spark-master-1\n                       spark-worker-1\n  i-2\n";
        assert_eq!(table.render(&Screen::wide(50)), beside);
        let below = "  NODE                 SLOTS\n  i-a43c514aa875f4e31\n      kafka-1 spark-master-1 spark-worker-1\n  i-2\n";
        assert_eq!(table.render(&Screen::wide(46)), below);
    }

    #[test]
    fn columns_line_up_and_empty_ones_vanish() {
        let mut table = Table::new(&["NODE", "EMPTY", "SLOTS"]).indented(2);
        table.row(vec!["i-1".into(), "".into(), "kafka-1".into()]);
        table.row(vec!["i-long-one".into(), "".into(), "".into()]);
        assert_eq!(table.render(&Screen::plain()), "  NODE        SLOTS\n  i-1         kafka-1\n  i-long-one\n");
    }
}
