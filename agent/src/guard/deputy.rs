//! The guard's deputy, a process of its own: it waits for nothing but the guard's end, and then kills what is left of the slot. So the role and what it has started die with
//! their watchdog, also when no agent lives that would see it: the signal that the kernel sends at a parent's death reaches the first process of the role, not
//! that one's children.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{GuardError, MYSELF, block_endings, pidfd, system};
use crate::supervisor::family::{Family, MARK};

/// Started before the role, with a pidfd of the guard as its input: however early the guard dies, the deputy finds that it did.
/// In a group of its own, so that a role that signals its group does not hit both.
pub(super) fn start(slot: &str, guard: &Family) -> Result<Child, GuardError> {
    let ended: OwnedFd = pidfd(guard.session).map_err(system("open a pidfd of itself"))?;
    let mut command = Command::new(MYSELF);
    command.args(["deputy", "--slot", slot, "--guard", &guard.session.to_string(), "--since", &guard.leader_start.to_string()]);
    command.stdin(ended).process_group(0).spawn().map_err(system("start its deputy"))
}

/// Waits until the guard, whose pidfd is the caller's input, has ended, then until nothing but the caller is left of its slot. `guard` is its pid, `since` its
/// start in ticks since boot: they name its session, of which the caller is.
///
/// # Errors
/// The guard cannot be waited for; then the guard sees its deputy end, and ends the role.
pub fn run(guard: i32, since: u64) -> Result<(), GuardError> {
    crate::machine::outrank_roles();
    // What asks a whole session to end is for the role: the guard hands it on.
    let _signals = block_endings()?;
    let input = std::io::stdin();
    loop {
        match poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(GuardError::System("wait for the guard", error.into())),
        }
    }
    let family = Family { session: guard, leader_start: since, mark: std::env::var(MARK).unwrap_or_default() };
    family.extinguish(None);
    Ok(())
}
