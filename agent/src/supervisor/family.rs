//! Which processes belong to a slot: those of its session, and those that carry its mark in their environment (a process can
//! leave its group and its session, as Spark's Python daemons leave their group; its inherited environment stays).

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

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
    /// It is between two programs (execve): its environment cannot be read for a moment, and looks empty.
    pub changing: bool,
}

/// Of one process; none when it is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    // The name is in parentheses and may hold anything, parentheses too.
    let rest = text.rsplit_once(')')?.1;
    // proc_pid_stat(5) counts from 1 and from the pid; the first one here is its third.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at| field(at)?.parse::<u64>().ok();
    let state = field(3)?.chars().next()?;
    // Threads of the kernel never have an environment. Whoever may not look is shown zeros, but then may not read it either.
    let changing = number(51) == Some(0) && number(9)? & KERNEL_THREAD == 0;
    Some(Stat { state, session: field(6)?.parse().ok()?, start: number(22)?, changing })
}

/// PF_KTHREAD of the kernel's include/linux/sched.h.
const KERNEL_THREAD: u64 = 0x0020_0000;

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
        self.look(true, None).0
    }

    /// SIGKILL to every member, and again to those born meanwhile; true when none is left for certain.
    pub fn kill(&self) -> bool {
        self.kill_but(None)
    }

    /// Kills until no member is left but the spared one.
    pub fn extinguish(&self, spared: Option<i32>) {
        while !self.kill_but(spared) {
            // What does not die at once waits for a disk: asked again, but not without a pause.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill_but(&self, spared: Option<i32>) -> bool {
        let end = |pids: Vec<i32>| {
            for pid in pids {
                // Gone already is what is wanted.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        };
        for _ in 0..50 {
            // First those who are known by their session: for that nobody's environment is waited for.
            end(self.look(false, spared).0);
            let (members, certain) = self.look(true, spared);
            if members.is_empty() && certain {
                return true;
            }
            end(members);
            // A killed process takes a moment to go; give way instead of spinning.
            std::thread::yield_now();
        }
        false
    }

    /// The members but one, by session alone or by environment too; and whether that is all, for certain.
    fn look(&self, environments: bool, spared: Option<i32>) -> (Vec<i32>, bool) {
        // The kernel gives no new process the number of a session that still has members: another process under it means ours has none.
        let reused = stat(self.session).is_some_and(|leader| leader.start != self.leader_start);
        let session = if reused { 0 } else { self.session };
        let me = std::process::id() as i32;
        let wanted = environments.then(|| format!("{MARK}={}", self.mark));
        let until = Instant::now() + PATIENCE;
        let (mut members, mut certain) = (Vec::new(), true);
        for pid in processes().filter(|pid| *pid != me && Some(*pid) != spared) {
            match belongs(pid, session, wanted.as_deref(), until) {
                Some(true) => members.push(pid),
                Some(false) => {}
                None => certain = false,
            }
        }
        (members, certain)
    }
}

/// How long one look waits, all in all, for processes that are between two programs. An execve takes a millisecond; on a starved machine it may take longer.
const PATIENCE: Duration = Duration::from_millis(20);

/// None: it is between two programs, and was so for longer than one waits.
fn belongs(pid: i32, session: i32, mark: Option<&str>, until: Instant) -> Option<bool> {
    let Some(first) = stat(pid) else { return Some(false) };
    if matches!(first.state, 'Z' | 'X') {
        return Some(false);
    }
    if session != 0 && first.session == session {
        return Some(true);
    }
    let Some(mark) = mark else { return Some(false) };
    // An empty environment may be that of a process between two programs, which may be through by the time one asks about that: only seen several times on end,
    // and never beside a change, is it empty.
    let mut empty = 0;
    loop {
        let Ok(environ) = environment(pid) else { return Some(false) };
        if !environ.is_empty() {
            return Some(environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()));
        }
        let changing = stat(pid).is_some_and(|now| now.changing && !matches!(now.state, 'Z' | 'X'));
        empty = if changing { 0 } else { empty + 1 };
        if empty == 3 {
            return Some(false);
        }
        if changing && Instant::now() >= until {
            return None;
        }
        std::thread::yield_now();
    }
}

/// In one piece: read bit by bit, it ends in the middle when its process begins another program.
fn environment(pid: i32) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(format!("/proc/{pid}/environ"))?;
    let mut bytes = vec![0; 256 * 1024];
    let read = file.read(&mut bytes)?;
    let whole = read < bytes.len();
    bytes.truncate(read);
    if !whole {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
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
        assert_eq!(parse(text), Some(Stat { state: 'S', session: 39, start: 98765, changing: false }));
        let memory = " 3".repeat(28);
        let whole = |flags: u32, end| format!("42 (a) S 1 40 39 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 98765{memory} {end} 0");
        let changing = |flags, end| parse(&whole(flags, end)).is_some_and(|stat| stat.changing);
        assert_eq!([changing(4_194_560, 0), changing(4_194_560, 77), changing(0x20_8040, 0)], [true, false, false]);
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

    /// Found by a run that hung: for a moment in execve a process shows no environment, and was taken for none of ours.
    #[test]
    fn a_child_that_is_changing_programs_all_the_time_is_not_overlooked() {
        let mark = format!("/nowhere/changing/{}", std::process::id());
        let again = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; exec sh -c \"$again\"";
        let mut child = std::process::Command::new("setsid").args(["sh", "-c", again]).env("again", again).env(MARK, &mark).spawn().unwrap();
        let family = Family { session: 0, leader_start: 0, mark };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while family.members().is_empty() {
            assert!(std::time::Instant::now() < deadline);
        }
        let overlooked = (0..200).filter(|_| family.look(true, None) == (Vec::new(), true)).count();
        while !family.kill() {
            assert!(std::time::Instant::now() < deadline);
        }
        assert_eq!((overlooked, child.wait().unwrap().success()), (0, false));
    }

    #[test]
    fn a_session_number_used_again_by_another_is_not_ours() {
        // `setsid` becomes what it starts: the child leads its session.
        let mut child = std::process::Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap();
        let session = child.id() as i32;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while stat(session).unwrap().session != session {
            assert!(std::time::Instant::now() < deadline);
        }
        let start = stat(session).unwrap().start;
        let family = |leader_start| Family { session, leader_start, mark: "/nowhere/else".into() };
        let (ours, another) = (family(start).members(), family(start + 1).members());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((ours, another), (vec![session], Vec::new()));
    }
}
