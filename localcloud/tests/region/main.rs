//! Real local regions with a tiny image that knows nothing of vp: instances, metadata, volumes, repair, and nothing left behind.
//! Needs the fetched components (moto, versitygw); conditions are waited for, nothing sleeps instead of one.

#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod bed;
mod keeper;
mod life;
mod metadata;
