//! A local region for one test program: brought up through `vpctl`, taken down by an undertaker that outlives even a killed test.
//! A test that went well ends only when nothing of its region is left: no process, mount, control group or file.

use std::{
    collections::BTreeSet,
    env, fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use vp_cloud::{Endpoints, Session, autoscaling::Groups, ec2::Compute, s3::ObjectStore};

use crate::processes;

/// Networks of regions that tests make; people's begin at 20.
const FIRST_NETWORK: u8 = 60;

/// How the temporary files begin that Spark's and Kafka's JVMs, the streaming job and the functions make.
const SCATTERED: [&str; 13] = [
    "artifacts-",
    "blockmgr-",
    "hadoop-",
    "ingest-",
    "liblz4-",
    "libsnappy",
    "libzstd",
    "pyspark-",
    "snappy-",
    "spark-",
    "temporary-",
    "vp-join-",
    "vp-segment-",
];

/// What one call of `vpctl` said.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// It is none; says what was written instead.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("vpctl ended with {} and said: {} {}", self.code, self.stdout.trim(), self.stderr.trim()))
    }
}

/// A real region; dropping it takes it away, and fails the test when something of it stays.
pub struct Region {
    name: String,
    network: u8,
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    session: Session,
    undertaker: Option<(Child, ChildStdin)>,
    /// See [`scattered`].
    scattered_before: BTreeSet<PathBuf>,
    _network: Flock<fs::File>,
}

/// The folder with the built programs: `VP_BIN`, else `bin/` of this clone.
pub fn programs() -> PathBuf {
    env::var_os("VP_BIN").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin"), PathBuf::from)
}

/// The folder of the pinned components: `VP_COMPONENTS`, else where set-up puts them.
pub fn components() -> PathBuf {
    env::var_os("VP_COMPONENTS").map_or_else(|| cache().join("components"), PathBuf::from)
}

/// A clip of set-up's samples, e.g. `clip-90s.mp4`.
pub fn sample(name: &str) -> PathBuf {
    components().join("samples").join(name)
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/vp");
    env::var_os("VP_CACHE").map_or_else(home, PathBuf::from)
}

impl Region {
    /// Brings a region up on a free network (`VP_TEST_NETWORK` names one) and waits until its cluster is healthy.
    ///
    /// # Errors
    /// Programs are not built, no network is free, or the region does not come up: with what `vpctl dev up` said.
    pub fn up(name: &str) -> anyhow::Result<Self> {
        Self::up_with(name, &[])
    }

    /// As [`Region::up`], with more options for `vpctl dev up`.
    ///
    /// # Errors
    /// As [`Region::up`].
    pub fn up_with(name: &str, options: &[&str]) -> anyhow::Result<Self> {
        let vpctl = programs().join("vpctl");
        anyhow::ensure!(vpctl.exists(), "{} is missing: make build first", vpctl.display());
        let (network, lock) = free_network()?;
        let name = format!("{name}-{network}");
        let folder = tempfile::Builder::new().prefix(&format!("vp-{name}-")).tempdir()?.keep();
        let (undertaker, stdin) = undertaker(&vpctl, &name, &folder)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let none = runtime.block_on(Session::load(Endpoints::default()));
        // From here on a failure takes the region down by dropping this.
        let undertaker = Some((undertaker, stdin));
        let mut region = Self { name, network, folder, runtime, session: none, undertaker, scattered_before: scattered(), _network: lock };
        let begun = Instant::now();
        let number = network.to_string();
        let up = region.ctl(&[&["dev", "up", "--network", &number], options].concat())?;
        if up.code != 0 {
            // Said here, too: taking away what there is may fail as well, and end the test before this error is shown.
            println!("vpctl dev up: {}", up.stderr.trim());
            bail!("the region did not come up ({}):\n{}{}", up.code, up.stdout, up.stderr);
        }
        println!("region {} is up on 127.{network}.0.0/16 after {:.1} s", region.name, begun.elapsed().as_secs_f32());
        region.session = region.connect()?;
        Ok(region)
    }

    fn connect(&self) -> anyhow::Result<Session> {
        let record: Value = serde_json::from_str(&fs::read_to_string(self.state().join("region.json"))?)?;
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        let credentials = text("access_key_id").zip(text("secret_access_key"));
        let endpoints = Endpoints { region: text("aws_region"), endpoint_url: text("endpoint_url"), s3_endpoint_url: text("s3_endpoint_url"), credentials };
        Ok(self.block_on(Session::load(endpoints)))
    }

    /// Its name: the test's, and the network's number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// N of 127.N.0.0/16.
    pub fn network(&self) -> u8 {
        self.network
    }

    /// The state folder (docs/contracts.md §1).
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// A folder for the test's own files, gone with the region.
    pub fn scratch(&self) -> PathBuf {
        self.folder.clone()
    }

    /// The disk of an instance.
    pub fn disk(&self, instance: &str) -> PathBuf {
        self.state().join("instances").join(instance)
    }

    /// `uploads`, `results` or `cluster`.
    pub fn bucket(&self, purpose: &str) -> String {
        format!("{}-{purpose}", self.name)
    }

    /// Runs what asks the network or must wait for it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A handle for what goes on in the background.
    pub fn handle(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    /// EC2 of the region.
    pub fn ec2(&self) -> Compute {
        Compute::new(self.session.shared())
    }

    /// Auto Scaling of the region.
    pub fn groups(&self) -> Groups {
        Groups::new(self.session.shared())
    }

    /// S3 of the region.
    pub fn store(&self) -> ObjectStore {
        ObjectStore::new(&self.session)
    }

    /// A `vpctl` that means this region.
    pub fn vpctl(&self) -> Command {
        let mut command = Command::new(programs().join("vpctl"));
        command.arg("--region-name").arg(&self.name).arg("--state").arg(self.state()).args(["-o", "json"]).stdin(Stdio::null());
        command
    }

    /// Calls `vpctl` and waits for its end, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let output = self.vpctl().args(arguments).output().context("vpctl cannot be run")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// Calls `vpctl`, which must answer with JSON (its exit code may say that the cluster is not well).
    ///
    /// # Errors
    /// It cannot be run or does not answer.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.ctl(arguments)?.json().with_context(|| format!("vpctl {}", arguments.join(" ")))
    }

    /// `vpctl status` (keys in vpctl/README.md).
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.json(&["status"])
    }

    /// The exports of `vpctl dev env`, by name: what a foreign client gets to know.
    ///
    /// # Errors
    /// The region's record cannot be read.
    pub fn env(&self, name: &str) -> anyhow::Result<String> {
        let env = self.json(&["dev", "env"])?;
        env[name].as_str().map(str::to_owned).with_context(|| format!("{name} is not exported"))
    }

    /// Waits until `vpctl status` says healthy.
    ///
    /// # Errors
    /// Not within `deadline`: with the reasons it gives.
    pub fn wait_healthy(&self, deadline: Duration) -> anyhow::Result<Value> {
        crate::wait_until("the cluster is healthy", deadline, || {
            let status = self.status()?;
            if status["health"] == "healthy" {
                return Ok(Some(status));
            }
            bail!("{}: {}", status["health"], status["reasons"])
        })
    }

    /// What happened after a revision.
    ///
    /// # Errors
    /// No coordinator answers.
    pub fn events(&self, after: u64) -> anyhow::Result<Vec<Value>> {
        let lines = self.ctl(&["events", "--after", &after.to_string()])?.stdout;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn save_logs(&self) {
        let target = cache().join("logs").join(&self.name);
        let _ = fs::remove_dir_all(&target);
        copy_logs(&self.state(), &target);
        println!("logs of region {} are kept in {}", self.name, target.display());
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            self.save_logs();
        }
        let Some((mut undertaker, stdin)) = self.undertaker.take() else { return };
        drop(stdin);
        let ended = undertaker.wait();
        // A second panic would end the whole program and hide the first.
        if failing {
            return;
        }
        if !ended.as_ref().is_ok_and(|status| status.success()) {
            self.save_logs();
            panic!("vpctl dev down did not end well: {ended:?}; what is left of region {} is in {}", self.name, self.folder.display());
        }
        let mut left = left_of(&self.name, &self.folder);
        left.extend(scattered().difference(&self.scattered_before).map(|path| format!("temporary files {}", path.display())));
        assert!(left.is_empty(), "region {} is down, and this is left of it:\n{}", self.name, left.join("\n"));
    }
}

/// What still is of a region: its folder, mounts in it, its control groups, and processes that name it in their command line or environment.
fn left_of(name: &str, folder: &Path) -> Vec<String> {
    let mut left = Vec::new();
    if folder.exists() {
        left.push(format!("folder {}", folder.display()));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(|line| format!("mount {line}")));
    let groups = ["cpu", "memory", "pids", "."].map(|hierarchy| Path::new("/sys/fs/cgroup").join(hierarchy).join(format!("vp-{name}")));
    left.extend(groups.iter().filter(|group| group.exists()).map(|group| format!("control group {}", group.display())));
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    left.extend(processes::all().filter(|pid| *pid != own).filter_map(|pid| named_by(pid, folder)));
    left
}

/// What is in the folders for temporary files that lies there because what runs in a region was told of no other: Python and ffmpeg ask `TMPDIR`, a JVM does not.
fn scattered() -> BTreeSet<PathBuf> {
    let entries = [env::temp_dir(), "/tmp".into()].into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let known = |path: &PathBuf| path.file_name().is_some_and(|name| SCATTERED.iter().any(|known| name.to_string_lossy().starts_with(known)));
    entries.map(|entry| entry.path()).filter(known).collect()
}

/// The process with its command line, when that or its environment holds the folder's path.
fn named_by(pid: i32, folder: &Path) -> Option<String> {
    let path = folder.as_os_str().as_encoded_bytes();
    let holds = |file: &str| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| bytes.windows(path.len()).any(|window| window == path));
    if !holds("cmdline") && !holds("environ") {
        return None;
    }
    let command = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ");
    // One that has ended meanwhile is not left.
    processes::stat(pid).map(|_| format!("process {pid}: {command}"))
}

/// A shell that waits for the end of its input, which is ours: it takes the region away when we ask, and also when we were killed.
fn undertaker(vpctl: &Path, name: &str, folder: &Path) -> anyhow::Result<(Child, ChildStdin)> {
    let script = r#"read -r _; "$1" --region-name "$2" --state "$3/state" dev down >/dev/null && rm -rf "$3""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "undertaker"]).arg(vpctl).arg(name).arg(folder);
    // A group of its own: Ctrl-C ends the test, not this.
    let mut child = command.process_group(0).stdin(Stdio::piped()).spawn().context("no shell")?;
    let stdin = child.stdin.take().context("its input is a pipe")?;
    Ok((child, stdin))
}

/// A network nobody uses, held against other test programs of this machine for as long as the lock lives.
fn free_network() -> anyhow::Result<(u8, Flock<fs::File>)> {
    let wanted = env::var("VP_TEST_NETWORK").ok().map(|text| text.parse::<u8>()).transpose().context("VP_TEST_NETWORK")?;
    let candidates = wanted.map_or(FIRST_NETWORK..=254, |number| number..=number);
    for number in candidates {
        let file = fs::File::create(env::temp_dir().join(format!("vp-test-network-{number}.lock")))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        if [5000, 7070, 9001].iter().all(|port| TcpListener::bind((format!("127.{number}.0.2"), *port)).is_ok()) {
            return Ok((number, lock));
        }
    }
    bail!("no network is free")
}

fn copy_logs(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && name != "s3" && name != "volumes" && name != "images" {
            copy_logs(&path, &to.join(&name));
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "log") {
            let _ = fs::create_dir_all(to);
            let _ = fs::copy(&path, to.join(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_region_leaves_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        let mut child = Command::new("sleep").arg("600").env("VP_TESTS_LEFT", path.join("state")).spawn().unwrap();
        let pid = child.id();
        let begun = crate::wait_until("sleep is what the child runs", Duration::from_secs(10), || {
            Ok(fs::read(format!("/proc/{pid}/cmdline"))?.starts_with(b"sleep").then_some(()))
        });
        let with_it = left_of("nobody-0", &path);
        child.kill().unwrap();
        child.wait().unwrap();
        begun.unwrap();
        assert_eq!(with_it, [format!("folder {}", path.display()), format!("process {pid}: sleep 600 ")]);
        folder.close().unwrap();
        assert_eq!(left_of("nobody-0", &path), Vec::<String>::new());
    }
}
