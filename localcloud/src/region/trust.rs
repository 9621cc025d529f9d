//! The region's trust: a root made once and kept sealed in the cluster bucket, the key that opens it for the coordinators' user data alone, and
//! certificates for people.
//!
//! ```text
//! trust/seal.key               opens the root's key; plays the part of a cloud's key service
//! trust/operators/RANK/        certificate.pem, key.pem: what vpctl shows (admin unless told otherwise)
//! ```

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vp_cloud::s3::{ObjectStore, StoreError};
use vp_trust::{Authority, AuthorityError, Credentials, Rank, RootHash, SealingKey};

use super::{Record, RegionError};

/// Where the coordinators look for it.
const OBJECT: &str = "trust/root.json";
/// A person's certificate is renewed when less is left of its year, seconds.
const RENEW_S: u64 = 30 * 24 * 3600;

/// What user data says of it.
pub(super) struct Trust {
    pub root: RootHash,
    pub sealing_key: SealingKey,
}

impl Trust {
    /// The user data's line. Nodes are told whom to trust, and nothing with which they could sign.
    pub(super) fn user_data(&self, coordinator: bool) -> String {
        let sealing_key = if coordinator { format!(", sealing_key: \"{}\"", self.sealing_key.to_base64()) } else { String::new() };
        format!("trust: {{root_sha256: \"{}\"{sealing_key}}}", self.root)
    }
}

/// Folder of an operator's certificate in a region's state folder.
pub(super) fn operator(state: &Path, rank: Rank) -> PathBuf {
    state.join("trust/operators").join(rank.as_str())
}

/// Makes what is missing. The key comes first: a root whose key was lost would be good for nothing.
pub(super) async fn ensure(objects: &ObjectStore, record: &Record, state: &Path) -> Result<(Trust, bool), RegionError> {
    let (sealing_key, mut changed) = sealing_key(&state.join("trust"))?;
    let bucket = record.buckets.get("cluster").map(String::as_str).unwrap_or_default();
    let store = |source: StoreError| RegionError::Store { doing: "keeping the cluster's root".to_owned(), source };
    let unsealed = |error: AuthorityError| RegionError::Malformed { path: PathBuf::from(OBJECT), reason: chain(&error) };
    let fresh = Authority::create(&record.name).and_then(|authority| authority.seal(&sealing_key)).map_err(unsealed)?;
    match objects.put_if_absent(bucket, OBJECT, fresh.into(), "application/json").await {
        Ok(_) => changed = true,
        Err(error) if error.is_precondition_failed() => {}
        Err(error) => return Err(store(error)),
    }
    let (sealed, _) = objects.get(bucket, OBJECT).await.map_err(store)?;
    let authority = Authority::open(&record.name, &sealed, &sealing_key, None).map_err(unsealed)?;
    for rank in Rank::ALL {
        changed |= ensure_operator(&authority, rank, &operator(state, rank))?;
    }
    Ok((Trust { root: authority.hash(), sealing_key }, changed))
}

fn ensure_operator(authority: &Authority, rank: Rank, folder: &Path) -> Result<bool, RegionError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let good = |kept: &Credentials| kept.root() == authority.hash() && kept.certificate().is_ok_and(|read| read.not_after > now_s + RENEW_S);
    if Credentials::load(folder).is_ok_and(|kept| good(&kept)) {
        return Ok(false);
    }
    let fail = |source| RegionError::File { path: folder.to_path_buf(), doing: "keeping an operator's certificate", source };
    let made = authority.operator(rank, "dev", now_s).map_err(|error| fail(std::io::Error::other(error)))?;
    made.save(folder).map_err(|error| fail(std::io::Error::other(error)))?;
    Ok(true)
}

fn sealing_key(folder: &Path) -> Result<(SealingKey, bool), RegionError> {
    use std::io::Write;
    let path = folder.join("seal.key");
    let fail = |source| RegionError::File { path: path.clone(), doing: "keeping the sealing key", source };
    match std::fs::read_to_string(&path) {
        Ok(text) => SealingKey::from_base64(&text).map(|key| (key, false)).map_err(|error| RegionError::Malformed { path, reason: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
            let key = SealingKey::generate().map_err(|error| fail(std::io::Error::other(error)))?;
            let part = folder.join("seal.key.new");
            let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(fail)?;
            file.write_all(key.to_base64().as_bytes()).and_then(|()| file.sync_data()).map_err(fail)?;
            std::fs::rename(&part, &path).map_err(fail)?;
            Ok((key, true))
        }
        Err(error) => Err(fail(error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source()).map(|cause| format!(": {cause}"));
    std::iter::once(error.to_string()).chain(causes).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_coordinators_are_given_the_key_that_opens_the_root() {
        let trust = Trust { root: RootHash::of(b"root"), sealing_key: SealingKey::generate().unwrap() };
        let key = trust.sealing_key.to_base64();
        assert!(trust.user_data(true).contains(&key));
        assert!(!trust.user_data(false).contains(&key) && !trust.user_data(false).contains("sealing"));
        assert!([true, false].iter().all(|coordinator| trust.user_data(*coordinator).contains(&trust.root.to_string())));
    }

    #[test]
    fn the_sealing_key_is_made_once_and_read_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (first, made) = sealing_key(folder.path()).unwrap();
        let (again, made_again) = sealing_key(folder.path()).unwrap();
        assert_eq!((first.to_base64(), made, made_again), (again.to_base64(), true, false));
        let mode = std::fs::metadata(folder.path().join("seal.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.path().join("seal.key"), "half").unwrap();
        assert!(sealing_key(folder.path()).is_err(), "a damaged key is not replaced: the root would be lost with it");
    }

    #[test]
    fn a_persons_certificate_is_made_once_for_a_root_and_anew_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Authority::create("dev").unwrap(), Authority::create("dev").unwrap());
        assert!(ensure_operator(&one, Rank::Admin, folder.path()).unwrap());
        assert!(!ensure_operator(&one, Rank::Admin, folder.path()).unwrap());
        assert!(ensure_operator(&two, Rank::Admin, folder.path()).unwrap());
        assert_eq!(Credentials::load(folder.path()).unwrap().root(), two.hash());
    }
}
