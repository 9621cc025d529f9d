//! What the two threads of the agent share: the control thread writes what is, the session thread sends it; leases lie between
//! them. Locks are held for copies only.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use vp_proto::v1;

use crate::lease::Leases;
use crate::slot::Slot;

/// What the next heartbeat says.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// One a slot.
    pub slots: Vec<v1::SlotObservation>,
    /// (slot, generation) that we would hold, and nothing given back.
    pub pairs: BTreeSet<(Slot, u64)>,
    /// Given back, persisted; said again with each heartbeat.
    pub released: Vec<v1::SlotGeneration>,
    /// Guards to renew: slot, generation and run folder.
    pub guards: Vec<(Slot, u64, PathBuf)>,
    /// The machine.
    pub measures: v1::NodeMeasures,
}

/// The shared state.
pub struct Shared {
    report: Mutex<Report>,
    leases: Mutex<Leases>,
    /// The newest desired set; the session thread sends, the control thread takes.
    pub desired: watch::Sender<Option<Arc<v1::Desired>>>,
    /// Wakes the control thread; carries no input.
    pub wake: Arc<Notify>,
    /// Wakes the session thread: the report changed.
    pub reported: Notify,
}

impl Shared {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self { report: Mutex::default(), leases: Mutex::default(), desired: watch::Sender::new(None), wake: Arc::new(Notify::new()), reported: Notify::new() }
    }

    /// The report, locked.
    pub fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases, locked.
    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}
