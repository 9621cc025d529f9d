//! What can be shown here: colours and bars only on a terminal, plain lines otherwise; and text that survives a closed pipe.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::arguments::PlaceArguments;
use crate::failure::{EXIT_FAILED, Failure, chain};

/// Fewer columns than this are no room for a column of text.
const LEAST_ROOM: usize = 24;

/// What a piece of text means; colours follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
    Bold,
}

/// The two output streams of this process and what they can show.
#[derive(Debug, Clone)]
pub struct Screen {
    colour: bool,
    colour_err: bool,
    live: bool,
    redraws: bool,
    columns: Option<usize>,
    /// The words that name the cluster this command speaks with, as a next command would repeat them; empty for the default place.
    place: String,
}

impl Screen {
    /// Looks at the streams and at `NO_COLOR` and `TERM`; `place` names the cluster in hints.
    pub fn detect(place: &PlaceArguments) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let columns = comfy_table::Table::new().width().map(usize::from);
        Self { colour: wanted && out, colour_err: wanted && err, live: err, redraws: out, columns, place: place.words() }
    }

    /// Neither colours nor bars, for tests.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { colour: false, colour_err: false, live: false, redraws: false, columns: None, place: String::new() }
    }

    /// A terminal so wide, without colours, for tests.
    #[cfg(test)]
    pub fn wide(columns: usize) -> Self {
        Self { columns: Some(columns), ..Self::plain() }
    }

    /// How wide the terminal is; `None` off a terminal, where lines may have any length.
    pub fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// The text cut at blanks into lines that fit right of `left` columns; where that is hardly any room, it begins on a line of its own
    /// (the first line is empty then) right of `below` columns. The number is where the lines after the first begin.
    pub fn fitted(&self, text: &str, left: usize, below: usize) -> (Vec<String>, usize) {
        let Some(columns) = self.columns.filter(|columns| left + text.chars().count() > *columns) else {
            return (vec![text.to_owned()], left);
        };
        if left + LEAST_ROOM <= columns {
            return (words_in(text, columns - left), left);
        }
        let mut lines = vec![String::new()];
        lines.extend(words_in(text, columns.saturating_sub(below).max(LEAST_ROOM)));
        (lines, below)
    }

    /// True when progress can be drawn over itself (standard error is a terminal).
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The text in the colour of its meaning, for standard output.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        painted(self.colour, tone, text)
    }

    /// Writes the text over the last one on a terminal; elsewhere below it, after an empty line.
    pub fn redraw(&self, text: &str) {
        let text = harmless(text, self.colour);
        if !self.redraws {
            return Self::write(&format!("{text}\n"));
        }
        // Home, then each line clears what was right of it, then everything below: no flicker.
        Self::write(&format!("\u{1b}[H{}\u{1b}[J", text.replace('\n', "\u{1b}[K\n")));
    }

    /// The text with every command it proposes (a `vpctl` in backquotes) meaning the cluster this command speaks with.
    pub fn here(&self, text: &str) -> String {
        if self.place.is_empty() { text.to_owned() } else { text.replace("`vpctl ", &format!("`vpctl {} ", self.place)) }
    }

    /// Writes one line for people to standard output.
    pub fn line(&self, text: &str) {
        self.text(&format!("{}\n", self.here(text)));
    }

    /// Writes one line of data to standard output.
    pub fn data(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    /// Writes text to standard output. Names and sentences in it come from others: what would steer the terminal is taken out.
    pub fn text(&self, text: &str) {
        Self::write(&harmless(text, self.colour));
    }

    /// A reader that has gone away (`vpctl events | head`) ends the program quietly; an answer that cannot be written for another reason is a failure.
    fn write(text: &str) {
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                std::process::exit(0);
            }
            // Nobody is left to tell when standard error is closed too.
            let _ = writeln!(std::io::stderr().lock(), "vpctl: the answer cannot be written: {error}");
            std::process::exit(EXIT_FAILED.into());
        }
    }

    /// A line about the work itself, on standard error, so that standard output stays an answer.
    pub fn note(&self, text: &str) {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr().lock(), "{}", harmless(&self.here(text), self.colour_err));
    }

    /// A note with a tone.
    pub fn toned(&self, tone: Tone, text: &str) -> String {
        painted(self.colour_err, tone, text)
    }

    /// Tells why the command ended and what to do next.
    pub fn complain(&self, failure: &Failure) {
        self.note(&format!("{} {}", self.toned(Tone::Bad, "vpctl:"), chain(failure)));
        if let Some(next) = failure.next_step() {
            self.note(&format!("  {next}"));
        }
    }

    /// A group of bars, hidden where nobody would see them move.
    pub fn bars(&self) -> MultiProgress {
        let target = if self.live { indicatif::ProgressDrawTarget::stderr() } else { indicatif::ProgressDrawTarget::hidden() };
        MultiProgress::with_draw_target(target)
    }
}

/// Lines of at most `width` characters, cut at blanks; a longer word stays whole.
fn words_in(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The codes of [`painted`].
const COLOURS: [&str; 6] = ["0", "32", "33", "31;1", "2", "1"];

/// The text without control characters but ends of lines and tabs, and the colours of [`painted`] where there are any.
fn harmless(text: &str, colours: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let colour = found.strip_prefix("\u{1b}[").and_then(|code| code.split_once('m')).map(|(code, _)| code);
        if let Some(code) = colour.filter(|code| colours && COLOURS.contains(code)) {
            out.push_str(&found[..code.len() + 3]);
            rest = &found[code.len() + 3..];
        } else {
            out.push(char::REPLACEMENT_CHARACTER);
            rest = &found[found.chars().next().map_or(0, char::len_utf8)..];
        }
    }
    out + rest
}

fn painted(on: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31;1",
        Tone::Dim => "2",
        Tone::Bold => "1",
    };
    if on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// A bar that counts bytes.
pub fn bytes_bar(bars: &MultiProgress, name: &str, total: u64) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(total));
    styled(&bar, "{prefix:<28!} {msg:<11} {wide_bar} {bytes:>10}/{total_bytes:<10} {eta:>4}");
    bar.set_prefix(name.to_owned());
    bar
}

/// A bar that counts segments; until their number is known ([`counts_segments`]) it only says that something goes on.
pub fn segments_bar(bars: &MultiProgress, name: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new_spinner());
    styled(&bar, "{prefix:<28!} {msg:<11} {spinner} {elapsed:>4}");
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// The job's segments are known: `done` of `total`.
pub fn counts_segments(bar: &ProgressBar, done: u64, total: u64) {
    if bar.length() != Some(total) {
        styled(bar, "{prefix:<28!} {msg:<11} {wide_bar} {pos:>5}/{len:<5} segments {elapsed:>4}");
        bar.set_length(total);
    }
    bar.set_position(done);
}

/// A line that lives while a step is under way.
pub fn spinner(bars: &MultiProgress, name: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new_spinner());
    styled(&bar, "{spinner} {prefix} {msg} {elapsed}");
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn styled(bar: &ProgressBar, template: &str) {
    // The templates are constants; a wrong one leaves indicatif's default style, never a panic.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_blanks_only_where_it_does_not_fit() {
        let text = "to i-1e49f19bf6fb208df, generation 6";
        assert_eq!(Screen::plain().fitted(text, 60, 4), (vec![text.to_owned()], 60));
        assert_eq!(Screen::wide(96).fitted(text, 60, 4), (vec![text.to_owned()], 60));
        assert_eq!(Screen::wide(95).fitted(text, 60, 4), (vec!["to i-1e49f19bf6fb208df, generation".to_owned(), "6".to_owned()], 60));
        assert_eq!(Screen::wide(80).fitted(text, 60, 4), (vec![String::new(), text.to_owned()], 4));
    }

    #[test]
    fn what_others_say_does_not_steer_the_terminal() {
        let said = "\u{1b}[32mfilm\u{1b}[0m\u{1b}[2J\u{7}\r\tä\n\u{9b}H\u{1b}]0;x\u{7}";
        assert_eq!(harmless(said, true), "\u{1b}[32mfilm\u{1b}[0m\u{fffd}[2J\u{fffd}\u{fffd}\tä\n\u{fffd}H\u{fffd}]0;x\u{fffd}");
        assert_eq!(harmless(said, false).matches('\u{1b}').count(), 0);
        assert_eq!(harmless("\u{1b}[8mhidden", true), "\u{fffd}[8mhidden");
        assert_eq!(harmless("\u{1b}", true), "\u{fffd}");
        assert_eq!(harmless("\u{1b}[", true), "\u{fffd}[");
    }

    #[test]
    fn a_proposed_command_means_the_same_cluster() {
        let place = PlaceArguments {
            stale: false,
            certificate: Some("ada".into()),
            coordinators: vec!["db1:7400".to_owned()],
            region_name: Some("demo".to_owned()),
            state: Some("/a b/it's".into()),
        };
        let screen = Screen { place: place.words(), ..Screen::plain() };
        let said = screen.here("the job goes on: `vpctl jobs show 1`, vpctl: no");
        assert_eq!(
            said,
            r"the job goes on: `vpctl --coordinators db1:7400 --certificate ada --region-name demo --state '/a b/it'\''s' jobs show 1`, vpctl: no"
        );
        assert_eq!(Screen::plain().here("`vpctl plan`"), "`vpctl plan`");
    }

    #[test]
    fn a_word_longer_than_the_room_stays_whole() {
        assert_eq!(words_in("a bbbbbb c", 3), ["a", "bbbbbb", "c"]);
    }
}
