//! Small disks that can be filled: a tmpfs a member, when this process may mount one. Without that right disks are folders and never full; the table says so.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Room for a log that is compacted all the time, its snapshot and the cache.
const OPTIONS: &str = "size=24m,mode=0700";
const FILLER: &str = "filler";

/// The disks of one cluster; unmounted when dropped.
pub struct Disks {
    mounted: Vec<PathBuf>,
}

impl Disks {
    /// Mounts one for each member below `folder`.
    pub fn mount(folder: &Path, members: usize) -> Self {
        let mut mounted = Vec::new();
        for member in 0..members {
            let at = folder.join(format!("{}/disk", member + 1));
            if fs::create_dir_all(&at).is_ok() && mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(OPTIONS)).is_ok() {
                mounted.push(at);
            }
        }
        Self { mounted }
    }

    /// Leaves no room on a member's disk. False: it is a folder.
    ///
    /// # Errors
    /// Something else than the disk being full.
    pub fn fill(&self, member: usize) -> anyhow::Result<bool> {
        let Some(disk) = self.mounted.get(member) else { return Ok(false) };
        let mut bytes = 64 << 20;
        let file = fs::File::create(disk.join(FILLER))?;
        let mut length = 0;
        // Ever smaller pieces, until not a page is left.
        while bytes >= 4096 {
            match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), length, bytes) {
                Ok(()) => length += bytes,
                Err(Errno::ENOSPC) => bytes /= 2,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// The file system's.
    pub fn empty(&self, member: usize) -> anyhow::Result<()> {
        match self.mounted.get(member) {
            Some(disk) => Ok(fs::remove_file(disk.join(FILLER))?),
            None => Ok(()),
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for disk in &self.mounted {
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
    }
}
