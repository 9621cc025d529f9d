//! A coordinator that was paused or starved suspects itself first: while it did not run it heard nobody, and that says nothing about anybody.

/// Longest gap between two looks that is still normal, ms: two heartbeats may be missed by the one who did not look.
pub fn pause_limit_ms(lease_ms: u64) -> u64 {
    (lease_ms / 4).max(500)
}

/// When this coordinator last looked, and since when what it heard may be trusted. On the leader's monotonic clock; one a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelfWatch {
    looked_ms: Option<u64>,
    trusted_since_ms: u64,
}

impl SelfWatch {
    /// Looks, and says since when silence may be counted: after a long gap, from now on. Called by a pulse that waits for nothing but its turn where heartbeats
    /// are heard, so that a slow disk or log is no gap, and a process that stands still, or hears nobody for want of turns, is one.
    pub fn look(&mut self, now_ms: u64, lease_ms: u64) -> u64 {
        self.trusted_since_ms = self.trusted_since_ms(now_ms, lease_ms);
        self.looked_ms = Some(now_ms);
        self.trusted_since_ms
    }

    /// The same for whoever judges: closes no gap.
    pub fn trusted_since_ms(&self, now_ms: u64, lease_ms: u64) -> u64 {
        let gap = self.looked_ms.map_or(0, |looked| now_ms.saturating_sub(looked));
        if gap > pause_limit_ms(lease_ms) { now_ms } else { self.trusted_since_ms }
    }
}
