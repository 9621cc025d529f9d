//! A region for one test, taken away when the test ends, also when it fails.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vp_cloud::Session;
use vp_cloud::ec2::Compute;
use vp_localcloud::process;
use vp_localcloud::region::{DownOptions, InstanceStatus, RecordedProcess, Region, UpOptions, down};

/// Writes what it was given, leaves a grandchild in a session of its own, and stays.
pub const BOOT: &str = r#"#!/bin/sh
echo booted >>"$VP_INSTANCE_ROOT/boots"
env | sort >"$VP_INSTANCE_ROOT/environment"
echo $$ >"$VP_INSTANCE_ROOT/boot-pid"
(setsid sh -c 'sleep 100001 & sleep 100002 &' &)
exec sleep 100003
"#;

pub struct Bed {
    pub region: Region,
    pub options: UpOptions,
    pub compute: Compute,
    _folder: tempfile::TempDir,
    state: PathBuf,
}

/// Options for a region without a cluster, on a network of its own.
pub fn options(folder: &Path, network: u8, nodes: u32, boot: &str) -> UpOptions {
    let image = folder.join("image");
    std::fs::create_dir_all(&image).unwrap();
    std::fs::write(image.join("boot"), boot).unwrap();
    std::fs::set_permissions(image.join("boot"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let house = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut options = UpOptions::new(&format!("test-{network}"), folder.join("state"));
    options.network = Some(network);
    options.nodes = nodes;
    options.programs = Path::new(env!("CARGO_BIN_EXE_vp-localcloud")).parent().unwrap().to_path_buf();
    options.launcher = house.join("aws");
    options.image = image;
    options.roles = house.to_path_buf();
    options.coordinators = false;
    options.lambda = false;
    options
}

impl Bed {
    pub async fn up(network: u8, nodes: u32) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("vp-localcloud-test").tempdir().unwrap();
        let options = options(folder.path(), network, nodes, BOOT);
        let state = options.state.clone();
        let region = match Region::up(&options, &mut |_| ()).await {
            Ok(region) => region,
            Err(error) => {
                down(&state, &DownOptions::default(), &mut |_| ()).await.unwrap();
                panic!("{error:?}");
            }
        };
        let record = region.record();
        let session = Session::load(record.endpoints()).await;
        let compute = Compute::new(session.shared());
        Self { region, options, compute, _folder: folder, state }
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn root(&self, instance: &str) -> PathBuf {
        self.state.join("instances").join(instance).join("root")
    }

    pub async fn instances(&self) -> Vec<InstanceStatus> {
        self.region.status().await.unwrap().instances
    }

    /// Waits until that many instances are running and their boot has come to its end.
    pub async fn booted(&self, count: usize) -> Vec<InstanceStatus> {
        until("instances booted", || async {
            let running: Vec<_> = self.instances().await.into_iter().filter(|one| one.state == "running" && one.alive).collect();
            let whole = running.len() == count && running.iter().all(|one| sleepers(&self.root(&one.id)).len() == 3);
            whole.then_some(running)
        })
        .await
    }

    pub async fn state_of(&self, instance: &str) -> String {
        self.compute.describe_instance(instance).await.unwrap().state.as_str().to_owned()
    }

    pub fn keeper(&self) -> RecordedProcess {
        Region::open(&self.state).unwrap().record().services["keeper"]
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let state = self.state.clone();
        let taken = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(down(&state, &DownOptions::default(), &mut |_| ()))
        });
        let result = taken.join().unwrap();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// The three sleeping processes of an instance that BOOT leaves, wherever they hang.
pub fn sleepers(root: &Path) -> Vec<RecordedProcess> {
    let mark = format!("VP_INSTANCE_ROOT={}", root.display()).into_bytes();
    process::find(|arguments, environment| {
        arguments.first().is_some_and(|program| *program == "sleep") && environment.split(|byte| *byte == 0).any(|one| one == mark)
    })
}

pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

pub fn signal(process: &RecordedProcess, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal).unwrap();
}
