//! Ingest: an uploaded video becomes segments on Kafka and a plan on S3.
//!
//! ```text
//! S3 event -> intake (job, records) -> probe (what is it?) -> cut (NUT segments) -> produce (Kafka) -> plan.json -> end
//! ```
//!
//! Nothing is re-encoded. The same event twice cuts the same bytes and changes nothing. A file that is no usable video
//! ends as a failed job with a sentence; an infrastructure error fails the invocation, which Lambda tries again.

pub mod cut;
pub mod error;
pub mod intake;
pub mod media;
pub mod probe;
pub mod produce;
pub mod settings;
