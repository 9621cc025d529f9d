//! Snapshots in files, as `vpctl snapshot save` writes one and as a coordinator keeps its newest; and the state that it has applied. All carry sums over
//! themselves, which stop nearly every change at the door: each input is also read under the sums that its own bytes have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use futures::FutureExt as _;
use ring::digest::{SHA256, digest};
use vp_coordinator::claims::{ClaimError, Claims, Record, Restored};
use vp_coordinator::saved;
use vp_coordinator::storage::applied::{decode, encode};
use vp_coordinator::storage::snapshot;

/// A bucket with one object under every key.
struct Kept<'a>(&'a [u8]);

impl Claims for Kept<'_> {
    async fn get(&self, _: &str) -> Result<Option<(Vec<u8>, String)>, ClaimError> {
        Ok(Some((self.0.to_vec(), "e".to_owned())))
    }

    async fn put(&self, _: &str, _: Vec<u8>, _: Option<&str>) -> Result<(), ClaimError> {
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a founder of the lost-quorum day reads.
pub fn saved(bytes: &[u8]) -> bool {
    let as_it_is = founded_on(bytes);
    as_it_is | under_its_own_hash(bytes).is_some_and(|bytes| founded_on(&bytes))
}

fn founded_on(bytes: &[u8]) -> bool {
    let restored = Restored { key: "coordinators/snapshots/00".to_owned(), sha256: sha256(bytes), unix_ms: 1_800_000_000_000, times: 1 };
    let record = Record { incarnation: "0123456789abcdef".to_owned(), founders: BTreeMap::new(), apply_version: 1, restored: Some(restored) };
    saved::first(&Kept(bytes), "dev", &record).now_or_never().expect("nothing is waited for").is_ok()
}

fn under_its_own_hash(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let body = &bytes[end + 1..];
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[..end]).ok()?;
    header.as_object_mut()?.insert("sha256".to_owned(), sha256(body).into());
    Some([&serde_json::to_vec(&header).ok()?[..], b"\n", body].concat())
}

/// The file beside a coordinator's log.
pub fn stored(bytes: &[u8]) -> bool {
    /// In memory where there is such a folder: ten million files are written.
    static BESIDE: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
    });
    let folder = tempfile::tempdir_in(&*BESIDE).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(folder.path().join("snapshot"), bytes).unwrap();
        snapshot::read(folder.path()).is_ok_and(|found| found.is_some())
    };
    let as_it_is = read(bytes);
    as_it_is | under_its_own_checksum(bytes).is_some_and(|bytes| read(&bytes))
}

/// Eight bytes of magic, one that says where it is from, the checksum of the rest.
fn under_its_own_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, body) = bytes.split_at_checked(13)?;
    Some([&head[..9], &crc32(body).to_le_bytes(), body].concat())
}

/// The cache of what a coordinator has applied; what is read is kept as it was read.
pub fn applied(bytes: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        let found = decode(bytes);
        if let Some(found) = &found {
            assert_eq!(decode(&encode(found)).as_ref(), Some(found));
        }
        found.is_some()
    };
    let under_its_own_checksum = |body: &[u8]| [&crc32(body).to_le_bytes()[..], body].concat();
    read(bytes) | bytes.get(4..).is_some_and(|body| read(&under_its_own_checksum(body)))
}

/// As IEEE 802.3 has it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
