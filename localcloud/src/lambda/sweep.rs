//! The sweep: lists the buckets and makes events for objects that no event ever told of.
//!
//! A webhook is one POST without a retry; what it lost is found here. An object whose event went to the dead letters is
//! tried again later and later, so that an outage longer than Lambda's three tries loses no job.

use std::{sync::Arc, time::Duration};

use vp_cloud::s3::ObjectStore;

use super::{
    delivery::{Delivery, now_unix_ms},
    event::Created,
    journal::{Entry, Object, Standing},
};

/// Younger objects are left to their own event.
const YOUNG_MS: u64 = 3_000;
/// First wait after dead letters, doubled with each failure up to an hour.
const REDRIVE_MS: u64 = 60_000;
const REDRIVE_AT_MOST_MS: u64 = 3_600_000;

/// Whether an object needs an event now.
fn is_due(entry: Option<Entry>, modified_unix_ms: u64, now_unix_ms: u64) -> bool {
    match entry {
        None => modified_unix_ms + YOUNG_MS <= now_unix_ms,
        // Accepted: its file is in the journal and is being delivered.
        Some(Entry { standing: Standing::Accepted | Standing::Done, .. }) => false,
        Some(Entry { standing: Standing::Failed, times_failed, at_unix_ms }) => {
            let wait_ms = REDRIVE_MS.saturating_mul(1 << times_failed.saturating_sub(1).min(10)).min(REDRIVE_AT_MOST_MS);
            at_unix_ms + wait_ms <= now_unix_ms
        }
    }
}

/// Sweeps for ever.
///
/// # Errors
/// Never by itself: a store that is away is listed again next time.
pub async fn sweep(delivery: Arc<Delivery>, store: ObjectStore) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(Duration::from_millis(delivery.config.sweep_every_ms));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        for function in &delivery.config.functions {
            let prefix = function.prefix.as_deref().unwrap_or_default();
            let listed = match store.list(&function.bucket, prefix).await {
                Ok(listed) => listed,
                // Before the first bucket is made and while S3 restarts; the next sweep sees.
                Err(error) => {
                    tracing::debug!(bucket = function.bucket, %error, "bucket cannot be listed");
                    continue;
                }
            };
            let now = now_unix_ms();
            for found in listed {
                if function.suffix.as_ref().is_some_and(|suffix| !found.key.ends_with(suffix)) || found.key.ends_with('/') {
                    continue;
                }
                let object = Object { bucket: function.bucket.clone(), key: found.key.clone(), etag: found.etag.clone() };
                let entry = delivery.journal.standing(&function.name, &object);
                if !is_due(entry, found.modified_unix_ms, now) {
                    continue;
                }
                tracing::info!(function = function.name, key = found.key, "sweep found an object without a delivered event");
                let created = Created { bucket: object.bucket, key: found.key, etag: found.etag, size: found.size, how: "Put".to_owned(), at_unix_ms: now };
                if let Err(error) = delivery.accept(&created) {
                    tracing::error!(%error, "event cannot be written down");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_an_event_is_due_once_it_is_not_young() {
        assert!(!is_due(None, 10_000, 10_000 + YOUNG_MS - 1));
        assert!(is_due(None, 10_000, 10_000 + YOUNG_MS));
    }

    #[test]
    fn dead_letters_are_tried_again_later_and_later() {
        let entry = |standing, times_failed| Some(Entry { standing, times_failed, at_unix_ms: 0 });
        assert!(!is_due(entry(Standing::Failed, 1), 0, REDRIVE_MS - 1));
        assert!(is_due(entry(Standing::Failed, 1), 0, REDRIVE_MS));
        assert!(!is_due(entry(Standing::Failed, 3), 0, 4 * REDRIVE_MS - 1));
        assert!(is_due(entry(Standing::Failed, 99), 0, REDRIVE_AT_MOST_MS));
        assert!(!is_due(entry(Standing::Accepted, 0), 0, u64::MAX / 2));
        assert!(!is_due(entry(Standing::Done, 0), 0, u64::MAX / 2));
    }
}
