//! What clients asked and what they were told, as the linearizability checker reads it: one JSON object a line, times on one monotonic clock.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

/// One operation on a register.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    pub client: usize,
    pub key: String,
    pub write: bool,
    pub value: String,
    pub call_ns: u64,
    /// None: a write whose outcome is unknown.
    pub return_ns: Option<u64>,
}

/// Operations of one cluster; cheap to clone.
#[derive(Clone)]
pub struct History {
    begun: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { begun: Instant::now(), operations: Arc::default() }
    }
}

impl History {
    /// Nanoseconds since the history began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Adds what is known of an operation.
    pub fn add(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = BufWriter::new(File::create(path).with_context(|| format!("writing {}", path.display()))?);
        for operation in self.operations.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            serde_json::to_writer(&mut file, operation)?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    }
}

/// Has porcupine judge the histories; gives its word.
///
/// # Errors
/// One is not linearizable, or could not be decided.
pub fn check(checker: &Path, histories: &[PathBuf], picture: &Path) -> anyhow::Result<String> {
    let output = Command::new(checker).arg("-picture").arg(picture).args(histories).output().with_context(|| format!("running {}", checker.display()))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned();
    if !output.status.success() {
        bail!("{said}");
    }
    Ok(said)
}
