//! One machine that behaves like a region: the control API (moto behind our launcher), S3 (versitygw), Lambda, and a keeper that
//! boots instances and takes them away. Knows the cluster's programs only as files that an image contains.

pub mod keeper;
pub mod lambda;
pub mod process;
pub mod region;
