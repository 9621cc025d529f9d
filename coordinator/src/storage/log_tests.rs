//! What a log must survive, and what it must refuse.

use super::*;

fn identity(member: u64) -> Identity {
    Identity { cluster: "test".to_owned(), member }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: format!("entry {index}").into_bytes().into(), ..Entry::default() }
}

fn filled(folder: &Path) -> PathBuf {
    let (mut log, content) = Log::open(folder, &identity(1)).unwrap();
    assert!(content.fresh);
    for index in 1..=10 {
        log.append(&[entry(index, 1)], Some(&HardState { term: 1, vote: 1, commit: index })).unwrap();
    }
    folder.join("raft.log")
}

#[test]
fn what_was_appended_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let (_, content) = Log::open(folder.path(), &identity(1)).unwrap();
    assert!(!content.fresh);
    assert_eq!(content.entries.len(), 10);
    assert_eq!(content.hard_state.commit, 10);
}

#[test]
fn a_later_entry_overrides_from_its_index_on() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let (mut log, _) = Log::open(folder.path(), &identity(1)).unwrap();
    log.append(&[entry(4, 2)], None).unwrap();
    let (_, content) = Log::open(folder.path(), &identity(1)).unwrap();
    assert_eq!(content.entries.iter().map(|entry| (entry.index, entry.term)).collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 1), (4, 2)]);
}

#[test]
fn a_torn_tail_is_cut_and_everything_before_it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let whole = std::fs::read(&path).unwrap();
    for cut in 1..12 {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let (_, content) = Log::open(folder.path(), &identity(1)).unwrap();
        assert_eq!(content.entries.len(), 10, "cut {cut}");
        assert_eq!(content.hard_state.commit, 9, "cut {cut}");
    }
}

#[test]
fn a_flipped_bit_before_the_last_record_is_refused_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let last = whole.len() - 24;
    for at in (0..last).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        match Log::open(folder.path(), &identity(1)) {
            Err(StorageError::Damaged { .. } | StorageError::OtherDisk { .. }) => {}
            Ok(_) => panic!("byte {at} went unnoticed"),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn another_members_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let refused = Log::open(folder.path(), &identity(2)).err().unwrap().to_string();
    assert!(refused.contains("belongs to member 1 of cluster 'test', this is member 2"), "{refused}");
}

#[test]
fn compaction_keeps_snapshot_hard_state_and_tail() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let (mut log, old) = Log::open(folder.path(), &identity(1)).unwrap();
    let mut snapshot = Snapshot { data: b"state".to_vec().into(), ..Snapshot::default() };
    snapshot.mut_metadata().index = 7;
    snapshot.mut_metadata().term = 1;
    let content = Content { snapshot: Some(snapshot), hard_state: old.hard_state, entries: old.entries[7..].to_vec(), fresh: false };
    log.compact(&content).unwrap();
    log.append(&[entry(11, 1)], None).unwrap();
    let (_, content) = Log::open(folder.path(), &identity(1)).unwrap();
    assert_eq!(content.snapshot.unwrap().get_metadata().index, 7);
    assert_eq!(content.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [8, 9, 10, 11]);
}
