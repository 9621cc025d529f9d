//! Carries raft-rs's slog lines into tracing, without their key-value lists: raft-rs puts what matters into the message.

use slog::{Drain, Level, OwnedKVList, Record};

struct Tracing;

impl Drain for Tracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        // Rendered only where somebody listens: raft-rs says something at debug level with every message.
        let detail = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(%detail, "raft"),
            Level::Warning => tracing::warn!(%detail, "raft"),
            _ => tracing::debug!(%detail, "raft"),
        }
        Ok(())
    }
}

/// The logger to give to raft-rs.
pub fn logger() -> slog::Logger {
    slog::Logger::root(Tracing, slog::o!())
}
