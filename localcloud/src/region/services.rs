//! Starting the region's services detached from whoever starts them, and knowing when each one serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use super::{RecordedProcess, RegionError};
use crate::process;

/// The services in the order in which they start.
pub(super) const SERVICES: [&str; 4] = [CONTROL_API, LAMBDA, S3, KEEPER];
pub(super) const CONTROL_API: &str = "control-api";
pub(super) const LAMBDA: &str = "lambda";
pub(super) const S3: &str = "s3";
pub(super) const KEEPER: &str = "keeper";

const READY: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(30);

/// What to start.
pub(super) struct Service {
    pub name: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub ready: Ready,
}

/// When it serves.
pub(super) enum Ready {
    /// It accepts a connection there.
    Listens(String),
    /// It holds the lock on that file.
    Holds(PathBuf),
}

impl Ready {
    async fn reached(&self) -> bool {
        match self {
            Self::Listens(address) => tokio::net::TcpStream::connect(address).await.is_ok(),
            Self::Holds(path) => match std::fs::OpenOptions::new().read(true).open(path) {
                Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err(),
                Err(_) => false,
            },
        }
    }
}

/// Where a service prints.
pub(super) fn log(state: &Path, name: &str) -> PathBuf {
    state.join("logs").join(format!("{name}.log"))
}

/// Words of each service's command line, beside the state folder.
pub(super) fn marks(name: &str) -> &'static [&'static str] {
    match name {
        CONTROL_API => &["launcher.py"],
        LAMBDA => &["vp-localcloud", "lambda"],
        S3 => &["versitygw"],
        _ => &["vp-localcloud", "keeper"],
    }
}

/// Starts a service and waits until it serves. It outlives its starter and shares no terminal, session or file with it.
pub(super) async fn start(state: &Path, service: &Service) -> Result<RecordedProcess, RegionError> {
    let path = log(state, service.name);
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = |source| RegionError::File { path: path.clone(), doing: "opening a service's log", source };
    let failed = |what: String| RegionError::Service { service: service.name, what, log: path.clone() };
    let mut command = tokio::process::Command::new(&service.program);
    command.args(&service.arguments).env_clear().envs(&service.environment).current_dir(state);
    command.stdin(Stdio::null()).stdout(open().map_err(file)?).stderr(open().map_err(file)?);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            // Whatever our starter left open without close-on-exec (a lock, a pipe someone waits on) must not live on in a service.
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|error| failed(format!("could not be started: {error}")))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| failed("ended at once".to_owned()))?;
    let recorded = process::record(pid).ok_or_else(|| failed("ended at once".to_owned()))?;
    let started = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(failed(format!("ended with {status}{}", last_words(&path))));
        }
        if service.ready.reached().await {
            return Ok(recorded);
        }
        if started.elapsed() > READY {
            process::kill(&recorded).await.map_err(|error| failed(format!("cannot be ended: {error}")))?;
            return Err(failed(format!("did not serve within {} s", READY.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The last line of a log, for the message.
fn last_words(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| format!(" ({})", line.trim())).unwrap_or_default()
}
