//! Where roles run: a narrow trait with room for two homes. `process` is the one without systemd; units over D-Bus are
//! the other (not yet here). No judgement: it starts, asks, kills and says what is.

pub mod family;
pub mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::clock::Instant;
use crate::durable::FileError;
use crate::reconcile::Process;
use crate::slot::Slot;

/// A role's process, ready to be started.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Whose.
    pub slot: Slot,
    /// As which generation.
    pub generation: u64,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// Working folder; a guard's socket is in it.
    pub run_dir: PathBuf,
    /// What it prints goes here.
    pub log_file: PathBuf,
    /// Niceness.
    pub nice: i32,
    /// Under a guard that kills it at this instant unless renewed.
    pub deadline: Option<Instant>,
}

/// The end of a process that nobody asked to end.
#[derive(Debug, Clone)]
pub struct Exit {
    /// Whose.
    pub slot: Slot,
    /// When it was noticed.
    pub at: Instant,
    /// How long it ran, as far as known.
    pub ran: std::time::Duration,
    /// For a person: code or signal.
    pub how: String,
    /// Its guard killed it at its lease's end: not the role's fault.
    pub lease_over: bool,
}

/// What is known of a slot's process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Status {
    /// Its state.
    pub process: Process,
    /// First process, 0 when there is none.
    pub pid: i32,
    /// When it was started.
    pub started: Instant,
}

/// A supervisor's failure.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Its records or logs.
    #[error(transparent)]
    File(#[from] FileError),
    /// The program cannot be run.
    #[error("cannot run {program}")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A home for roles. Calls return at once; what they set going shows in `status` later.
pub trait Supervisor {
    /// Starts a unit of which nothing runs.
    ///
    /// # Errors
    /// It was not started.
    fn start(&mut self, unit: &Unit) -> Result<(), SupervisorError>;

    /// Asks the slot's first process to end.
    fn stop(&mut self, slot: &Slot, signal: Signal, now: Instant);

    /// Kills everything of the slot; called again until nothing is left.
    fn kill(&mut self, slot: &Slot, now: Instant);

    /// What is.
    fn status(&mut self, slot: &Slot) -> Status;

    /// Every slot of which anything is known.
    fn slots(&self) -> Vec<Slot>;

    /// Ends noticed since the last call, unasked ones only.
    fn exits(&mut self) -> Vec<Exit>;

    /// Housekeeping now and then: log rotation.
    fn tidy(&mut self);
}
