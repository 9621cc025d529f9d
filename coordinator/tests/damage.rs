//! What may befall a disk between two starts, beyond the log's last segment (`raft`): each is refused with a sentence, nothing is served from it.
//! Left out, because no disk can know it of itself: log, snapshot and applied state all put back to the same earlier day.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]
mod ledger;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ledger::{Alone, command, config, identity};
use raft::eraftpb::{Entry, HardState};
use vp_coordinator::{
    raft::{Config, Node, start},
    storage::{DiskStore, StorageError, StoreOptions, log::Log},
};

fn small() -> StoreOptions {
    StoreOptions { segment_bytes: 16 * 1024, ..StoreOptions::default() }
}

/// Numbers proposed into small segments, with a snapshot now and then when `compacts`.
async fn write(directory: &Path, numbers: std::ops::Range<u64>, compacts: bool) {
    let every = if compacts { 100 } else { 1_000_000 };
    let settings = Config { snapshot_every: every, keep_entries: 20, cache_every: 50, ..config(1, &[1]) };
    let ledger = ledger::Ledger::default();
    let node = Node::new(settings, DiskStore::open(directory, &identity(1), small()).unwrap(), ledger.clone()).unwrap();
    let (handle, ended) = start(node, ledger::Nobody);
    let alone = Alone { handle, ledger, ended: tokio::spawn(ended) };
    ledger::until("lead", &alone.handle, vp_coordinator::raft::Status::leads).await;
    for number in numbers {
        alone.handle.propose(command(number, 500)).await.unwrap();
    }
    alone.stop().await;
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(directory.join("log")).unwrap().map(|item| item.unwrap().path());
    let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    found.sort();
    found
}

fn reopen(directory: &Path) -> Option<StorageError> {
    DiskStore::open(directory, &identity(1), small()).err()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_segment_missing_in_the_middle_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..200, false).await;
    let segments = segments(dir.path());
    assert!(segments.len() > 3, "{segments:?}");
    fs::remove_file(&segments[1]).unwrap();
    let refused = reopen(dir.path()).unwrap();
    assert!(matches!(&refused, StorageError::Damaged { reason, .. } if reason == "segment 2 is missing"), "{refused}");
}

/// Whatever was applied, saved or put into a snapshot: here nothing was, as after a process was killed.
#[test]
fn the_last_segment_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |index| Entry { index, term: 1, data: vec![7; 500], ..Entry::default() };
    let opened = || Log::open(&dir.path().join("log"), &identity(1), small().segment_bytes, None);
    let mut log = opened().unwrap();
    for index in 1..=100 {
        log.append(&[entry(index)], &HardState { term: 1, vote: 1, commit: 0 }).unwrap();
    }
    drop(log);
    let open = || opened().map(|log| log.last_index());
    assert_eq!(open().unwrap(), 100);
    let all = segments(dir.path());
    let last = all.last().unwrap();
    let bytes = fs::read(last).unwrap();
    fs::remove_file(last).unwrap();
    let refused = open().unwrap_err();
    assert!(matches!(&refused, StorageError::Damaged { reason, .. } if reason.contains("is missing, the newest one")), "{refused}");
    assert!(refused.to_string().contains(&all.len().to_string()), "{refused}");
    fs::write(last, bytes).unwrap();
    assert_eq!(open().unwrap(), 100, "put back");
}

/// A write then changes no file's length, and a full disk is met where a segment begins, not in the midst of it.
#[test]
fn a_segment_has_all_its_room_before_anything_is_written_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(&dir.path().join("log"), &identity(1), small().segment_bytes, None).unwrap();
    for index in 1..=100 {
        log.append(&[Entry { index, term: 1, data: vec![7; 500], ..Entry::default() }], &HardState { term: 1, vote: 1, commit: 0 }).unwrap();
        for segment in segments(dir.path()) {
            let file = fs::metadata(&segment).unwrap();
            let (length, given) = (file.len(), file.blocks() * 512);
            assert_eq!((length, given >= length), (small().segment_bytes as u64, true), "{} has {given} bytes of disk", segment.display());
        }
    }
    assert!(segments(dir.path()).len() > 1);
}

#[tokio::test]
async fn a_log_that_says_of_itself_that_it_is_older_is_noticed_by_what_was_applied() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..200, false).await;
    let all = segments(dir.path());
    fs::remove_file(all.last().unwrap()).unwrap();
    fs::write(dir.path().join("log/in-use"), format!("{}\n", all.len() - 1)).unwrap();
    let refused = reopen(dir.path()).unwrap();
    assert!(matches!(refused, StorageError::LogBehind { .. }), "{refused}");
}

#[tokio::test]
async fn a_mark_that_is_no_number_is_refused_and_one_of_before_numbers_were_kept_is_not() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..10, false).await;
    fs::write(dir.path().join("log/in-use"), "seven").unwrap();
    let refused = reopen(dir.path()).unwrap();
    assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
    fs::write(dir.path().join("log/in-use"), "").unwrap();
    assert_eq!(reopen(dir.path()).map(|error| error.to_string()), None);
}

#[tokio::test]
async fn a_segment_of_another_number_in_a_segments_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..200, false).await;
    let segments = segments(dir.path());
    fs::copy(&segments[0], &segments[1]).unwrap();
    let refused = reopen(dir.path()).unwrap();
    assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn every_part_of_a_snapshot_that_changed_is_noticed_and_a_missing_one_too() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..300, true).await;
    let path = dir.path().join("snapshot");
    let whole = fs::read(&path).unwrap();
    for at in [0, 8, 9, 13, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        let refused = reopen(dir.path());
        assert!(matches!(refused, Some(StorageError::Damaged { .. })), "byte {at}: {refused:?}");
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(reopen(dir.path()), Some(StorageError::Damaged { .. })));
    fs::remove_file(&path).unwrap();
    let refused = reopen(dir.path());
    assert!(matches!(refused, Some(StorageError::Emptied { .. })), "{refused:?}");
    fs::write(&path, &whole).unwrap();
    assert_eq!(reopen(dir.path()).map(|error| error.to_string()), None);
}

#[tokio::test]
async fn an_older_log_put_back_under_newer_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, backup) = (dir.path().join("disk"), dir.path().join("backup"));
    write(&disk, 0..60, false).await;
    copy(&disk.join("log"), &backup);
    write(&disk, 60..200, false).await;
    fs::remove_dir_all(disk.join("log")).unwrap();
    copy(&backup, &disk.join("log"));
    let refused = reopen(&disk).unwrap();
    assert!(matches!(refused, StorageError::LogBehind { .. }), "{refused}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::write(&file, "a file where a folder belongs").unwrap();
    let refused = reopen(&file).unwrap();
    assert!(matches!(refused, StorageError::Io { .. }) && refused.to_string().contains("disk"), "{refused}");
}
