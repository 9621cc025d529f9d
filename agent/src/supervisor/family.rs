//! Which processes belong to a slot: those of its session, and those that carry its mark in their environment (a process can
//! leave its group and its session, as Spark's Python daemons leave their group; its inherited environment stays).

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Environment variable that marks every process of a slot with the slot's folder, unique on the machine.
pub const MARK: &str = "VP_SLOT_DIR";

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// One letter; Z is dead and not yet reaped.
    pub state: char,
    /// Session id.
    pub session: i32,
    /// Start, in ticks since boot: with the pid it names one process for ever.
    pub start: u64,
}

/// Of one process; none when it is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    // The name is in parentheses and may hold anything, parentheses too.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, session, start })
}

/// Is exactly this process alive (a zombie is not)?
pub fn lives(pid: i32, start: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start == start && stat.state != 'Z')
}

/// One slot's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Session id, and the start time of its leader; zero when only the mark counts.
    pub session: i32,
    /// See `session`.
    pub leader_start: u64,
    /// Value of [`MARK`].
    pub mark: String,
}

impl Family {
    /// Every live process of the family but the caller.
    pub fn members(&self) -> Vec<i32> {
        // The kernel gives no new process the number of a session that still has members: another process under it means ours has none.
        let reused = stat(self.session).is_some_and(|leader| leader.start != self.leader_start);
        let session = if reused { 0 } else { self.session };
        let me = std::process::id() as i32;
        let wanted = format!("{MARK}={}", self.mark);
        processes().filter(|pid| *pid != me).filter(|pid| belongs(*pid, session, &wanted)).collect()
    }

    /// SIGKILL to every member, and again to those born meanwhile; true when none is left.
    pub fn kill(&self) -> bool {
        for _ in 0..50 {
            let members = self.members();
            if members.is_empty() {
                return true;
            }
            for pid in members {
                // Gone already is what is wanted.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            // A killed process takes a moment to go; give way instead of spinning.
            std::thread::yield_now();
        }
        false
    }
}

fn belongs(pid: i32, session: i32, mark: &str) -> bool {
    let Some(stat) = stat(pid) else { return false };
    if matches!(stat.state, 'Z' | 'X') {
        return false;
    }
    if session != 0 && stat.session == session {
        return true;
    }
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_parentheses_in_its_name_is_read() {
        let text = "42 (a) (b)) S 1 40 39 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        assert_eq!(parse(text), Some(Stat { state: 'S', session: 39, start: 98765 }));
    }

    #[test]
    fn a_child_that_left_its_session_is_killed_by_its_mark() {
        let mark = format!("/nowhere/{}", std::process::id());
        let mut child = std::process::Command::new("setsid").args(["sleep", "1000"]).env(MARK, &mark).spawn().unwrap();
        let family = Family { session: 0, leader_start: 0, mark };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while family.members().is_empty() {
            assert!(std::time::Instant::now() < deadline);
        }
        while !family.kill() {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_session_number_used_again_by_another_is_not_ours() {
        let me = std::process::id() as i32;
        let session = stat(me).unwrap().session;
        if let Some(leader) = stat(session) {
            let family = Family { session, leader_start: leader.start + 1, mark: "/nowhere/else".into() };
            assert_eq!(family.members(), Vec::<i32>::new());
        }
    }
}
