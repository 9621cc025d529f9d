//! The guard of one exclusive slot: the parent of the role's process, in a session of its own, that kills the whole session at
//! its lease's end, whether the agent is alive, hung, restarting or gone. It renews on a datagram and asks nobody.
//! It knows nothing of coordinators. One thread, no async, few dependencies: what must work when nothing else does.
//!
//! ```text
//!  agent ──datagram "GENERATION DEADLINE"──> guard.sock ─┐
//!  timerfd(CLOCK_BOOTTIME, deadline) ────────────────────┼─ poll ─> kill the session
//!  signals (forwarded to the role) ──────────────────────┤
//!  pidfds of the role and of the deputy ─────────────────┘
//! ```

pub mod deputy;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{Pid, getpid, getppid};

use crate::clock::Instant;
use crate::mutant;
use crate::supervisor::family::{Family, MARK, stat};

/// The running program, even if its file was replaced by an upgrade since: a guard is of the agent's version that started it, its deputy of the guard's.
pub const MYSELF: &str = "/proc/self/exe";

/// The socket's name in the slot's run folder.
pub const SOCKET: &str = "guard.sock";

/// Exit code when the lease ended.
pub const LEASE_OVER: i32 = 124;

/// No renewal reaches further than this: a damaged message must not free a role for ever.
const FURTHEST: Duration = Duration::from_secs(120);

/// What the agent asks of a guard; it runs in the slot's run folder.
#[derive(Debug, Clone)]
pub struct Order {
    /// The slot, for a person who looks at the process list.
    pub slot: String,
    /// Only renewals of this generation count.
    pub generation: u64,
    /// First deadline.
    pub deadline: Instant,
    /// Niceness of the role; the guard's own stays.
    pub nice: i32,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A guard that could not do its work; the role is dead or was never started.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A call of the operating system.
    #[error("guard: cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// Nothing to run.
    #[error("guard: no command")]
    NoCommand,
    /// Nobody would kill the role if the guard died now.
    #[error("guard: its deputy has ended, and the role with it")]
    Alone,
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> GuardError {
    move |error| GuardError::System(what, error.into())
}

/// Runs the role until it ends or its lease does. Returns the exit code for the agent.
///
/// # Errors
/// The system refused something; then the role does not run.
pub fn run(order: &Order) -> Result<i32, GuardError> {
    crate::machine::outrank_roles();
    let signals = block_endings()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(system("watch signals"))?;
    let _ = fs::remove_file(SOCKET);
    let socket = UnixDatagram::bind(SOCKET).map_err(system("bind its socket"))?;
    socket.set_nonblocking(true).map_err(system("bind its socket"))?;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK).map_err(system("make a timer"))?;
    arm(&timer, order.deadline)?;
    if Instant::now() >= order.deadline {
        return Ok(LEASE_OVER);
    }
    let me = getpid();
    let family = Family { session: me.as_raw(), leader_start: stat(me.as_raw()).map_or(0, |stat| stat.start), mark: std::env::var(MARK).unwrap_or_default() };
    let mut deputy = deputy::start(&order.slot, &family)?;
    let mut child = None;
    let outcome = spawn(order, me).and_then(|role| watch(order, child.insert(role), &deputy, &signals, &socket, &timer));
    // However it ended: nothing of the session outlives the guard. The deputy goes last, should the guard be killed while it kills.
    family.extinguish(Some(deputy.id() as i32));
    let _ = deputy.kill();
    let _ = deputy.wait();
    let _ = child.map(|mut child: Child| child.wait());
    let _ = fs::remove_file(SOCKET);
    outcome
}

/// Blocks what asks a process to end, to be read instead.
fn block_endings() -> Result<SigSet, GuardError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(system("block signals"))?;
    Ok(signals)
}

fn spawn(order: &Order, me: Pid) -> Result<Child, GuardError> {
    let (program, arguments) = order.command.split_first().ok_or(GuardError::NoCommand)?;
    let mut command = Command::new(program);
    command.args(arguments);
    let nice = order.nice;
    // SAFETY: between fork and exec only system calls are made, no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            SigSet::empty().thread_set_mask()?;
            libc::setpriority(libc::PRIO_PROCESS, 0, nice);
            // If the guard dies the role dies; if it died before this line there is nobody to die with.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != me {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let child = command.spawn().map_err(system("run the role"))?;
    let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "200");
    Ok(child)
}

fn watch(order: &Order, child: &mut Child, deputy: &Child, signals: &SignalFd, socket: &UnixDatagram, timer: &TimerFd) -> Result<i32, GuardError> {
    let pid = Pid::from_raw(child.id() as i32);
    let role = pidfd(pid.as_raw()).map_err(system("watch the role"))?;
    let beside = pidfd(deputy.id() as i32).map_err(system("watch its deputy"))?;
    let mut deadline = order.deadline;
    loop {
        let mut fds = [signals.as_fd(), socket.as_fd(), timer.as_fd(), role.as_fd(), beside.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(GuardError::System("wait", error.into())),
        }
        // Seen and not waited for: its number stays its own.
        let alone = fds[4].any() == Some(true);
        // Renewals first: one that lies in the socket counts, however late we were woken, if it is still ahead of us.
        while let Some(renewed) = receive(socket, order.generation) {
            if extends(deadline, renewed, Instant::now()) {
                deadline = renewed;
                arm(timer, deadline)?;
            }
        }
        if is_over(deadline, Instant::now()) {
            return Ok(LEASE_OVER);
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if let Ok(signal) = Signal::try_from(signal.ssi_signo as i32) {
                let _ = kill(pid, signal);
            }
        }
        if let Some(status) = child.try_wait().map_err(system("wait for the role"))? {
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if alone {
            return Err(GuardError::Alone);
        }
    }
}

/// Whether the role must go.
pub fn is_over(deadline: Instant, now: Instant) -> bool {
    let patience = if mutant!("guard-forgives") { Duration::from_secs(1) } else { Duration::ZERO };
    now >= deadline.after(patience)
}

/// Whether a renewal that was read at `now` moves the deadline: later only, and not further than a lease can be.
pub fn extends(deadline: Instant, renewed: Instant, now: Instant) -> bool {
    renewed > deadline && renewed <= now.after(FURTHEST)
}

fn receive(socket: &UnixDatagram, generation: u64) -> Option<Instant> {
    let mut buffer = [0; 64];
    loop {
        let length = socket.recv(&mut buffer).ok()?;
        if let Some((for_generation, deadline)) = renewal(&buffer[..length])
            && for_generation == generation
        {
            return Some(deadline);
        }
    }
}

/// What a datagram says: generation and deadline; none when it is not one of ours.
pub fn renewal(datagram: &[u8]) -> Option<(u64, Instant)> {
    let (generation, deadline) = std::str::from_utf8(datagram).ok()?.split_once(' ')?;
    Some((generation.parse().ok()?, Instant(deadline.parse().ok()?)))
}

fn arm(timer: &TimerFd, deadline: Instant) -> Result<(), GuardError> {
    let at = TimeSpec::from_duration(Duration::from_nanos(deadline.0));
    timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME).map_err(system("set its timer"))
}

/// Moves the deadline of the guard in `run_dir`. Never waits.
///
/// # Errors
/// Nobody listens there.
pub fn renew(run_dir: &Path, generation: u64, deadline: Instant) -> io::Result<()> {
    // A socket's path may hold 107 bytes; through an open folder any folder is near.
    let folder = fs::File::open(run_dir)?;
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    socket.send_to(format!("{generation} {}", deadline.0).as_bytes(), path).map(drop)
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// It is gone already, or the kernel has no pidfd.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor (close-on-exec); nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
