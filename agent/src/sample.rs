//! Measures of the machine for the heartbeat: cheap ones, taken at most once in two seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use sysinfo::System;
use vp_proto::v1::NodeMeasures;

const EVERY: Duration = Duration::from_secs(2);

/// Keeps what the next measure is compared with.
pub struct Sampler {
    system: Option<System>,
    last: Option<(Instant, NodeMeasures)>,
}

impl Sampler {
    /// A sampler; on a kernel that sysinfo does not know it measures less.
    pub fn new() -> Self {
        Self { system: System::new().ok(), last: None }
    }

    /// The measures, at most two seconds old. `disk` is on the file system that roles write to.
    pub fn measures(&mut self, disk: &Path) -> NodeMeasures {
        if let Some((at, measures)) = &self.last
            && at.elapsed() < EVERY
        {
            return *measures;
        }
        let mut measures = NodeMeasures { agent_rss_bytes: rss_bytes(), disk_free_bytes: disk_free_bytes(disk), ..NodeMeasures::default() };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            measures.cpu_used_permille = (system.global_cpu_usage() * 10.0) as u32;
            measures.memory_used_bytes = system.used_memory();
            measures.memory_total_bytes = system.total_memory();
        }
        self.last = Some((Instant::now(), measures));
        measures
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * page as u64
}

fn disk_free_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |fs| fs.blocks_available() * fs.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_disk_and_an_agent_on_it() {
        let measures = Sampler::new().measures(Path::new("/"));
        assert!(measures.memory_total_bytes > measures.memory_used_bytes && measures.memory_used_bytes > 0);
        assert!(measures.agent_rss_bytes > 0 && measures.disk_free_bytes > 0);
    }
}
