//! The two ways ingest fails: the file cannot be used (the job ends), or something around it is away (tried again).

use vp_cloud::s3::StoreError;

/// Why an upload was not ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The upload is not a video that can be processed; the sentence is for the person who uploaded it.
    #[error("{0}")]
    BadInput(String),
    /// S3 refused or did not answer.
    #[error("object store")]
    Store(#[from] StoreError),
    /// Kafka took no record in time, or refuses.
    #[error("kafka: {0}")]
    Kafka(String),
    /// The recipe folder is broken.
    #[error("recipe")]
    Recipe(#[from] vp_jobs::recipe::RecipeError),
    /// A local file.
    #[error("{what}")]
    File {
        /// What was being done.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// ffmpeg or ffprobe is missing, was killed, or broke its word.
    #[error("{0}")]
    Tool(String),
    /// A record on S3 is not what it should be.
    #[error("s3 record {key}")]
    Record {
        /// The key.
        key: String,
        /// The cause.
        source: serde_json::Error,
    },
}

/// For `map_err` on local file operations.
pub fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> IngestError {
    move |source| IngestError::File { what, source }
}
