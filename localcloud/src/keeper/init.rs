//! The birth of an instance: new namespaces, PID 1, the durable mark, then the image's boot program under it.
//! PID 1 reaps and stays, as a machine does whose boot program has ended; it goes only by SIGKILL from outside.
//!
//! ```text
//! keeper --spawns--> outer: session, cgroup, unshare, fork ──> PID 1: waits for "go"; mounts /proc; forks boot; reaps for ever
//!                      └─ marks init.json (host pid, start time), durable ── "go" ──^   └─ outer ends
//! ```

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, pipe, setsid};
use serde::{Deserialize, Serialize};

use super::KeeperError;
use super::cgroup::Cgroup;
use super::config::Config;
use super::disk::Disk;
use super::launcher::Listed;

/// How long the namespaces and the mark may take.
const BIRTH: Duration = Duration::from_secs(20);
/// What `outer` answers when the instance was booted before.
const BOOTED_BEFORE: i32 = 3;

/// What a birth is told, in `instances/ID/birth.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Birth {
    /// The image's boot program.
    boot: PathBuf,
    /// Its whole environment.
    environment: BTreeMap<String, String>,
    /// Files into which the pid is written to enter the instance's control group.
    entrances: Vec<PathBuf>,
}

/// Boots an instance that was never booted; `metadata`: address and port of its metadata service. When this fails after the mark was made, the instance stays dead, as a machine with a broken image.
///
/// # Errors
/// `Boot` with what the console says, `File`.
pub async fn boot(state: &Path, config: &Config, disk: &Disk, instance: &Listed, metadata: &str, cgroup: &Cgroup) -> Result<(), KeeperError> {
    let image = state.join("images").join(&instance.image);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let environment = BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOME".to_owned(), text(disk.root())),
        ("VP_INSTANCE_ROOT".to_owned(), text(disk.root())),
        ("VP_VOLUMES".to_owned(), text(disk.volumes())),
        ("VP_IMAGE".to_owned(), text(image.clone())),
        ("VP_COMPONENTS".to_owned(), text(config.components.clone())),
        ("AWS_REGION".to_owned(), config.region.clone()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), format!("http://{metadata}")),
    ]);
    let birth = Birth { boot: image.join("boot"), environment, entrances: cgroup.entrances() };
    let failed = |reason: String| KeeperError::Boot { instance: instance.id.clone(), reason };
    if !birth.boot.is_file() {
        return Err(failed(format!("image {} has no boot program at {}", instance.image, birth.boot.display())));
    }
    let path = disk.folder().join("birth.json");
    let content = serde_json::to_vec(&birth).map_err(|error| failed(error.to_string()))?;
    std::fs::write(&path, content).map_err(|source| KeeperError::File { path, doing: "writing an instance's birth", source })?;
    let console = std::fs::OpenOptions::new().create(true).append(true).open(disk.console());
    let console = console.map_err(|source| KeeperError::File { path: disk.console(), doing: "opening an instance's console", source })?;
    let again = console.try_clone().map_err(|error| failed(error.to_string()))?;
    let own = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut command = tokio::process::Command::new(own);
    command.arg("instance-init").arg(disk.folder()).env_clear().current_dir(disk.root());
    command.stdin(Stdio::null()).stdout(console).stderr(again);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    match tokio::time::timeout(BIRTH, child.wait()).await {
        Ok(Ok(status)) if status.success() || status.code() == Some(BOOTED_BEFORE) => Ok(()),
        Ok(Ok(status)) => Err(failed(format!("{status}; see {}", disk.console().display()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not born within {} s", BIRTH.as_secs()))),
    }
}

/// Why no instance was born; printed on its console.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// The description is missing or cannot be understood.
    #[error("reading {}", .0.display())]
    Description(PathBuf, #[source] std::io::Error),
    /// The kernel refused a namespace, a mount or a process.
    #[error("{doing}")]
    Kernel { doing: &'static str, source: nix::Error },
    /// A file of the kernel or of the disk.
    #[error("{}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    /// The mark could not be made.
    #[error("marking the instance as booted")]
    Mark(#[source] KeeperError),
}

fn kernel(doing: &'static str) -> impl Fn(nix::Error) -> BirthError {
    move |source| BirthError::Kernel { doing, source }
}

/// The program `instance-init FOLDER`: returns the exit code of the outer process; PID 1 never returns.
///
/// Must be called while the process has a single thread.
///
/// # Errors
/// `BirthError`; nothing of the instance runs then.
pub fn give_birth(folder: &Path) -> Result<i32, BirthError> {
    let described = folder.join("birth.json");
    let text = std::fs::read(&described).map_err(|error| BirthError::Description(described.clone(), error))?;
    let birth: Birth = serde_json::from_slice(&text).map_err(|error| BirthError::Description(described, error.into()))?;
    // A session of its own: no terminal, and no signal meant for the keeper's group.
    setsid().map_err(kernel("starting a session"))?;
    for entrance in &birth.entrances {
        std::fs::write(entrance, std::process::id().to_string()).map_err(|error| BirthError::File(entrance.clone(), error))?;
    }
    enter_namespaces()?;
    let (wait, go) = pipe().map_err(kernel("making a pipe"))?;
    // SAFETY: the process has one thread, so the child may go on as an ordinary program.
    match unsafe { fork() }.map_err(kernel("starting PID 1"))? {
        ForkResult::Child => {
            drop(go);
            be_init(&birth, wait)
        }
        ForkResult::Parent { child } => {
            drop(wait);
            release(&Disk::at(folder.to_path_buf()), child, go)
        }
    }
}

fn enter_namespaces() -> Result<(), BirthError> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).map_err(kernel("making namespaces"));
    }
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    unshare(all).map_err(kernel("making namespaces without root (are user namespaces allowed?)"))?;
    for (file, content) in [("setgroups", "deny".to_owned()), ("uid_map", format!("{user} {user} 1")), ("gid_map", format!("{group} {group} 1"))] {
        let path = Path::new("/proc/self").join(file);
        std::fs::write(&path, content).map_err(|error| BirthError::File(path.clone(), error))?;
    }
    Ok(())
}

/// Marks the instance as booted, and only then lets PID 1 go on. Without the mark PID 1 sees the pipe close, and ends.
fn release(disk: &Disk, child: Pid, go: OwnedFd) -> Result<i32, BirthError> {
    let process = crate::process::record(child.as_raw()).ok_or(BirthError::Kernel { doing: "finding PID 1", source: nix::Error::ESRCH })?;
    if !disk.mark_booted(process).map_err(BirthError::Mark)? {
        return Ok(BOOTED_BEFORE);
    }
    std::fs::File::from(go).write_all(b"g").map_err(|error| BirthError::File(disk.folder().to_path_buf(), error))?;
    Ok(0)
}

/// PID 1 of the instance.
fn be_init(birth: &Birth, wait: OwnedFd) -> ! {
    let mut word = [0_u8; 1];
    if !matches!(std::fs::File::from(wait).read(&mut word), Ok(1)) {
        std::process::exit(0);
    }
    if let Err(error) = prepare_mounts() {
        println!("instance: /proc could not be mounted: {error}");
        std::process::exit(1);
    }
    let name: &CStr = c"init";
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    unsafe { nix::libc::prctl(nix::libc::PR_SET_NAME, name.as_ptr()) };
    println!("instance: starting {}", birth.boot.display());
    let mut command = std::process::Command::new(&birth.boot);
    command.env_clear().envs(&birth.environment).stdin(Stdio::null()).process_group(0);
    let boot = match command.spawn() {
        Ok(child) => i32::try_from(child.id()).ok(),
        Err(error) => {
            println!("instance: boot program could not be started: {error}");
            None
        }
    };
    reap(boot)
}

/// Mounts of this namespace stay in it; /proc shows its processes only.
fn prepare_mounts() -> nix::Result<()> {
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&CStr>)?;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None::<&CStr>)
}

/// Collects every orphan for as long as the instance lives.
fn reap(boot: Option<i32>) -> ! {
    loop {
        match waitpid(None, None) {
            Ok(status) if boot.is_some() && status.pid().map(Pid::as_raw) == boot => match status {
                WaitStatus::Exited(_, code) => println!("instance: boot program ended with code {code}"),
                other => println!("instance: boot program ended: {other:?}"),
            },
            Ok(_) | Err(nix::Error::EINTR) => {}
            // Nothing left to wait for: the machine idles until it is switched off.
            Err(_) => nix::unistd::pause(),
        }
    }
}
