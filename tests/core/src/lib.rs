//! What `make bench-core` and `make chaos` stand on: groups of real member processes, clients that speak to them as everybody does, and figures.
//! Left out: the measurements and the faults themselves (`programs/`).
//!
//! ```text
//! bench-core ─┬─ group ─────────> three register-server, etcd or ZooKeeper processes, each on an address of its own
//!             ├─ load ──────────> writes in a closed loop, the same program for all
//!             ├─ coordinators ──> three real vp-coordinator daemons in a `region` that stands in for AWS
//!             ├─ sessions ──────> thousands of agents' sessions, each under a certificate of its own
//!             ├─ root            certificates for all of them; `channel` shows them
//!             └─ figures         medians, quantiles, the table
//! ```

pub mod channel;
pub mod coordinators;
pub mod figures;
pub mod group;
pub mod history;
pub mod load;
pub mod observer;
pub mod processes;
pub mod program;
pub mod proxy;
pub mod region;
pub mod root;
pub mod sessions;
pub mod writer;

/// The tests' own register service and the part of etcd's API that is measured.
pub mod wire {
    #[allow(clippy::large_futures, clippy::doc_markdown, reason = "generated")]
    pub mod registers {
        tonic::include_proto!("vp.registers.v1");
    }
    #[allow(clippy::large_futures, reason = "generated")]
    pub mod etcd {
        tonic::include_proto!("etcdserverpb");
    }
}

/// How often a condition is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(150);

/// Looks at the condition until it holds, and gives what it found. Blocks: for plain `#[test]`s.
///
/// # Errors
/// It did not hold within `deadline`: says `what`, and what the last look said (its error, or nothing yet).
pub fn wait_until<T>(what: &str, deadline: std::time::Duration, mut condition: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let begun = std::time::Instant::now();
    loop {
        let last = match condition() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!("; last look: {error:#}"),
        };
        if begun.elapsed() >= deadline {
            anyhow::bail!("not within {} s: {what}{last}", deadline.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}
