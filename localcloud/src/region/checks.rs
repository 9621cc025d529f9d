//! Everything that can be known to be missing before anything is started: tools, free ports, disk, memory. All of it is told at once.

use std::net::TcpListener;
use std::path::Path;

use super::options::network_of;
use super::{COORDINATOR_PORT, ENROLMENT_PORT, RegionError, UpOptions, ZONES};

const FIRST_NETWORK: u8 = 20;
const MIN_DISK_MIB: u64 = 3 * 1024;
const MIN_MEMORY_MIB: u64 = 4 * 1024;
/// Ports of the region's services on its own address.
pub(super) const CONTROL_API_PORT: u16 = 5000;
pub(super) const S3_PORT: u16 = 7070;
pub(super) const LAMBDA_PORT: u16 = 9001;

/// Options that cannot be meant.
pub(super) fn options(options: &UpOptions) -> Result<(), RegionError> {
    let name = &options.name;
    let letters = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if name.len() < 2 || name.len() > 30 || !letters || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with('-') {
        return Err(RegionError::Invalid(format!("region name {name:?}: 2 to 30 lowercase letters, digits and hyphens are allowed, beginning with a letter")));
    }
    if !options.state.is_absolute() {
        return Err(RegionError::Invalid(format!("state folder {}: give an absolute path", options.state.display())));
    }
    if let Some(number) = options.network.filter(|number| !(FIRST_NETWORK..=254).contains(number)) {
        return Err(RegionError::Invalid(format!("network {number}: {FIRST_NETWORK} to 254 are allowed (127.N.0.0/16)")));
    }
    if crate::keeper::instance_types::size(&options.instance_type).is_none() {
        let known = crate::keeper::instance_types::known().join(", ");
        return Err(RegionError::Invalid(format!("instance type {}: known are {known}", options.instance_type)));
    }
    if options.nodes > 200 {
        return Err(RegionError::Invalid(format!("{} nodes: at most 200", options.nodes)));
    }
    if options.lease_ms < 1000 {
        return Err(RegionError::Invalid(format!("lease of {} ms: at least 1000", options.lease_ms)));
    }
    Ok(())
}

/// Tools, disk and memory.
pub(super) fn machine(options: &UpOptions) -> Result<(), RegionError> {
    let mut missing = Vec::new();
    let mut programs = vec!["vp-localcloud"];
    if options.coordinators {
        programs.extend(["vp-coordinator", "vp-agent"]);
    }
    if options.lambda {
        programs.extend(["vp-ingest", "vp-publish"]);
    }
    for program in programs {
        if !options.programs.join(program).is_file() {
            missing.push(format!("program {program} is not in {}: run make build", options.programs.display()));
        }
    }
    for component in ["moto/bin/python", "bin/versitygw"] {
        if !options.components.join(component).exists() {
            missing.push(format!("component {component} is not in {}: run make setup", options.components.display()));
        }
    }
    for (file, what) in [(options.launcher.join("launcher.py"), "the control API's launcher"), (options.image.join("boot"), "the image's boot program")] {
        if !file.is_file() {
            missing.push(format!("{what} is not at {}: run from a complete clone, after make build", file.display()));
        }
    }
    if options.coordinators {
        for (tool, package) in [("curl", "curl"), ("java", "openjdk-17-jre-headless"), ("ffmpeg", "ffmpeg"), ("ffprobe", "ffmpeg")] {
            if !on_path(tool) {
                missing.push(format!("tool {tool} is not on the path: apt-get install {package} (or run make setup)"));
            }
        }
    }
    if let Some(free) = free_disk_mib(&options.state).filter(|free| *free < MIN_DISK_MIB) {
        missing.push(format!("{free} MiB of disk are free for {}: {MIN_DISK_MIB} MiB are needed", options.state.display()));
    }
    if let Some(free) = available_memory_mib().filter(|free| options.coordinators && *free < MIN_MEMORY_MIB) {
        missing.push(format!("{free} MiB of memory are available: {MIN_MEMORY_MIB} MiB are needed"));
    }
    if missing.is_empty() { Ok(()) } else { Err(RegionError::Unready(missing)) }
}

fn addresses(number: u8) -> Vec<(String, u16)> {
    let own = network_of(number);
    let mut wanted = vec![(own.clone(), CONTROL_API_PORT), (own.clone(), S3_PORT), (own, LAMBDA_PORT)];
    for port in [COORDINATOR_PORT, ENROLMENT_PORT] {
        wanted.extend((1..=ZONES.len()).map(|zone| (format!("127.{number}.{zone}.10"), port)));
    }
    wanted
}

fn busy(number: u8) -> Vec<String> {
    let wanted = addresses(number).into_iter();
    wanted.filter(|(address, port)| TcpListener::bind((address.as_str(), *port)).is_err()).map(|(address, port)| format!("{address}:{port}")).collect()
}

/// The network of a new region: the wanted one if it is free, else the first free one.
pub(super) fn network(wanted: Option<u8>) -> Result<u8, RegionError> {
    if let Some(number) = wanted {
        let busy = busy(number);
        return if busy.is_empty() {
            Ok(number)
        } else {
            Err(RegionError::Unready(
                busy.into_iter().map(|one| format!("{one} is busy: another region may use network {number}; choose one with --network")).collect(),
            ))
        };
    }
    let free = (FIRST_NETWORK..=254).find(|number| busy(*number).is_empty());
    free.ok_or_else(|| RegionError::Unready(vec!["no network from 127.20.0.0/16 to 127.254.0.0/16 is free".to_owned()]))
}

fn on_path(tool: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()))
}

/// Of the nearest folder above that exists.
fn free_disk_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|folder| folder.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(stat.blocks_available() * stat.fragment_size() / (1024 * 1024))
}

fn available_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_named_before_anything_starts() {
        let _held = TcpListener::bind(("127.254.0.2", S3_PORT)).unwrap();
        let error = network(Some(254)).unwrap_err().to_string();
        assert!(error.contains("127.254.0.2:7070 is busy"), "{error}");
    }

    #[test]
    fn everything_missing_is_told_at_once_with_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = UpOptions::new("dev", folder.path().join("state"));
        wanted.programs = folder.path().to_path_buf();
        wanted.components = folder.path().to_path_buf();
        let error = machine(&wanted).unwrap_err().to_string();
        for word in ["vp-agent", "make build", "versitygw", "make setup"] {
            assert!(error.contains(word), "{word} in {error}");
        }
    }

    #[test]
    fn names_and_types_that_cannot_be_meant_are_refused_with_what_is_allowed() {
        let with = |name: &str, instance_type: &str| {
            let mut wanted = UpOptions::new(name, "/tmp/x".into());
            wanted.instance_type = instance_type.to_owned();
            options(&wanted).map_err(|error| error.to_string())
        };
        assert!(with("dev", "t3.small").is_ok());
        assert!(with("../dev", "t3.small").unwrap_err().contains("lowercase"));
        assert!(with("dev", "t9.huge").unwrap_err().contains("t3.small"));
    }
}
