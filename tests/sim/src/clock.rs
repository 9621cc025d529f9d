//! Clocks that are wrong: each machine's CLOCK_BOOTTIME runs a little fast or slow, its wall clock may also jump.
//! True time, which no machine sees, is in microseconds since the run began.

/// True time, µs.
pub type Time = u64;

pub const MS: Time = 1000;
pub const SECOND: Time = 1_000_000;

/// The most a clock may be off, parts per million: two of them differ by less than `liveness::DRIFT_PERMILLE`.
pub const MOST_PPM: i64 = 4900;

/// One machine's two clocks.
#[derive(Clone, Debug)]
pub struct MachineClock {
    since: Time,
    boot_ns: u64,
    ppm: i64,
    /// What the wall clock shows beyond the boot clock, ms.
    wall_ms: i64,
}

impl MachineClock {
    /// A clock that shows `boot_ns` at `now`.
    pub fn new(now: Time, boot_ns: u64, ppm: i64) -> Self {
        Self { since: now, boot_ns, ppm, wall_ms: 1_700_000_000_000 }
    }

    /// CLOCK_BOOTTIME, ns.
    pub fn boot_ns(&self, now: Time) -> u64 {
        let passed = i128::from(now.saturating_sub(self.since)) * 1000 * i128::from(1_000_000 + self.ppm) / 1_000_000;
        self.boot_ns + u64::try_from(passed).unwrap_or(0)
    }

    /// The boot clock in ms: what a process's monotonic clock shows here.
    pub fn boot_ms(&self, now: Time) -> u64 {
        self.boot_ns(now) / 1_000_000
    }

    /// The wall clock, ns since the epoch.
    pub fn wall_ns(&self, now: Time) -> u64 {
        let ns = i128::from(self.boot_ns(now)) + i128::from(self.wall_ms) * 1_000_000;
        u64::try_from(ns).unwrap_or(0)
    }

    /// True time at which the boot clock will show `boot_ns`; now if it has.
    pub fn when(&self, now: Time, boot_ns: u64) -> Time {
        let ahead = i128::from(boot_ns.saturating_sub(self.boot_ns(now)));
        let us = ahead * 1_000_000 / (1000 * i128::from(1_000_000 + self.ppm)) + 1;
        if ahead == 0 { now } else { now + u64::try_from(us).unwrap_or(u64::MAX / 2) }
    }

    /// From now on it runs at another speed.
    pub fn drift(&mut self, now: Time, ppm: i64) {
        (self.boot_ns, self.since, self.ppm) = (self.boot_ns(now), now, ppm.clamp(-MOST_PPM, MOST_PPM));
    }

    /// The wall clock is set.
    pub fn jump(&mut self, by_ms: i64) {
        self.wall_ms += by_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_inverse_of_the_boot_clock_and_a_jump_moves_only_the_wall_clock() {
        let mut clock = MachineClock::new(5, 1_000_000_000, -4000);
        let at = clock.when(2 * SECOND, 9_000_000_000);
        assert!(clock.boot_ns(at) >= 9_000_000_000 && clock.boot_ns(at - 2) < 9_000_000_000);
        let before = (clock.boot_ns(SECOND), clock.wall_ns(SECOND));
        clock.jump(-3_600_000);
        assert_eq!(clock.boot_ns(SECOND), before.0);
        assert_eq!(clock.wall_ns(SECOND), before.1 - 3_600_000_000_000);
    }

    #[test]
    fn a_change_of_speed_moves_no_clock_by_itself() {
        let mut clock = MachineClock::new(0, 0, 100);
        let shown = clock.boot_ns(SECOND);
        clock.drift(SECOND, -100);
        assert_eq!(clock.boot_ns(SECOND), shown);
    }
}
