//! What this machine is: its size by instance type, its host name, its Java, and how the agent outranks its roles.

use std::env;
use std::fs;
use std::path::PathBuf;

use nix::libc;

/// The machine's size, as templates and placement see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
}

/// Size of an instance type of the families t3, c5, c6i, m5, m6i and r6i (EC2 User Guide); none when the type is not in the table.
pub fn size_of_type(instance_type: &str) -> Option<Size> {
    let (family, size) = instance_type.split_once('.')?;
    let vcpus = match size {
        "nano" | "micro" | "small" | "medium" | "large" => 2,
        "xlarge" => 4,
        "2xlarge" => 8,
        "4xlarge" => 16,
        _ => return None,
    };
    let memory_mib = match (family, size) {
        ("t3" | "t3a", "nano") => 512,
        ("t3" | "t3a", "micro") => 1024,
        ("t3" | "t3a", "small") => 2048,
        ("t3" | "t3a", "medium") => 4096,
        ("t3" | "t3a", "large" | "xlarge" | "2xlarge") => vcpus * 4096,
        ("c5" | "c6i", "large" | "xlarge" | "2xlarge" | "4xlarge") => vcpus * 2048,
        ("m5" | "m6i", "large" | "xlarge" | "2xlarge" | "4xlarge") => vcpus * 4096,
        ("r6i", "large" | "xlarge" | "2xlarge" | "4xlarge") => vcpus * 8192,
        _ => return None,
    };
    Some(Size { vcpus, memory_mib })
}

/// The size by type, else as measured: an unknown type is still a machine.
pub fn size(instance_type: &str) -> Size {
    size_of_type(instance_type).unwrap_or_else(|| Size {
        vcpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory_mib: sysinfo::System::new().map_or(1024, |mut system| {
            system.refresh_memory();
            (system.total_memory() / (1024 * 1024)) as u32
        }),
    })
}

/// The host name, `localhost` when there is none.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

/// The JVM's program: `$JAVA_HOME/bin/java` or the first on the path.
pub fn java() -> Option<PathBuf> {
    let home = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    home.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join("java")).find(|java| java.is_file())
}

/// Asks the kernel to spare this process when memory runs out, and keeps its pages in memory if that is permitted.
/// Both are wishes: without the right they change nothing.
pub fn outrank_roles() {
    // Not an error without CAP_SYS_RESOURCE: the roles still say more for themselves than we do (the supervisor and the guard raise theirs).
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    lock_memory();
}

/// Pins what is touched (not all that is mapped, which would count the whole program as resident).
fn lock_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    // A finite limit would turn a later allocation into a failure: all or nothing.
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        // SAFETY: no memory is handed over; the call only changes how our pages are kept.
        let _ = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bigger_type_is_a_bigger_machine() {
        assert_eq!(size_of_type("t3.small"), Some(Size { vcpus: 2, memory_mib: 2048 }));
        assert_eq!(size_of_type("m5.xlarge"), Some(Size { vcpus: 4, memory_mib: 16384 }));
        assert_eq!(size_of_type("c5.2xlarge"), Some(Size { vcpus: 8, memory_mib: 16384 }));
    }

    #[test]
    fn an_unknown_type_is_measured() {
        assert_eq!(size_of_type("x9.giga"), None);
        assert!(size("x9.giga").memory_mib > 64);
    }
}
