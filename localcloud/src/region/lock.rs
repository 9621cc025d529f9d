//! One `up` or `down` at a time works on a state folder: each locks the folder itself, so that nothing is left behind of the lock.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Progress, RegionError};

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);

/// Held until it is dropped.
pub(super) struct Lock {
    _folder: File,
    /// The folder was made for it.
    pub fresh: bool,
}

/// Makes the folder if there is none, and locks it; waits while another works on it. None: that one was not done within `patience`.
///
/// # Errors
/// `Invalid`: it is a link, which would be taken away while the secrets stay. `File`: the folder cannot be made or opened.
pub(super) async fn take(state: &Path, patience: Duration, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Option<Lock>, RegionError> {
    if state.is_symlink() {
        let to = std::fs::read_link(state).unwrap_or_default();
        return Err(RegionError::Invalid(format!("{} is a link to {}: name the folder itself with --state", state.display(), to.display())));
    }
    let fail = |source| RegionError::File { path: state.to_path_buf(), doing: "locking the state folder", source };
    let (began, mut told) = (Instant::now(), false);
    loop {
        let fresh = !state.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(fail)?;
        let folder = match File::open(state) {
            Ok(folder) => folder,
            // Taken away by the one that worked on it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error)),
        };
        match folder.try_lock() {
            Ok(()) if is_still(&folder, state) => return Ok(Some(Lock { _folder: folder, fresh })),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        if began.elapsed() >= patience {
            return Ok(None);
        }
        if !told {
            told = true;
            progress(Progress::Started { step: "another vpctl" });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A folder that was removed and made again meanwhile is another.
fn is_still(folder: &File, state: &Path) -> bool {
    let which = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((folder.metadata().map(which), std::fs::metadata(state).map(which)), (Ok(locked), Ok(now)) if locked == now)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn locked(state: &Path) -> Option<Lock> {
        take(state, Duration::ZERO, &mut |_| {}).await.unwrap()
    }

    #[tokio::test]
    async fn one_at_a_time_and_the_next_when_the_folder_was_taken_away() {
        let above = tempfile::tempdir().unwrap();
        let state = above.path().join("a region");
        let first = locked(&state).await.unwrap();
        assert!(first.fresh && locked(&state).await.is_none());
        let waiting = tokio::spawn({
            let state = state.clone();
            async move { take(&state, Duration::from_secs(20), &mut |_| {}).await.unwrap().map(|lock| lock.fresh) }
        });
        tokio::task::yield_now().await;
        std::fs::remove_dir(&state).unwrap();
        drop(first);
        assert_eq!(waiting.await.unwrap(), Some(true));
        assert_eq!(locked(&state).await.map(|lock| lock.fresh), Some(false));
    }
}
