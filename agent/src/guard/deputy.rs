//! The guard's deputy, a process of its own: it waits for nothing but the guard's end, and then kills what is left of the slot. So the role and all that it has
//! started die with their watchdog, also when no agent lives that would see it: the signal that the kernel sends at a parent's death reaches the first
//! process of the role, not that one's children.

use std::os::fd::AsFd;
use std::process::{Child, Command};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{GuardError, MYSELF, block_signals, pidfd, system};
use crate::supervisor::family::{Family, MARK};

/// Started before the role. It looks at the guard as soon as it runs: a guard that died before that is found dead.
pub(super) fn start(slot: &str, guard: &Family) -> Result<Child, GuardError> {
    let mut command = Command::new(MYSELF);
    command.args(["deputy", "--slot", slot, "--guard", &guard.session.to_string(), "--since", &guard.leader_start.to_string()]);
    command.spawn().map_err(system("start its deputy"))
}

/// Waits until the guard with this pid and start (ticks since boot) has ended, then until nothing but the caller is left of its slot.
///
/// # Errors
/// The guard cannot be waited for; then the guard sees its deputy end, and ends the role.
pub fn run(guard: i32, since: u64) -> Result<(), GuardError> {
    crate::machine::outrank_roles();
    // What ends a whole session politely is for the role: the guard hands it on.
    let _signals = block_signals()?;
    let family = Family { session: guard, leader_start: since, mark: std::env::var(MARK).unwrap_or_default() };
    // The caller is of the guard's session, so that nobody else can have got its number.
    match pidfd(guard) {
        Ok(ended) => loop {
            match poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) => break,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(GuardError::System("wait for the guard", error.into())),
            }
        },
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(error) => return Err(GuardError::System("watch the guard", error)),
    }
    while !family.kill() {}
    Ok(())
}
