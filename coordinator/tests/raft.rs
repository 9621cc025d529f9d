//! One member's log on a real disk: kill -9 durability, damaged, emptied, foreign and full disks, a lost cache.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]
mod ledger;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ledger::{Alone, command, config, fill, identity};
use vp_coordinator::raft::{Config, NodeError, ProposeError};
use vp_coordinator::storage::{DiskStore, StorageError, StoreOptions};

fn reopen(directory: &Path, member: u64) -> Option<StorageError> {
    DiskStore::open(directory, &identity(member), StoreOptions::default()).err()
}

fn segment(directory: &Path) -> PathBuf {
    directory.join("log/0000000000000001.seg")
}

/// Where the synced frames of a segment end.
fn end_of(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[tokio::test]
async fn a_log_survives_a_restart_and_a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fill(dir.path(), 0..50).await, numbers(0..50));
    assert_eq!(fill(dir.path(), 50..51).await, numbers(0..51));
    let _open = DiskStore::open(dir.path(), &identity(1), StoreOptions::default()).unwrap();
    let second = reopen(dir.path(), 1);
    assert!(matches!(second, Some(StorageError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn a_flipped_bit_in_acknowledged_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 0..20).await;
    let path = segment(dir.path());
    let whole = fs::read(&path).unwrap();
    let end = end_of(&whole);
    // In the middle, in the last frame, and in its end byte: none of them may be taken for a write cut short.
    for at in [end / 2, end - 20, end - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let flipped = reopen(dir.path(), 1);
        assert!(matches!(flipped, Some(StorageError::Damaged { .. })), "byte {at} of {end}: {flipped:?}");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(fill(dir.path(), 20..21).await, numbers(0..21));
}

#[tokio::test]
async fn another_members_disk_and_another_clusters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 0..5).await;
    let wrong = reopen(dir.path(), 2);
    assert!(matches!(wrong, Some(StorageError::WrongIdentity { .. })), "{wrong:?}");
    let foreign = vp_coordinator::storage::Identity { cluster: "other".to_owned(), member: 1 };
    let wrong = DiskStore::open(dir.path(), &foreign, StoreOptions::default()).err();
    assert!(matches!(wrong, Some(StorageError::WrongIdentity { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_disk_that_lost_its_log_is_refused_whatever_evidence_is_left() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 0..5).await;
    fs::remove_file(segment(dir.path())).unwrap();
    let emptied = reopen(dir.path(), 1);
    assert!(matches!(emptied, Some(StorageError::Emptied { .. })), "marker: {emptied:?}");
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let emptied = reopen(dir.path(), 1);
    assert!(matches!(emptied, Some(StorageError::Emptied { .. })), "snapshot: {emptied:?}");
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    fs::remove_file(dir.path().join("snapshot")).unwrap();
    let emptied = reopen(dir.path(), 1);
    assert!(matches!(emptied, Some(StorageError::Emptied { .. })), "applied state: {emptied:?}");
    // Nothing is left at all: only somebody outside can know.
    let fresh = tempfile::tempdir().unwrap();
    let known = StoreOptions { must_exist: true, ..StoreOptions::default() };
    let lost = DiskStore::open(fresh.path(), &identity(1), known).err();
    assert!(matches!(lost, Some(StorageError::Emptied { .. })), "{lost:?}");
}

#[tokio::test]
async fn a_write_cut_short_is_dropped_and_everything_before_it_stays() {
    // As much of a frame as a killed process may leave: part of the header, the header, and some of the payload.
    let mut frame = vp_coordinator::storage::frame::FrameBuilder::default();
    frame.record(vp_coordinator::storage::frame::Kind::Entry, &[9; 600]);
    let frame = frame.finish(1);
    for cut in [1, 8, 20, 24, 30, 600, frame.len() - 1] {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 0..20).await;
        let path = segment(dir.path());
        let end = end_of(&fs::read(&path).unwrap());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&frame[..cut], end as u64).unwrap();
        drop(file);
        assert_eq!(reopen(dir.path(), 1).map(|error| error.to_string()), None, "cut at {cut}");
        assert_eq!(fill(dir.path(), 20..21).await, numbers(0..21), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_lost_or_damaged_cache_of_applied_state_is_rebuilt() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("gone", |cache| fs::remove_dir_all(cache).unwrap()),
        ("garbage", |cache| each_file(cache, |bytes| bytes.fill(0xA7))),
        ("cut", |cache| each_file(cache, |bytes| bytes.truncate(bytes.len() / 2))),
        ("emptied", |cache| each_file(cache, Vec::clear)),
    ];
    for (name, damage) in damage {
        let dir = tempfile::tempdir().unwrap();
        let few = Config { snapshot_every: 40, keep_entries: 10, cache_every: 7, ..config(1, &[1]) };
        let alone = Alone::open(dir.path(), few).await;
        for number in 0..100 {
            alone.handle.propose(command(number, 50)).await.unwrap();
        }
        alone.stop().await;
        damage(&dir.path().join("applied"));
        assert_eq!(fill(dir.path(), 100..101).await, numbers(0..101), "{name}");
    }
}

fn each_file(folder: &Path, change: fn(&mut Vec<u8>)) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_file() {
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        } else {
            each_file(&path, change);
        }
    }
}

/// Starts this program again to run one of its tests in a process of its own, below `wrapper`.
fn child(wrapper: &[&str], test: &str, directory: &Path) -> Command {
    let me = std::env::current_exe().unwrap();
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(me);
            command
        }
        None => Command::new(me),
    };
    command.args(["--exact", test, "--nocapture"]).env("VP_TEST_CHILD", directory).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn acknowledged(line: &str) -> Option<u64> {
    line.strip_prefix("acknowledged ").map(|number| number.parse().unwrap())
}

/// Child of the kill test: proposes for ever, prints each acknowledged number.
#[tokio::test]
async fn child_proposes_until_killed() {
    let Ok(directory) = std::env::var("VP_TEST_CHILD") else { return };
    // Small bounds: segments, snapshots and the cache are all in the middle of something when the signal comes.
    let settings = Config { snapshot_every: 200, keep_entries: 50, cache_every: 70, ..config(1, &[1]) };
    let alone = Alone::open(Path::new(&directory), settings).await;
    let first = alone.ledger.numbers().len() as u64;
    for number in first.. {
        alone.handle.propose(command(number, 300)).await.unwrap();
        eprintln!("acknowledged {number}");
    }
}

#[tokio::test]
async fn process_nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut printed = Vec::new();
    for round in 0..25u64 {
        let mut process = child(&[], "child_proposes_until_killed", dir.path()).spawn().unwrap();
        let (mut seen, wanted) = (0, 1 + round * 37 % 200);
        // What it acknowledged after the signal was sent is read too.
        for line in BufReader::new(process.stderr.take().unwrap()).lines() {
            let Some(number) = acknowledged(&line.unwrap()) else { continue };
            printed.push(number);
            seen += 1;
            if seen == wanted {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        assert!(seen >= wanted, "round {round}: the child ended by itself after {seen}");
        let found = fill(dir.path(), 0..0).await;
        for number in &printed {
            assert!(found.contains(number), "round {round}: {number} was acknowledged and is gone");
        }
        assert_eq!(found, numbers(0..found.len() as u64), "round {round}: each once, in order");
    }
    assert!(printed.len() > 1000);
}

/// Child of the full-disk test, on a file system of 12 MiB.
#[tokio::test]
async fn child_fills_its_disk() {
    let Ok(directory) = std::env::var("VP_TEST_CHILD") else { return };
    let directory = Path::new(&directory);
    let settings = || Config { snapshot_every: 1_000_000, cache_every: 1_000_000, ..config(1, &[1]) };
    let alone = Alone::open(directory, settings()).await;
    let mut kept = Vec::new();
    let refused = loop {
        let number = kept.len() as u64;
        match alone.handle.propose(command(number, 64 * 1024)).await {
            Ok(_) => kept.push(number),
            Err(error) => break error,
        }
        assert!(kept.len() < 10_000, "the disk never filled");
    };
    assert!(matches!(refused, ProposeError::UnknownOutcome | ProposeError::Shutdown), "{refused:?}");
    let ended = alone.ended.await.unwrap();
    assert!(matches!(ended, Err(NodeError::Storage(StorageError::Full { .. }))), "{ended:?}");
    let room = Command::new("mount").args(["-o", "remount,size=64m"]).arg(directory).status().unwrap();
    assert!(room.success());
    let again = Alone::open(directory, settings()).await;
    again.handle.propose(command(99_999, 8)).await.unwrap();
    let found = again.stop().await;
    assert_eq!(found[..kept.len()], kept, "acknowledged before the disk was full");
    eprintln!("acknowledged {}", kept.len());
}

#[test]
fn process_a_full_disk_stops_the_member_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    // A mount namespace of its own: the small file system is gone with the process.
    let root = nix::unistd::geteuid().is_root();
    let namespace: &[&str] = if root { &["unshare", "--mount"] } else { &["unshare", "--mount", "--map-root-user"] };
    let mount = ["sh", "-c", "mount -t tmpfs -o size=12m tmpfs \"$VP_TEST_CHILD\" && exec \"$@\"", "sh"];
    let ran = child(&[namespace, &mount].concat(), "child_fills_its_disk", dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let kept: u64 = said.lines().find_map(acknowledged).unwrap();
    assert!(kept > 20, "only {kept} before the disk was full");
}
