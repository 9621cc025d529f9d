//! The hosts file: every placed slot by name, so that a client finds a slot that moved. Replaced by rename, so that a
//! reader sees the old or the new one, never half of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::durable::{FileError, replace_volatile};
use crate::render::Member;

/// The file's content. `hostname` is the machine's own, at `address`: Java looks it up.
pub fn content(hostname: &str, address: &str, members: &BTreeMap<String, Vec<Member>>) -> String {
    let mut text = format!("127.0.0.1 localhost\n{address} {hostname}\n");
    for member in members.values().flatten() {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{} {}", member.address, member.name);
    }
    text
}

/// Writes `content` to `path` unless it is what stands there.
///
/// # Errors
/// The file system's.
pub fn publish(path: &Path, content: &str) -> Result<bool, FileError> {
    if std::fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(false);
    }
    replace_volatile(path, content.as_bytes())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(address: &str) -> BTreeMap<String, Vec<Member>> {
        let member = Member { name: "zookeeper-1".into(), index: 1, member_id: 1, address: address.into(), zone: "a".into(), generation: 4 };
        BTreeMap::from([("zookeeper".to_owned(), vec![member])])
    }

    #[test]
    fn it_names_localhost_the_machine_and_every_placed_slot() {
        let text = content("box", "127.35.1.20", &members("127.35.2.21"));
        assert_eq!(text, "127.0.0.1 localhost\n127.35.1.20 box\n127.35.2.21 zookeeper-1\n");
    }

    #[test]
    fn a_moved_slot_changes_the_file_and_an_unmoved_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        assert!(publish(&path, &content("box", "127.35.1.20", &members("127.35.2.21"))).unwrap());
        assert!(!publish(&path, &content("box", "127.35.1.20", &members("127.35.2.21"))).unwrap());
        assert!(publish(&path, &content("box", "127.35.1.20", &members("127.35.3.22"))).unwrap());
        assert!(std::fs::read_to_string(&path).unwrap().contains("127.35.3.22 zookeeper-1"));
    }
}
