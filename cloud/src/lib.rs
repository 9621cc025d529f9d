//! AWS behind one crate: the only place that links the AWS SDKs, one cargo feature per service.
//!
//! `session` makes the configuration that every service client shares (region, endpoints, credentials, timeouts,
//! retries, an HTTP client on rustls with ring). Left out: anything that decides; callers do that.

#[cfg(feature = "autoscaling")]
pub mod autoscaling;
#[cfg(any(feature = "autoscaling", feature = "ec2", feature = "s3", feature = "sqs"))]
mod causes;
#[cfg(feature = "ec2")]
pub mod ec2;
#[cfg(any(feature = "autoscaling", feature = "ec2"))]
pub mod error;
#[cfg(feature = "ec2")]
pub mod provision;
#[cfg(feature = "s3")]
pub mod s3;
pub mod session;
#[cfg(feature = "sqs")]
pub mod sqs;

pub use session::{Endpoints, Session};
