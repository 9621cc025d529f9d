//! Everything that can be known to be missing or wrong before anything is started: tools, components, free ports, disk, memory, the wanted spec.
//! What the machine lacks is told all at once.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::options::network_of;
use super::roles::{self, Needs};
use super::{COORDINATOR_PORT, ENROLMENT_PORT, RegionError, UpOptions, ZONES, aws};
use crate::keeper::imds;

const FIRST_NETWORK: u8 = 20;
const LAST_NETWORK: u8 = 254;
const MIN_DISK_MIB: u64 = 3 * 1024;
const MIN_MEMORY_MIB: u64 = 4 * 1024;
/// Ports of the region's services on its own address.
pub(super) const CONTROL_API_PORT: u16 = 5000;
pub(super) const S3_PORT: u16 = 7070;
pub(super) const LAMBDA_PORT: u16 = 9001;
/// The program that judges a spec, and what it says first of a lease.
const COORDINATOR: &str = "vp-coordinator";
const LEASE: &str = "lease_ms ";

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
    if let Some(number) = options.network.filter(|number| !(FIRST_NETWORK..=LAST_NETWORK).contains(number)) {
        return Err(RegionError::Invalid(format!("network {number}: {FIRST_NETWORK} to {LAST_NETWORK} are allowed (127.N.0.0/16)")));
    }
    if crate::keeper::instance_types::size(&options.instance_type).is_none() {
        let known = crate::keeper::instance_types::known().join(", ");
        return Err(RegionError::Invalid(format!("instance type {}: known are {known}", options.instance_type)));
    }
    if options.nodes > 200 {
        return Err(RegionError::Invalid(format!("{} nodes: at most 200", options.nodes)));
    }
    // What a lease may be the coordinators say (`spec`).
    if !options.coordinators && options.lease_ms == 0 {
        return Err(RegionError::Invalid("lease of 0 ms: at least 1".to_owned()));
    }
    Ok(())
}

/// Asks the coordinator's own program about spec and lease: it would end at its start over a wrong one, again and again.
pub(super) async fn spec(options: &UpOptions) -> Result<(), RegionError> {
    if !options.coordinators {
        return Ok(());
    }
    let program = options.programs.join(COORDINATOR);
    let fail = |source| RegionError::File { path: program.clone(), doing: "having the spec checked", source };
    let mut command = tokio::process::Command::new(&program);
    command.arg("check-spec").arg("--roles").arg(&options.roles).arg("--lease-ms").arg(options.lease_ms.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(fail)?;
    if let Some(mut input) = child.stdin.take() {
        // One that ends before it has read everything says why.
        let _ = input.write_all(aws::spec(options).as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(fail)?;
    let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) if told.starts_with(LEASE) => Err(RegionError::Invalid(told)),
        Some(1) => Err(RegionError::Spec(told)),
        _ => Err(RegionError::Unready(vec![format!("{} cannot check a spec ({}): run make build; it said: {told}", program.display(), output.status)])),
    }
}

/// Programs, components, tools, disk and memory.
pub(super) fn machine(options: &UpOptions) -> Result<(), RegionError> {
    let mut missing = missing_programs(options);
    missing.extend(missing_components(options));
    if options.coordinators {
        for (tool, package) in [("curl", "curl"), ("java", "openjdk-17-jre-headless"), ("ffmpeg", "ffmpeg"), ("ffprobe", "ffmpeg")] {
            if !on_path(tool) {
                missing.push(format!("tool {tool} is not on the path: apt-get install {package} (or run make setup)"));
            }
        }
    }
    missing.extend(too_little(options, free_disk_mib(&options.state), available_memory_mib()));
    if missing.is_empty() { Ok(()) } else { Err(RegionError::Unready(missing)) }
}

fn missing_programs(options: &UpOptions) -> Vec<String> {
    let mut missing = Vec::new();
    let mut programs = vec!["vp-localcloud"];
    if options.coordinators {
        programs.extend([COORDINATOR, "vp-agent"]);
    }
    if options.lambda {
        programs.extend(["vp-ingest", "vp-publish"]);
    }
    for program in programs {
        if !options.programs.join(program).is_file() {
            missing.push(format!("program {program} is not in {}: run make build", options.programs.display()));
        }
    }
    for (file, what) in [(options.launcher.join("launcher.py"), "the control API's launcher"), (options.image.join("boot"), "the image's boot program")] {
        if !file.is_file() {
            missing.push(format!("{what} is not at {}: run from a complete clone, after make build", file.display()));
        }
    }
    missing
}

/// What the region's services run from, and what the roles' files name.
fn missing_components(options: &UpOptions) -> Vec<String> {
    let mut missing = Vec::new();
    let mut wanted = vec!["moto/bin/python".to_owned(), "bin/versitygw".to_owned()];
    if options.coordinators {
        match roles::needs(&options.roles) {
            Ok(needs) => wanted.extend(needs.components),
            Err(error) => missing.push(format!("the roles in {} cannot be read ({error}): run from a complete clone", options.roles.display())),
        }
    }
    let absent = wanted.into_iter().filter(|component| !options.components.join(component).exists());
    missing.extend(absent.map(|component| format!("component {component} is not in {}: run make setup", options.components.display())));
    missing
}

/// What there is too little of; `None` is what could not be measured.
fn too_little(options: &UpOptions, disk_mib: Option<u64>, memory_mib: Option<u64>) -> Vec<String> {
    let mut missing = Vec::new();
    if let Some(free) = disk_mib.filter(|free| *free < MIN_DISK_MIB) {
        missing.push(format!("{free} MiB of disk are free for {}: {MIN_DISK_MIB} MiB are needed", options.state.display()));
    }
    if let Some(free) = memory_mib.filter(|free| options.coordinators && *free < MIN_MEMORY_MIB) {
        missing.push(format!("{free} MiB of memory are available: {MIN_MEMORY_MIB} MiB are needed"));
    }
    missing
}

/// Where something of a region will listen.
struct Door {
    address: String,
    port: u16,
    whose: String,
}

impl Door {
    fn is_busy(&self) -> bool {
        busy(&self.address, self.port)
    }

    /// For a person: an address that no region uses tells a program that listens on all of them from another region.
    fn told(&self, number: u8) -> String {
        let Self { address, port, whose } = self;
        if busy(&format!("127.{number}.255.254"), *port) {
            format!("port {port} is busy on every address (0.0.0.0): end the program that listens there, {whose} needs it")
        } else {
            format!("{address}:{port} is busy: {whose} needs it; another region may use network {number}, choose one with --network")
        }
    }
}

fn busy(address: &str, port: u16) -> bool {
    TcpListener::bind((address, port)).is_err()
}

/// Every door of a region in network N; for all instances the first one's, of the first zone.
fn doors(number: u8, options: &UpOptions, needs: &Needs) -> Vec<Door> {
    let door = |address: &str, port: u16, whose: &str| Door { address: address.to_owned(), port, whose: whose.to_owned() };
    let own = network_of(number);
    let mut doors = vec![door(&own, CONTROL_API_PORT, "the control API"), door(&own, S3_PORT, "S3"), door(&own, LAMBDA_PORT, "the Lambda service")];
    for port in [COORDINATOR_PORT, ENROLMENT_PORT] {
        doors.extend((1..=ZONES.len()).map(|zone| door(&aws::coordinator_address(number, zone), port, "a coordinator")));
    }
    let instance = format!("127.{number}.1.20");
    doors.push(door(&instance, imds::PORT, "an instance's metadata service"));
    if options.coordinators {
        doors.push(door(&instance, vp_trust::proof::PORT, "an agent that enrols"));
        doors.extend(needs.ports.iter().map(|(port, role)| door(&instance, *port, &format!("the role {role}"))));
    }
    doors
}

/// The network of a new region: the wanted one if it is free, else the first free one.
pub(super) fn network(options: &UpOptions) -> Result<u8, RegionError> {
    let fail = |source| RegionError::File { path: options.roles.clone(), doing: "reading the roles' ports", source };
    let needs = if options.coordinators { roles::needs(&options.roles).map_err(fail)? } else { Needs::default() };
    let taken =
        |number: u8| -> BTreeSet<String> { doors(number, options, &needs).iter().filter(|door| door.is_busy()).map(|door| door.told(number)).collect() };
    if let Some(number) = options.network {
        let taken = taken(number);
        return if taken.is_empty() { Ok(number) } else { Err(RegionError::Unready(taken.into_iter().collect())) };
    }
    let is_free = |number: &u8| !doors(*number, options, &needs).iter().any(Door::is_busy);
    let free = (FIRST_NETWORK..=LAST_NETWORK).find(is_free);
    free.ok_or_else(|| {
        let none = "no network from 127.20.0.0/16 to 127.254.0.0/16 is free".to_owned();
        RegionError::Unready(std::iter::once(none).chain(taken(LAST_NETWORK)).collect())
    })
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
    use std::path::PathBuf;

    use super::*;

    /// Options whose catalogue is one role with one port.
    fn with_role(folder: &Path, port: u16) -> UpOptions {
        let mut options = UpOptions::new("dev", folder.join("state"));
        options.roles = folder.join("roles");
        std::fs::create_dir_all(options.roles.join("odd")).unwrap();
        std::fs::write(options.roles.join("odd/role.yaml"), format!("fencing: quorum\nports: {{door: {port}}}\n")).unwrap();
        options
    }

    fn shipped_roles() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../roles")
    }

    #[test]
    fn a_busy_port_is_named_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = with_role(folder.path(), 1);
        wanted.coordinators = false;
        wanted.network = Some(254);
        let _held = TcpListener::bind(("127.254.0.2", S3_PORT)).unwrap();
        let error = network(&wanted).unwrap_err().to_string();
        assert!(error.contains("127.254.0.2:7070 is busy"), "{error}");
    }

    #[test]
    fn a_busy_port_of_a_role_is_named_with_the_role() {
        let folder = tempfile::tempdir().unwrap();
        let held = TcpListener::bind(("127.253.1.20", 0)).unwrap();
        let mut wanted = with_role(folder.path(), held.local_addr().unwrap().port());
        wanted.network = Some(253);
        let error = network(&wanted).unwrap_err().to_string();
        assert!(error.contains(&format!("{} is busy: the role odd needs it", held.local_addr().unwrap())), "{error}");
        wanted.coordinators = false;
        assert_eq!(network(&wanted).unwrap(), 253, "no role runs in a region without a cluster");
    }

    #[test]
    fn a_program_that_listens_on_all_addresses_is_told_from_another_region() {
        let folder = tempfile::tempdir().unwrap();
        let held = TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let mut wanted = with_role(folder.path(), port);
        for number in [Some(252), None] {
            wanted.network = number;
            let error = network(&wanted).unwrap_err().to_string();
            assert!(error.contains(&format!("port {port} is busy on every address (0.0.0.0)")), "{error}");
        }
    }

    #[test]
    fn every_port_of_a_region_is_tried() {
        let mut wanted = UpOptions::new("dev", "/tmp/x".into());
        let needs = roles::needs(&shipped_roles()).unwrap();
        let ports = |wanted: &UpOptions| doors(20, wanted, &needs).iter().map(|door| door.port).collect::<BTreeSet<_>>();
        let region = [1338, 5000, 7070, 7400, 7401, 9001];
        let all: BTreeSet<u16> = region.into_iter().chain([2181, 2888, 3888, 7077, 7078, 7402, 8080, 8081, 9092]).collect();
        assert_eq!(ports(&wanted), all);
        wanted.coordinators = false;
        assert_eq!(ports(&wanted), region.into_iter().collect());
    }

    #[test]
    fn everything_missing_is_told_at_once_with_how_to_get_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = UpOptions::new("dev", folder.path().join("state"));
        wanted.programs = folder.path().to_path_buf();
        wanted.components = folder.path().to_path_buf();
        wanted.roles = shipped_roles();
        let error = machine(&wanted).unwrap_err().to_string();
        for word in ["vp-agent", "make build", "versitygw", "zookeeper/lib", "make setup"] {
            assert!(error.contains(word), "{word} in {error}");
        }
    }

    #[test]
    fn the_one_component_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = UpOptions::new("dev", folder.path().join("state"));
        wanted.components = folder.path().to_path_buf();
        wanted.roles = shipped_roles();
        let parts = ["moto/bin/python", "bin/versitygw", "zookeeper/lib", "kafka/lib", "spark/home/jars", "spark/bin/python", "spark/jars"];
        for part in parts {
            std::fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        assert_eq!(missing_components(&wanted), Vec::<String>::new());
        for part in parts {
            std::fs::remove_dir(folder.path().join(part)).unwrap();
            let missing = missing_components(&wanted);
            assert!(missing.len() == 1 && missing[0].contains(&format!("component {part} is not in")), "{missing:?}");
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        std::fs::remove_dir(folder.path().join("kafka/lib")).unwrap();
        wanted.coordinators = false;
        assert_eq!(missing_components(&wanted), Vec::<String>::new(), "a region without a cluster runs no role");
    }

    #[test]
    fn too_little_disk_and_too_little_memory_are_named() {
        let mut wanted = UpOptions::new("dev", "/tmp/x".into());
        assert_eq!(too_little(&wanted, Some(MIN_DISK_MIB), Some(MIN_MEMORY_MIB)), Vec::<String>::new());
        assert_eq!(too_little(&wanted, None, None), Vec::<String>::new());
        assert_eq!(too_little(&wanted, Some(3071), Some(MIN_MEMORY_MIB)), ["3071 MiB of disk are free for /tmp/x: 3072 MiB are needed"]);
        assert_eq!(too_little(&wanted, Some(MIN_DISK_MIB), Some(4095)), ["4095 MiB of memory are available: 4096 MiB are needed"]);
        wanted.coordinators = false;
        assert_eq!(too_little(&wanted, Some(0), Some(0)).len(), 1, "without a cluster memory is not asked for");
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

    /// Options whose coordinator is that script, which finds `$folder` beside itself.
    fn with_coordinator(folder: &Path, script: &str) -> UpOptions {
        let mut options = UpOptions::new("dev", folder.join("state"));
        options.programs = folder.to_path_buf();
        options.roles = folder.join("roles");
        // Written by another process: a program that this one still holds open for writing, in a child just forked, could not be run.
        let write = r#"printf '#!/bin/sh\nfolder=$(dirname "$0")\n%s\n' "$2" >"$1" && chmod 755 "$1""#;
        let done = std::process::Command::new("sh").args(["-c", write, "sh"]).arg(folder.join(COORDINATOR)).arg(script).status().unwrap();
        assert!(done.success());
        options
    }

    #[tokio::test]
    async fn the_spec_that_will_be_pasted_is_what_the_coordinator_is_asked_about() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = with_coordinator(folder.path(), r#"cat >"$folder/asked"; echo "$@" >"$folder/words""#);
        let asked = || std::fs::read_to_string(folder.path().join("asked")).unwrap();
        wanted.lease_ms = 4321;
        spec(&wanted).await.unwrap();
        assert!(asked().contains("zookeeper: {min: 3, pref: 3, max: 5}"), "the default spec too: {}", asked());
        wanted.spec_yaml = Some("---\nroles: {}\n".to_owned());
        spec(&wanted).await.unwrap();
        assert_eq!(asked(), "\nroles: {}\n");
        let words = std::fs::read_to_string(folder.path().join("words")).unwrap();
        assert_eq!(words, format!("check-spec --roles {} --lease-ms 4321\n", wanted.roles.display()));
    }

    #[tokio::test]
    async fn what_the_coordinator_says_against_spec_or_lease_is_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |script: &'static str| {
            let wanted = with_coordinator(folder.path(), script);
            async move { spec(&wanted).await.unwrap_err() }
        };
        let wrong = refuse("echo 'line 2, column 3: unknown field' >&2; exit 1").await;
        assert!(matches!(&wrong, RegionError::Spec(told) if told == "line 2, column 3: unknown field"), "{wrong:?}");
        let short = refuse("cat >/dev/null; echo 'lease_ms is 5; allowed are 2000 to 60000' >&2; exit 1").await;
        assert!(matches!(&short, RegionError::Invalid(told) if told.starts_with("lease_ms is 5")), "{short:?}");
        let old = refuse("echo \"unexpected argument '$1'\" >&2; exit 2").await;
        assert!(matches!(&old, RegionError::Unready(told) if told[0].contains("make build") && told[0].contains("check-spec")), "{old:?}");
    }

    #[tokio::test]
    async fn a_region_without_a_cluster_needs_no_coordinators_word() {
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = UpOptions::new("dev", folder.path().join("state"));
        wanted.programs = folder.path().to_path_buf();
        assert!(matches!(spec(&wanted).await, Err(RegionError::File { .. })), "there is no program");
        wanted.coordinators = false;
        spec(&wanted).await.unwrap();
    }
}
