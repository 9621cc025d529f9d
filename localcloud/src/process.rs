//! Processes told apart by pid and start time, and held by pidfd, so that a reused pid is never signalled.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::region::RecordedProcess;

/// State letter and start time (clock ticks since the machine started) of a process; `None` when there is none.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold spaces and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The process that has this pid now; `None` when there is none (pids from 1).
pub fn record(pid: i32) -> Option<RecordedProcess> {
    stat(pid).map(|(_, start_time)| RecordedProcess { pid, start_time })
}

/// It lives: same pid, same start time, and not merely waiting to be reaped.
pub fn alive(process: &RecordedProcess) -> bool {
    stat(process.pid).is_some_and(|(state, start_time)| start_time == process.start_time && !matches!(state, 'Z' | 'X'))
}

/// A living process held by its pidfd.
#[derive(Debug)]
pub struct Held {
    pidfd: OwnedFd,
}

impl Held {
    /// Holds the very process that was recorded; `None` when it is gone.
    ///
    /// # Errors
    /// The kernel refused a pidfd for another reason than "no such process".
    pub fn adopt(process: &RecordedProcess) -> io::Result<Option<Self>> {
        if process.pid <= 0 {
            return Ok(None);
        }
        // SAFETY: pidfd_open takes plain integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor was just returned to us and nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Compared after the pidfd is held: from here on the pid cannot pass to another process unseen.
        Ok(alive(process).then_some(Self { pidfd }))
    }

    /// Sends SIGKILL. A process that is gone already is no error.
    ///
    /// # Errors
    /// We may not signal it.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Asks it to end (SIGTERM). A process that is gone already is no error.
    ///
    /// # Errors
    /// We may not signal it.
    pub fn ask_to_end(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a valid descriptor, a signal number, no siginfo, no flags.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0) };
        let error = io::Error::last_os_error();
        if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    }

    /// Waits until it has ended. For the PID 1 of a namespace that is after every process of the namespace has ended.
    ///
    /// # Errors
    /// The pidfd cannot be waited on.
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: the pidfd stays open for as long as we borrow it, which is longer than the registration.
        let waiting = unsafe { AsyncFd::register_with_interest(self.pidfd.as_raw_fd(), Interest::READABLE) }.map_err(io::Error::from)?;
        waiting.readable().await.map(|_| ())
    }
}

/// Kills a recorded process and waits until it is gone; true when there was one.
///
/// # Errors
/// It cannot be held, signalled or waited for.
pub async fn kill(process: &RecordedProcess) -> io::Result<bool> {
    let Some(held) = Held::adopt(process)? else { return Ok(false) };
    held.kill()?;
    held.ended().await?;
    Ok(true)
}

/// Asks a recorded process to end, and kills it when it has not after `grace`; true when there was one.
///
/// # Errors
/// It cannot be held, signalled or waited for.
pub async fn end(process: &RecordedProcess, grace: Duration) -> io::Result<bool> {
    let Some(held) = Held::adopt(process)? else { return Ok(false) };
    held.ask_to_end()?;
    if tokio::time::timeout(grace, held.ended()).await.is_err() {
        held.kill()?;
        held.ended().await?;
    }
    Ok(true)
}

/// Living processes whose command line or environment satisfies `wanted` (both as in /proc, NUL-separated), oneself left out.
pub fn find(wanted: impl Fn(&[&OsStr], &[u8]) -> bool) -> Vec<RecordedProcess> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let process = record(pid)?;
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let arguments: Vec<&OsStr> = arguments.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
            (wanted(&arguments, &environment) && alive(&process)).then_some(process)
        })
        .collect()
}

/// True when an argument is that path or lies below it.
pub fn names(arguments: &[&OsStr], path: &Path) -> bool {
    arguments.iter().any(|argument| Path::new(argument).starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_is_held_killed_and_seen_to_end() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let recorded = record(child.id() as i32).unwrap();
        assert!(alive(&recorded));
        assert!(kill(&recorded).await.unwrap());
        assert!(!alive(&recorded), "a zombie is not alive");
        child.wait().unwrap();
        assert!(!kill(&recorded).await.unwrap());
    }

    #[tokio::test]
    async fn another_process_under_the_same_pid_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut recorded = record(child.id() as i32).unwrap();
        recorded.start_time -= 1;
        assert!(!kill(&recorded).await.unwrap());
        assert!(child.try_wait().unwrap().is_none(), "it must still run");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
