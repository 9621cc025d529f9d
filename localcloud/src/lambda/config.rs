//! The file that tells the Lambda service which functions exist and where S3 and SQS are.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Whole configuration of the service (JSON, unknown keys are refused).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to listen on, e.g. `127.20.0.2`.
    pub address: String,
    /// Port to listen on (9001).
    pub port: u16,
    /// Folder of the service's own files (`STATE/lambda`).
    pub state_dir: PathBuf,
    /// Where objects are.
    pub s3: S3,
    /// Endpoint URL of SQS, for dead-letter queues.
    pub sqs_endpoint_url: Option<String>,
    /// The functions, each with the bucket whose events invoke it.
    pub functions: Vec<Function>,
    /// How often the buckets are listed for objects whose event was lost, ms; 0 = never.
    #[serde(default = "sweep_every_ms")]
    pub sweep_every_ms: u64,
    /// Waits before the second and the third try of a failed invocation, ms (AWS: 60000 and 120000).
    #[serde(default = "retry_after_ms")]
    pub retry_after_ms: Vec<u64>,
}

/// How to reach S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Endpoint URL.
    pub endpoint_url: String,
    /// AWS region.
    pub region: String,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
}

/// One function and its trigger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Name; part of the Runtime API's address, of the log's name and of the function's ARN.
    pub name: String,
    /// The program, a custom runtime (it asks the Runtime API for events).
    pub program: PathBuf,
    /// Environment of the program, besides what Lambda itself sets.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Time an invocation may take, ms (Lambda: at most 900000).
    pub timeout_ms: u64,
    /// How many processes of the function run at once, each with one invocation at a time.
    #[serde(default = "one")]
    pub concurrency: usize,
    /// The bucket whose ObjectCreated events invoke the function.
    pub bucket: String,
    /// Only keys that begin so.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Only keys that end so.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Name or URL of the SQS queue for events whose last try failed.
    #[serde(default)]
    pub dead_letter_queue: Option<String>,
}

fn sweep_every_ms() -> u64 {
    10_000
}

fn retry_after_ms() -> Vec<u64> {
    vec![1_000, 2_000]
}

fn one() -> usize {
    1
}
