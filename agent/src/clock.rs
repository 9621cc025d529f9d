//! The one clock of leases: CLOCK_BOOTTIME, which goes on while the machine sleeps and cannot be set.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::mutant;

/// Which clock leases run on.
pub fn lease_clock() -> ClockId {
    if mutant!("wall-clock") { ClockId::CLOCK_REALTIME } else { ClockId::CLOCK_BOOTTIME }
}

/// An instant on CLOCK_BOOTTIME, nanoseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Now. The clock exists on every Linux this runs on; without it nothing could be fenced, so it counts as the end of time.
    pub fn now() -> Self {
        clock_gettime(lease_clock())
            .map_or(Self(u64::MAX), |time| Self((time.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64)))
    }

    /// This instant plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
