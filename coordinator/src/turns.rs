//! What this process asks of the kernel for itself: short turns on the processor, and its pages in memory.

use nix::libc;

/// Keeps this process's pages in memory, and asks to be spared when memory runs out: a coordinator outranks whatever else runs on its machine.
/// Both are wishes: without the right they change nothing.
pub fn stay() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    // A finite limit would turn a later allocation into a failure. What is touched, not all that is mapped: the whole program would count as resident.
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        // SAFETY: no memory is handed over; the call only changes how our pages are kept.
        let _ = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    }
}

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
