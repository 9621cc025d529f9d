//! Objects: the few S3 operations the project uses, with errors split by what the caller does next.
//!
//! Conditional writes are the pipeline's fence: `put_if_absent` (If-None-Match) and `put_if_match` (If-Match) either
//! happen whole or answer `PreconditionFailed`. Left out: buckets' policies, versions, ACLs, presigning.

use std::{collections::BTreeMap, path::Path, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation},
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStream, Length},
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use crate::{Session, causes::causes};

/// Part size of a multipart upload, bytes (S3 allows 10,000 parts of at least 5 MiB).
const PART_BYTES: u64 = 8 << 20;
/// How many parts travel at once.
const PARTS_AT_ONCE: usize = 4;

/// Why an operation on an object failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object, upload or bucket.
    #[error("s3://{place} does not exist")]
    NotFound {
        /// Bucket and key.
        place: String,
    },
    /// The condition of a conditional write or read does not hold: another one wrote first.
    #[error("s3://{place} is not as the condition says")]
    PreconditionFailed {
        /// Bucket and key.
        place: String,
    },
    /// The store refused the credentials or the right.
    #[error("s3://{place}: access refused: {reason}")]
    Denied {
        /// Bucket and key.
        place: String,
        /// The store's answer.
        reason: String,
    },
    /// No answer, or an answer that says "later": the outcome of a write is unknown, trying again is safe for reads
    /// and for conditional writes that are read back.
    #[error("s3://{place}: the store does not answer: {reason}")]
    Unreachable {
        /// Bucket and key.
        place: String,
        /// What the network or the store said.
        reason: String,
    },
    /// The store refused the request for another reason.
    #[error("s3://{place}: {reason}")]
    Refused {
        /// Bucket and key.
        place: String,
        /// The store's answer.
        reason: String,
    },
    /// The local file of a download or upload.
    #[error("{path}: {source}")]
    File {
        /// The local path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl StoreError {
    /// True when the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// True when a condition did not hold.
    pub fn is_precondition_failed(&self) -> bool {
        matches!(self, Self::PreconditionFailed { .. })
    }
}

/// What is known of an object without its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectHead {
    /// Entity tag without quotes.
    pub etag: String,
    /// Size, bytes.
    pub size: u64,
    /// Content type, if one was given.
    pub content_type: Option<String>,
    /// The user's metadata, keys in lower case without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Key.
    pub key: String,
    /// Entity tag without quotes.
    pub etag: String,
    /// Size, bytes.
    pub size: u64,
    /// Last change, Unix milliseconds.
    pub modified_unix_ms: u64,
}

/// A client of one S3 endpoint.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    client: Client,
}

fn unquoted(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

fn quoted(etag: &str) -> String {
    format!("\"{}\"", etag.trim_matches('"'))
}

fn classify<E, R>(bucket: &str, key: &str, error: SdkError<E, R>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
    SdkError<E, R>: RawStatus,
{
    let place = format!("{bucket}/{key}");
    let status = error.raw_status();
    let code = error.as_service_error().and_then(|inner| inner.code().map(str::to_owned)).unwrap_or_default();
    // The service's own words, or the causes one after another; not the SDK's structures.
    let reason = match error.as_service_error().and_then(|inner| inner.message()) {
        Some(message) if code.is_empty() => message.to_owned(),
        Some(message) => format!("{code}: {message}"),
        None => causes(&error),
    };
    match (status, code.as_str()) {
        (_, "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NotFound") | (Some(404), _) => StoreError::NotFound { place },
        // 409 ConditionalRequestConflict: a concurrent conditional write is under way; one of them wins.
        (Some(412), _) | (_, "PreconditionFailed" | "ConditionalRequestConflict") => StoreError::PreconditionFailed { place },
        (Some(401 | 403), _) => StoreError::Denied { place, reason },
        (None | Some(429 | 500..), _) => StoreError::Unreachable { place, reason },
        _ => StoreError::Refused { place, reason },
    }
}

/// The HTTP status of a failed call, when there was an answer.
trait RawStatus {
    fn raw_status(&self) -> Option<u16>;
}

impl<E> RawStatus for SdkError<E, aws_sdk_s3::config::http::HttpResponse> {
    fn raw_status(&self) -> Option<u16> {
        self.raw_response().map(|response| response.status().as_u16())
    }
}

impl ObjectStore {
    /// A client of the session's S3 endpoint; addresses buckets by path, as every S3 server understands.
    pub fn new(session: &Session) -> Self {
        let mut config = aws_sdk_s3::config::Builder::from(session.shared())
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(url) = session.s3_endpoint_url() {
            config = config.endpoint_url(url);
        }
        Self { client: Client::from_conf(config.build()) }
    }

    /// Makes a bucket; one that is ours already is fine. Whether it was made by this call (us-east-1 does not tell, and says yes).
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses or does not answer.
    pub async fn create_bucket(&self, bucket: &str) -> Result<bool, StoreError> {
        match self.client.create_bucket().bucket(bucket).send().await {
            Ok(_) => Ok(true),
            Err(error) => match error.as_service_error().and_then(|inner| inner.code()) {
                Some("BucketAlreadyOwnedByYou" | "BucketAlreadyExists") => Ok(false),
                _ => Err(classify(bucket, "", error)),
            },
        }
    }

    /// Size, entity tag and metadata of an object.
    ///
    /// # Errors
    /// `NotFound` when there is none; else as the store says.
    pub async fn head(&self, bucket: &str, key: &str) -> Result<ObjectHead, StoreError> {
        let answer = self.client.head_object().bucket(bucket).key(key).send().await;
        let answer = answer.map_err(|error| classify(bucket, key, error))?;
        Ok(ObjectHead {
            etag: unquoted(answer.e_tag()),
            size: answer.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            content_type: answer.content_type().map(str::to_owned),
            metadata: answer.metadata().map(|map| map.iter().map(|(k, v)| (k.to_lowercase(), v.clone())).collect()).unwrap_or_default(),
        })
    }

    /// A whole small object and its entity tag (no quotes).
    ///
    /// # Errors
    /// `NotFound` when there is none; else as the store says.
    pub async fn get(&self, bucket: &str, key: &str) -> Result<(Bytes, String), StoreError> {
        let answer = self.client.get_object().bucket(bucket).key(key).send().await;
        let answer = answer.map_err(|error| classify(bucket, key, error))?;
        let etag = unquoted(answer.e_tag());
        let body = answer.body.collect().await.map_err(|error| StoreError::Unreachable { place: format!("{bucket}/{key}"), reason: error.to_string() })?;
        Ok((body.into_bytes(), etag))
    }

    /// Streams an object into a file (made anew); with `etag`, only that version. Returns its size, bytes.
    ///
    /// # Errors
    /// `PreconditionFailed` when the object has another entity tag now, `Unreachable` when the stream breaks off,
    /// `File` for the local file.
    pub async fn get_to_file(&self, bucket: &str, key: &str, etag: Option<&str>, path: &Path) -> Result<u64, StoreError> {
        let local = |source| StoreError::File { path: path.display().to_string(), source };
        let mut request = self.client.get_object().bucket(bucket).key(key);
        if let Some(etag) = etag {
            request = request.if_match(quoted(etag));
        }
        let answer = request.send().await.map_err(|error| classify(bucket, key, error))?;
        let expected = answer.content_length().and_then(|size| u64::try_from(size).ok());
        let mut file = tokio::io::BufWriter::with_capacity(1 << 18, tokio::fs::File::create(path).await.map_err(local)?);
        let mut body = answer.body;
        let mut size = 0_u64;
        let broken = |reason: String| StoreError::Unreachable { place: format!("{bucket}/{key}"), reason };
        while let Some(chunk) = body.try_next().await.map_err(|error| broken(error.to_string()))? {
            size += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(local)?;
        }
        file.flush().await.map_err(local)?;
        match expected {
            Some(expected) if expected != size => Err(broken(format!("{size} of {expected} bytes arrived"))),
            _ => Ok(size),
        }
    }

    /// Writes an object whatever was there. Returns its entity tag (no quotes).
    ///
    /// # Errors
    /// As the store says; after `Unreachable` the write may have happened.
    pub async fn put(&self, bucket: &str, key: &str, body: Bytes, content_type: &str) -> Result<String, StoreError> {
        self.put_with(bucket, key, body, content_type, None, false).await
    }

    /// Writes an object that must not exist yet. Returns its entity tag (no quotes).
    ///
    /// # Errors
    /// `PreconditionFailed` when it exists (perhaps by an earlier try of this very call: read it back).
    pub async fn put_if_absent(&self, bucket: &str, key: &str, body: Bytes, content_type: &str) -> Result<String, StoreError> {
        self.put_with(bucket, key, body, content_type, None, true).await
    }

    /// Replaces the object whose entity tag is `etag`. Returns the new entity tag (no quotes).
    ///
    /// # Errors
    /// `PreconditionFailed` when it has another one now; `NotFound` when it is gone.
    pub async fn put_if_match(&self, bucket: &str, key: &str, body: Bytes, content_type: &str, etag: &str) -> Result<String, StoreError> {
        self.put_with(bucket, key, body, content_type, Some(etag), false).await
    }

    async fn put_with(&self, bucket: &str, key: &str, body: Bytes, content_type: &str, etag: Option<&str>, absent: bool) -> Result<String, StoreError> {
        let answer = self
            .client
            .put_object()
            .bucket(bucket)
            .key(key)
            .content_type(content_type)
            .set_if_match(etag.map(quoted))
            .set_if_none_match(absent.then(|| "*".to_owned()))
            .body(ByteStream::from(body))
            .send()
            .await
            .map_err(|error| classify(bucket, key, error))?;
        Ok(unquoted(answer.e_tag()))
    }

    /// Uploads part of a file (`offset`, `length` in bytes) as one object, streamed, unless it exists already.
    ///
    /// # Errors
    /// `PreconditionFailed` when the object exists; `File` when the local file cannot be read.
    pub async fn put_file_if_absent(&self, bucket: &str, key: &str, path: &Path, content_type: &str) -> Result<String, StoreError> {
        let body = ByteStream::read_from()
            .path(path)
            .build()
            .await
            .map_err(|error| StoreError::File { path: path.display().to_string(), source: std::io::Error::other(error) })?;
        let answer = self.client.put_object().bucket(bucket).key(key).content_type(content_type).if_none_match("*").body(body).send().await;
        Ok(unquoted(answer.map_err(|error| classify(bucket, key, error))?.e_tag()))
    }

    /// All objects whose keys begin with `prefix`, page by page, in key order.
    ///
    /// # Errors
    /// `NotFound` when the bucket does not exist.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        let mut pages = self.client.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify(bucket, prefix, error))?;
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                found.push(Listed {
                    key: key.to_owned(),
                    etag: unquoted(object.e_tag()),
                    size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
                    modified_unix_ms: object.last_modified().and_then(|at| at.to_millis().ok()).and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default(),
                });
            }
        }
        Ok(found)
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// As the store says.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(bucket).key(key).send().await.map_err(|error| classify(bucket, key, error)) {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Copies an object within the store, metadata included. Returns the entity tag of the copy (no quotes).
    ///
    /// # Errors
    /// `NotFound` when the source is not there.
    pub async fn copy(&self, bucket: &str, key: &str, to_bucket: &str, to_key: &str) -> Result<String, StoreError> {
        let source = format!("{bucket}/{}", encoded(key));
        let answer = self.client.copy_object().bucket(to_bucket).key(to_key).copy_source(source).send().await;
        let answer = answer.map_err(|error| classify(bucket, key, error))?;
        Ok(unquoted(answer.copy_object_result().and_then(|result| result.e_tag())))
    }

    /// Uploads a file: one request when it is small, else several parts at once. `progress` is told the bytes sent
    /// so far after each part; `metadata` is the user's. Returns the entity tag (no quotes).
    ///
    /// # Errors
    /// As the store says; an upload that fails is aborted, so that nothing half-done is kept.
    pub async fn upload_file(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        content_type: &str,
        metadata: &BTreeMap<String, String>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<String, StoreError> {
        let local = |source| StoreError::File { path: path.display().to_string(), source };
        let size = tokio::fs::metadata(path).await.map_err(local)?.len();
        let metadata: std::collections::HashMap<String, String> = metadata.clone().into_iter().collect();
        if size <= PART_BYTES {
            let body = Bytes::from(tokio::fs::read(path).await.map_err(local)?);
            let answer = self.client.put_object().bucket(bucket).key(key).content_type(content_type).set_metadata(Some(metadata)).body(body.into());
            let answer = answer.send().await.map_err(|error| classify(bucket, key, error))?;
            progress(size);
            return Ok(unquoted(answer.e_tag()));
        }
        let begun = self.client.create_multipart_upload().bucket(bucket).key(key).content_type(content_type).set_metadata(Some(metadata));
        let begun = begun.send().await.map_err(|error| classify(bucket, key, error))?;
        let upload_id = begun.upload_id().unwrap_or_default().to_owned();
        let uploaded = self.upload_parts(bucket, key, path, size, &upload_id, progress).await;
        match uploaded {
            Ok(etag) => Ok(etag),
            Err(error) => {
                // The first error is the one to tell; an abort that fails too leaves parts that the store expires.
                let aborted = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(&upload_id).send().await;
                if aborted.is_err() {
                    tracing::warn!(bucket, key, "multipart upload could not be aborted");
                }
                Err(error)
            }
        }
    }

    async fn upload_parts(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        size: u64,
        upload_id: &str,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<String, StoreError> {
        use futures::{StreamExt, TryStreamExt};
        let part_bytes = PART_BYTES.max(size.div_ceil(10_000));
        let mut sent = 0;
        let mut parts = futures::stream::iter(0..size.div_ceil(part_bytes))
            .map(|index| self.upload_part(bucket, key, path, upload_id, index, part_bytes.min(size - index * part_bytes), part_bytes))
            .buffer_unordered(PARTS_AT_ONCE);
        let mut completed = Vec::new();
        while let Some((part, length)) = parts.try_next().await? {
            sent += length;
            progress(sent);
            completed.push(part);
        }
        completed.sort_by_key(|part| part.part_number());
        let completed = CompletedMultipartUpload::builder().set_parts(Some(completed)).build();
        let answer = self.client.complete_multipart_upload().bucket(bucket).key(key).upload_id(upload_id).multipart_upload(completed).send().await;
        Ok(unquoted(answer.map_err(|error| classify(bucket, key, error))?.e_tag()))
    }

    #[expect(clippy::too_many_arguments, reason = "one part's coordinates; a struct would only rename them")]
    async fn upload_part(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        upload_id: &str,
        index: u64,
        length: u64,
        part_bytes: u64,
    ) -> Result<(CompletedPart, u64), StoreError> {
        let body = ByteStream::read_from().path(path).offset(index * part_bytes).length(Length::Exact(length)).build().await;
        let body = body.map_err(|error| StoreError::File { path: path.display().to_string(), source: std::io::Error::other(error) })?;
        let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
        let answer = self.client.upload_part().bucket(bucket).key(key).upload_id(upload_id).part_number(number).body(body).send().await;
        let answer = answer.map_err(|error| classify(bucket, key, error))?;
        Ok((CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag().map(str::to_owned)).build(), length))
    }
}

/// Percent-encodes a key for a copy source: everything but unreserved characters and `/`.
fn encoded(key: &str) -> String {
    use std::fmt::Write as _;
    key.bytes().fold(String::with_capacity(key.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// A wait between tries that doubles from 100 ms up to 2 s.
pub fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(100_u64.saturating_mul(1 << attempt.min(5)).min(2_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_source_keeps_slashes_and_encodes_the_rest() {
        assert_eq!(encoded("a b/ä..+x"), "a%20b/%C3%A4..%2Bx");
    }

    #[test]
    fn entity_tags_are_the_same_with_or_without_quotes() {
        assert_eq!(unquoted(Some("\"ab\"")), "ab");
        assert_eq!(quoted("ab"), quoted("\"ab\""));
    }
}
