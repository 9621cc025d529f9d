//! The page: what was measured where and when, the table, and below it what people wrote about it, which is kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vp_core_tests::figures::{Row, table};

/// Everything above this line is written by the program, everything below by people.
const END: &str = "<!-- end of what `make bench-core` writes -->";

/// One piece as it was measured.
#[derive(Serialize, Deserialize)]
pub struct Taken {
    pub when: String,
    /// The machine's load average when it began.
    pub load: String,
    pub repeats: usize,
    pub note: String,
    pub rows: Vec<Row>,
}

/// What earlier calls have kept, by piece; nothing before the first.
///
/// # Errors
/// It is there and cannot be read.
pub fn kept(path: &Path) -> anyhow::Result<BTreeMap<String, Taken>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is not what this program keeps; move it away to measure anew", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The machine's load average over a minute.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next().map(str::to_owned)).unwrap_or_default()
}

/// Date and time, UTC.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, after Howard Hinnant's "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {model}, {} GiB, Linux {}", kib / 1024 / 1024, kernel.trim())
}

/// What the program has to say.
pub fn page(kept: &BTreeMap<String, Taken>) -> String {
    let mut text = format!(
        "# Benchmarks of the core\n\nWritten by `make bench-core`. Machine: {}. Clients, three members of each kind and their one disk share it; fsync is on everywhere; vp, etcd 3.6.8 and ZooKeeper 3.9 (their defaults; etcd also under TLS with certificates on both sides, as vp always is) take turns and are never loaded together. Median of the repeats, the worst one in parentheses.\n\n",
        machine()
    );
    let rows: Vec<Row> = kept.values().flat_map(|taken| taken.rows.iter().cloned()).collect();
    text.push_str(&table(&rows));
    text.push('\n');
    for (id, taken) in kept {
        let note = if taken.note.is_empty() { String::new() } else { format!("; {}", taken.note) };
        text.push_str(&format!("{id}: {}, load average {} at its beginning, {} repeats{note}.\n", taken.when, taken.load, taken.repeats));
    }
    text
}

/// Replaces the program's part of the page at `path`.
///
/// # Errors
/// The page cannot be written.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let before = fs::read_to_string(path).unwrap_or_default();
    let people = before.split_once(END).map_or("\n", |(_, below)| below);
    Ok(fs::write(path, format!("{text}\n{END}{people}"))?)
}
