//! Roles as child processes, for a machine without systemd: each in a session of its own, recorded on disk before the agent says
//! it runs, so that an agent started later adopts what it finds. Exits are noticed through pidfds, adopted processes' too.
//! Resource shares are not set here: an instance's cgroup does that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use fail::fail_point;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::family::{Family, MARK, lives, stat};
use super::{Exit, Status, Supervisor, SupervisorError, Unit};
use crate::clock::Instant;
use crate::durable::{FileError, make_folder, replace};
use crate::guard::{LEASE_OVER, MYSELF, pidfd};
use crate::layout::Layout;
use crate::reconcile::Process;
use crate::slot::Slot;

/// A log larger than this is put aside, one old one is kept.
const LOG_BYTES: u64 = 16 * 1024 * 1024;

/// One process, as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    generation: u64,
    pid: i32,
    /// Start in ticks since boot: with the pid it names the process.
    start: u64,
    /// The kernel's boot id: after another boot nothing of it is left.
    boot: String,
    /// CLOCK_BOOTTIME, nanoseconds.
    started: u64,
    log_file: PathBuf,
}

impl Record {
    /// None: it is not readable. What it names then carries the slot's mark all the same, and is killed.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

struct Child {
    record: Record,
    family: Family,
    stopping: Option<Instant>,
    /// Its end was seen and reported; what is left of its family is being killed.
    ended: bool,
}

/// The supervisor.
pub struct Processes {
    layout: Layout,
    boot: String,
    wake: Arc<Notify>,
    children: BTreeMap<Slot, Child>,
    exits: Vec<Exit>,
}

impl Processes {
    /// Adopts what an earlier agent left running and kills what carries a slot's mark and stands in no record. `wake` is
    /// notified when a process ends.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn adopt(layout: Layout, wake: Arc<Notify>) -> Result<Self, SupervisorError> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let mut processes = Self { layout, boot, wake, children: BTreeMap::new(), exits: Vec::new() };
        let folder = processes.layout.agent().join("processes");
        make_folder(&folder)?;
        for entry in fs::read_dir(&folder).map_err(FileError::of("read", &folder))? {
            let path = entry.map_err(FileError::of("read", &folder))?.path();
            let slot = path.file_stem().and_then(|name| Slot::try_from(name.to_string_lossy().into_owned()).ok());
            let record = fs::read(&path).ok().and_then(|bytes| Record::read(&bytes));
            if let (Some(slot), Some(record), true) = (slot, record, path.extension().is_some_and(|e| e == "json")) {
                if record.boot == processes.boot {
                    tracing::info!(%slot, pid = record.pid, alive = lives(record.pid, record.start), "process adopted");
                    processes.watch(&slot, record);
                } else {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        fail_point!("supervisor::adopted");
        processes.kill_strays();
        Ok(processes)
    }

    fn family(&self, slot: &Slot, session: i32, leader_start: u64) -> Family {
        Family { session, leader_start, mark: self.layout.slot(slot).display().to_string() }
    }

    /// An agent killed between starting a process and recording it leaves one that nobody knows.
    fn kill_strays(&self) {
        let slots = fs::read_dir(self.layout.root().join("slots")).into_iter().flatten().flatten();
        for slot in slots.filter_map(|entry| Slot::try_from(entry.file_name().to_string_lossy().into_owned()).ok()) {
            if !self.children.contains_key(&slot) {
                let family = self.family(&slot, 0, 0);
                if !family.members().is_empty() {
                    tracing::warn!(%slot, pids = ?family.members(), "killing processes that stand in no record");
                    family.kill();
                }
            }
        }
    }

    fn watch(&mut self, slot: &Slot, record: Record) {
        let family = self.family(slot, record.pid, record.start);
        // No pidfd: it is gone already, and the first look will see it.
        // SAFETY: the descriptor is owned by the AsyncFd and neither closed nor replaced while it lives.
        let watched = pidfd(record.pid).ok().and_then(|fd| unsafe { AsyncFd::register(fd) }.ok());
        if let Some(fd) = watched {
            let wake = self.wake.clone();
            tokio::spawn(async move {
                let _ = fd.readable().await;
                wake.notify_one();
            });
        } else {
            self.wake.notify_one();
        }
        self.children.insert(slot.clone(), Child { record, family, stopping: None, ended: false });
    }

    fn record(&self, slot: &Slot, record: &Record) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        replace(&self.layout.process_record(slot), &bytes)
    }
}

/// The end of our own child, for a person, and whether its guard ended it; an adopted process has another parent.
fn reap(pid: i32) -> (String, bool) {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => (format!("exited with code {code}"), code == LEASE_OVER),
        Ok(WaitStatus::Signaled(_, signal, _)) => (format!("killed by {signal}"), false),
        _ => ("ended; its code is another parent's to know".into(), false),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    // Appending, so that the file can be cut while the role writes.
    OpenOptions::new().create(true).append(true).open(path)
}

fn rotate(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.len() > LOG_BYTES {
        // Copied and cut, not renamed: the role holds the file open. Lines written in between are lost.
        fs::copy(path, path.with_extension("log.1"))?;
        OpenOptions::new().write(true).open(path)?.set_len(0)?;
    }
    Ok(())
}

fn guarded(unit: &Unit) -> (String, Vec<String>) {
    let Some(deadline) = unit.deadline else {
        let mut words = unit.command.iter().cloned();
        return (words.next().unwrap_or_default(), words.collect());
    };
    let flags = [
        "guard".to_owned(),
        format!("--slot={}", unit.slot),
        format!("--generation={}", unit.generation),
        format!("--deadline={}", deadline.0),
        format!("--nice={}", unit.nice),
        "--".to_owned(),
    ];
    (MYSELF.into(), flags.into_iter().chain(unit.command.iter().cloned()).collect())
}

impl Supervisor for Processes {
    fn start(&mut self, unit: &Unit) -> Result<(), SupervisorError> {
        fail_point!("supervisor::start");
        let (program, arguments) = guarded(unit);
        let _ = rotate(&unit.log_file);
        let log = open_log(&unit.log_file).map_err(FileError::of("open", &unit.log_file))?;
        let error_log = log.try_clone().map_err(FileError::of("open", &unit.log_file))?;
        let mark = self.layout.slot(&unit.slot).display().to_string();
        let mut command = Command::new(&program);
        command.args(arguments).env_clear().envs(&unit.environment).env(MARK, mark).current_dir(&unit.run_dir);
        command.stdin(Stdio::null()).stdout(log).stderr(error_log);
        let nice = if unit.deadline.is_some() { 0 } else { unit.nice };
        // SAFETY: between fork and exec only system calls are made, no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                nix::sys::signal::SigSet::empty().thread_set_mask()?;
                libc::setpriority(libc::PRIO_PROCESS, 0, nice);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|source| SupervisorError::Spawn { program, source })?;
        fail_point!("supervisor::spawned");
        let pid = child.id() as i32;
        if unit.deadline.is_none() {
            let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "200");
        }
        let start = stat(pid).map_or(0, |stat| stat.start);
        let boot = self.boot.clone();
        let record = Record { generation: unit.generation, pid, start, boot, started: Instant::now().0, log_file: unit.log_file.clone() };
        let recorded = self.record(&unit.slot, &record);
        fail_point!("supervisor::recorded");
        self.watch(&unit.slot, record);
        if let Err(error) = recorded {
            // Unrecorded it would run twice after a restart.
            self.kill(&unit.slot, Instant::now());
            return Err(error.into());
        }
        Ok(())
    }

    fn stop(&mut self, slot: &Slot, signal: Signal, now: Instant) {
        if let Some(child) = self.children.get_mut(slot) {
            child.stopping.get_or_insert(now);
            if lives(child.record.pid, child.record.start) {
                let _ = kill(Pid::from_raw(child.record.pid), signal);
            }
        }
    }

    fn kill(&mut self, slot: &Slot, now: Instant) {
        if let Some(child) = self.children.get_mut(slot) {
            child.stopping.get_or_insert(now);
            child.family.kill();
        }
    }

    fn status(&mut self, slot: &Slot) -> Status {
        let Some(child) = self.children.get_mut(slot) else { return Status::default() };
        let Record { generation, pid, start, started, .. } = child.record;
        let status = |process| Status { process, pid, started: Instant(started) };
        if lives(pid, start) {
            return status(match child.stopping {
                Some(since) => Process::Stopping { generation, since },
                None => Process::Running { generation },
            });
        }
        if !child.ended {
            child.ended = true;
            let (how, lease_over) = reap(pid);
            let now = Instant::now();
            let ran = now.since(Instant(started));
            tracing::info!(%slot, pid, how, asked = child.stopping.is_some(), "process ended");
            if child.stopping.is_none() {
                self.exits.push(Exit { slot: slot.clone(), at: now, ran, how, lease_over });
            }
        }
        if !child.family.members().is_empty() {
            return Status { pid: 0, ..status(Process::Leftovers) };
        }
        self.children.remove(slot);
        let path = self.layout.process_record(slot);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%slot, %error, "cannot remove the record of an ended process");
        }
        Status::default()
    }

    fn slots(&self) -> Vec<Slot> {
        self.children.keys().cloned().collect()
    }

    fn exits(&mut self) -> Vec<Exit> {
        std::mem::take(&mut self.exits)
    }

    fn tidy(&mut self) {
        for (slot, child) in &self.children {
            if let Err(error) = rotate(&child.record.log_file) {
                tracing::debug!(%slot, %error, "log not rotated");
            }
        }
    }
}
