//! A machine that loses power: everything that was written and not synced is gone. A small library in front of libc keeps writes to the log in memory until
//! their file is synced, so that `kill -9` loses the rest; the real store runs on it. Left out: renames that were not synced (the library passes them on).
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]
mod ledger;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ledger::{Alone, command, config, fill, identity};
use vp_coordinator::{
    raft::Config,
    storage::{DiskStore, StoreOptions},
};

fn library(folder: &Path) -> PathBuf {
    let library = folder.join("lossy.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lossy.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl").arg("-lpthread").output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// Child: proposes for ever, prints each acknowledged number.
#[tokio::test]
async fn child_proposes_until_its_power_fails() {
    let Ok(directory) = std::env::var("VP_TEST_CHILD") else { return };
    let settings = Config { snapshot_every: 90, keep_entries: 20, cache_every: 1_000_000, ..config(1, &[1]) };
    let alone = Alone::open(Path::new(&directory), settings).await;
    let first = alone.ledger.numbers().len() as u64;
    for number in first.. {
        if alone.handle.propose(command(number, 300)).await.is_err() {
            break;
        }
        eprintln!("acknowledged {number}");
    }
    // Its disk failed: the member says so and is over.
    let ended = alone.ended.await.unwrap();
    eprintln!("ended {ended:?}");
    // A later sync would report success: nothing more may be asked of this log.
    assert!(alone.handle.propose(command(0, 300)).await.is_err());
}

/// Runs the child until it has acknowledged `wanted` more, then takes its power away; what it acknowledged.
fn fails_after(wanted: u64, directory: &Path, library: &Path, planted: Option<(&str, &str)>) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_proposes_until_its_power_fails", "--nocapture"]);
    child.env("VP_TEST_CHILD", directory).env("LD_PRELOAD", library).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((name, value)) = planted {
        child.env(name, value);
    }
    let mut child = child.spawn().unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        // The last line may be cut off by the power cut.
        let Some(number) = line.unwrap().strip_prefix("acknowledged ").and_then(|number| number.parse().ok()) else { continue };
        acknowledged.push(number);
        if acknowledged.len() as u64 == wanted {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acknowledged
}

#[tokio::test]
async fn process_nothing_acknowledged_is_lost_when_the_power_fails() {
    let dir = tempfile::tempdir().unwrap();
    let library = library(dir.path());
    let disk = dir.path().join("disk");
    let mut printed = Vec::new();
    for round in 0..15 {
        let wanted = 1 + round * 53 % 170;
        let acknowledged = fails_after(wanted, &disk, &library, None);
        assert!(acknowledged.len() as u64 >= wanted, "round {round}: the child ended by itself");
        printed.extend(acknowledged);
        let found = fill(&disk, 0..0).await;
        for number in &printed {
            assert!(found.contains(number), "round {round}: {number} was acknowledged and is gone");
        }
    }
    assert!(printed.len() > 500, "only {}", printed.len());
}

#[tokio::test]
async fn process_planted_a_log_that_does_not_sync_loses_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let library = library(dir.path());
    let disk = dir.path().join("disk");
    // The first start is whole: segments are made and synced.
    fill(&disk, 0..5).await;
    let acknowledged = fails_after(40, &disk, &library, Some(("VP_LOSSY_NO_FDATASYNC", "1")));
    let lost = match DiskStore::open(&disk, &identity(1), StoreOptions::default()) {
        Err(_) => true,
        Ok(store) => {
            drop(store);
            let found = fill(&disk, 0..0).await;
            acknowledged.iter().any(|number| !found.contains(number))
        }
    };
    assert!(lost, "the library does not lose what was not synced: the test above shows nothing");
}

#[tokio::test]
async fn process_a_sync_that_fails_once_ends_the_member_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let library = library(dir.path());
    let disk = dir.path().join("disk");
    fill(&disk, 0..5).await;
    for at in [1, 2, 17, 60] {
        // It ends by itself, long before it has acknowledged so many.
        let acknowledged = fails_after(1_000_000, &disk, &library, Some(("VP_LOSSY_FAIL_AFTER", &at.to_string())));
        assert!(acknowledged.len() < at as usize + 5, "sync {at} failed, yet {} were acknowledged", acknowledged.len());
        let found = fill(&disk, 0..0).await;
        for number in acknowledged {
            assert!(found.contains(&number), "sync {at} failed: {number} was acknowledged and is gone");
        }
    }
}
