//! `dev logs`: the logs of a local region's services, instances and slots, from their files.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncSeekExt};
use vp_localcloud::region::Region;

use crate::failure::Failure;
use crate::terminal::{Screen, Tone};
use crate::view::table::Table;
use crate::view::units::size;

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How much of a file's end is read for its last lines.
const TAIL_BYTES: u64 = 1 << 20;

/// A log and the names under which it is asked for.
struct Log {
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// Prints the last lines of every log of that name; without a name, which logs there are.
pub async fn logs(region: &Region, screen: &Screen, name: Option<&str>, follow: bool, lines: usize) -> Result<u8, Failure> {
    let all = find(region);
    let Some(name) = name else {
        let mut table = Table::new(&["NAME", "SIZE", "FILE"]);
        for log in &all {
            table.row(vec![log.name.as_str().into(), size(log.bytes).into(), log.path.display().to_string().into()]);
        }
        screen.text(&table.render(screen));
        return Ok(0);
    };
    let chosen: Vec<&Log> = all.iter().filter(|l| l.name == name || l.name.split('/').any(|part| part == name)).collect();
    if chosen.is_empty() {
        return Err(Failure::Missing { what: "log", name: name.to_owned(), look: "vpctl dev logs" });
    }
    let mut ends = Vec::new();
    for log in &chosen {
        if chosen.len() > 1 {
            screen.line(&screen.paint(Tone::Bold, &format!("==> {}", log.path.display())));
        }
        ends.push(tail(&log.path, lines, screen).await?);
    }
    if follow {
        let paths: Vec<&Path> = chosen.iter().map(|l| l.path.as_path()).collect();
        tokio::select! {
            ended = go_on(&paths, &mut ends, screen) => ended?,
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    Ok(0)
}

/// Services first, then for each instance its console, its programs' logs and its slots' logs, named `INSTANCE/SLOT`.
fn find(region: &Region) -> Vec<Log> {
    let mut found = Vec::new();
    let mut add = |name: String, path: PathBuf| {
        if let Ok(meta) = std::fs::metadata(&path)
            && meta.is_file()
        {
            found.push(Log { name, path, bytes: meta.len() });
        }
    };
    for (name, path) in region.logs() {
        add(name, path);
    }
    for instance in entries(&region.state().join("instances")) {
        let id = file_name(&instance);
        add(format!("{id}/console"), instance.join("console.log"));
        for log in entries(&instance.join("root/log")) {
            add(format!("{id}/{}", stem(&log)), log);
        }
        for slot in entries(&instance.join("root/slots")) {
            for log in entries(&slot.join("log")) {
                add(format!("{id}/{}", file_name(&slot)), log);
            }
        }
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    // A folder that is not there, or not ours, has no logs.
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Prints the last lines and returns where the file ended.
async fn tail(path: &Path, lines: usize, screen: &Screen) -> Result<u64, Failure> {
    let mut file = tokio::fs::File::open(path).await.map_err(Failure::file(path))?;
    let end = file.metadata().await.map_err(Failure::file(path))?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES))).await.map_err(Failure::file(path))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).await.map_err(Failure::file(path))?;
    screen.text(&last_lines(&String::from_utf8_lossy(&bytes), lines));
    Ok(end)
}

fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| format!("{l}\n")).collect()
}

async fn go_on(paths: &[&Path], ends: &mut [u64], screen: &Screen) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        for (path, end) in paths.iter().zip(ends.iter_mut()) {
            let mut file = tokio::fs::File::open(path).await.map_err(Failure::file(path))?;
            let now = file.metadata().await.map_err(Failure::file(path))?.len();
            if now < *end {
                *end = 0; // begun anew
            }
            if now == *end {
                continue;
            }
            file.seek(SeekFrom::Start(*end)).await.map_err(Failure::file(path))?;
            let mut bytes = Vec::new();
            file.take(now - *end).read_to_end(&mut bytes).await.map_err(Failure::file(path))?;
            *end += bytes.len() as u64;
            screen.text(&String::from_utf8_lossy(&bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_last_ones() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a", 5), "a\n");
        assert_eq!(last_lines("", 5), "");
    }
}
