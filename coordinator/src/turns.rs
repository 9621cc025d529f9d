//! How long this process's threads keep a processor once they have it.

use nix::libc;

/// Several times what a message costs here.
const SLICE_NS: u64 = 500_000;

/// Asks the scheduler for short turns for the calling thread: who asks for less at a time is given it sooner, so that a heartbeat waits neither for the end of a
/// handshake's turn nor of a role's (EEVDF, Linux 6.12). An older kernel takes no notice, and then turns are as long as everybody's.
pub fn short() {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: plain data, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `size` bytes into what is as large; 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } != 0 {
        return;
    }
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: plain system call over a value of ours.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
