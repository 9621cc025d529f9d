//! What a machine can do to an agent: a full disk, a wall clock that jumps, power that goes, memory that runs out. Each needs a right or a compiler; without it the test fails
//! and says which, it is never passed over. Everything is undone when dropped.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const MOUNT: &str = "a disk that can be filled needs the right to mount (root)";

/// A disk of its own in place of a folder, small enough to be filled.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Seen by this thread and by what it starts: a killed test leaves no mount behind.
    pub fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).expect(MOUNT);
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect(MOUNT);
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0700")).expect(MOUNT);
        Self { at: at.to_owned() }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Leaves not a page.
    pub fn fill(&self) {
        let file = fs::File::create(self.filler()).unwrap();
        let (mut length, mut bytes) = (0, 1 << 20);
        while bytes >= 4096 {
            match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), length, bytes) {
                Ok(()) => length += bytes,
                Err(Errno::ENOSPC) => bytes /= 2,
                Err(errno) => panic!("filling the disk: {errno}"),
            }
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// A library for `LD_PRELOAD` from its source in the clone.
fn compile(source: &str, library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(source);
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(library).arg(source).args(["-ldl", "-lpthread"]);
    assert!(compiler.status().expect("hardship needs a C compiler, cc").success());
}

/// A machine whose power goes when the agent is killed: what it has written to these files and not synced is gone with it.
pub struct Power {
    dir: tempfile::TempDir,
}

impl Power {
    pub fn new() -> Self {
        let power = Self { dir: tempfile::tempdir().unwrap() };
        compile("coordinator/tests/data/lossy.c", &power.library());
        power
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("lossy.so")
    }

    /// `path`: a part of the files' paths.
    pub fn environment(&self, path: &str) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.library()), ("VP_LOSSY_TOO", path.into())]
    }
}

/// A wall clock that jumps, for what is started with its environment (tests/core/preload/faults.c).
pub struct WallClock {
    dir: tempfile::TempDir,
}

impl WallClock {
    pub fn new() -> Self {
        let clock = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(clock.file(), 0_i64.to_ne_bytes()).unwrap();
        compile("tests/core/preload/faults.c", &clock.library());
        clock
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("faults.so")
    }

    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library()), ("VP_CLOCK", self.file())]
    }

    /// So far from the true time, at once.
    pub fn jump(&self, seconds: i64) {
        fs::File::options().write(true).open(self.file()).unwrap().write_all(&seconds.to_ne_bytes()).unwrap();
    }

    /// Whether a process reads this clock.
    pub fn is_read_by(&self, pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains(&*self.file().to_string_lossy())
    }
}

/// A cgroup with so much memory and no more: the kernel kills inside it.
pub struct Memory {
    folder: PathBuf,
}

impl Memory {
    pub fn of(bytes: u64) -> Self {
        // Version 1 has a tree for memory, version 2 one for all.
        let first = Path::new("/sys/fs/cgroup/memory");
        let root = if first.is_dir() { first } else { Path::new("/sys/fs/cgroup") };
        // There already, or of version 1, which has no such file.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        let memory = Self { folder: root.join(format!("vp-agent-test-{}", std::process::id())) };
        fs::create_dir(&memory.folder).expect("running out of memory needs the right to make a cgroup (root)");
        let limit = if first.is_dir() { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(memory.folder.join(limit), bytes.to_string()).expect("the kernel has no memory cgroups");
        for (file, none) in [("memory.swappiness", "0"), ("memory.swap.max", "0")] {
            if memory.folder.join(file).exists() {
                fs::write(memory.folder.join(file), none).unwrap();
            }
        }
        memory
    }

    /// The process, and whatever it starts from now on.
    pub fn take(&self, pid: i32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Memory {
    /// After everything in it: its processes may take a moment to go.
    fn drop(&mut self) {
        for _ in 0..200 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
