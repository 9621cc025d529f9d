//! Small disks that can be filled: a tmpfs a member, when this process may mount one. Without that right disks are folders and never full; the table says so.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const FILLER: &str = "filler";

/// The disks of one cluster; unmounted when dropped.
pub struct Disks {
    /// By member; none: it is a folder.
    mounted: Vec<Option<PathBuf>>,
}

impl Disks {
    /// Mounts one of `mib` MiB for each member.
    pub fn mount(members: impl Iterator<Item = PathBuf>, mib: u32) -> Self {
        let options = format!("size={mib}m,mode=0700");
        let mounts = |at: &Path| fs::create_dir_all(at).is_ok() && mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).is_ok();
        Self { mounted: members.map(|at| mounts(&at).then_some(at)).collect() }
    }

    /// Leaves no room on a member's disk. False: it is a folder.
    ///
    /// # Errors
    /// Something else than the disk being full.
    pub fn fill(&self, member: usize) -> anyhow::Result<bool> {
        let Some(Some(disk)) = self.mounted.get(member) else { return Ok(false) };
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
            Some(Some(disk)) => Ok(fs::remove_file(disk.join(FILLER))?),
            _ => Ok(()),
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for disk in self.mounted.iter().flatten() {
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
    }
}
