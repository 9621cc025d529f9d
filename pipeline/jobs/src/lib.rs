//! Jobs: ids, S3 keys, records, recipes and progress, as written in `docs/contracts.md` §§5–7.
//!
//! The vocabulary that ingest, publish and vpctl share. Left out: moving bytes (ingest), running ffmpeg (stream).

pub mod event;
pub mod ids;
pub mod keys;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod records;

pub use ids::{JobId, SegmentId};
pub use plan::Plan;
pub use progress::Progress;
pub use recipe::Recipe;
