//! The instance metadata service, version 2 only: a token first, then what this instance is.

use std::net::IpAddr;
use std::time::Duration;

/// Metadata that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    /// No client could be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// The service did not answer as it should; worth another try.
    #[error("the instance metadata service does not serve {path}")]
    Get {
        /// What was asked for.
        path: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It answered nonsense.
    #[error("the instance metadata service says {value:?} for {path}, which is no address")]
    Value {
        /// What was asked for.
        path: &'static str,
        /// The answer.
        value: String,
    },
}

/// What the metadata service says of this instance.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// `i-…`
    pub instance_id: String,
    /// The primary private address.
    pub address: IpAddr,
    /// Availability zone.
    pub zone: String,
    /// E.g. `t3.small`.
    pub instance_type: String,
    /// As given at launch.
    pub user_data: String,
    /// JSON.
    pub identity_document: String,
    /// Base64 of its RSA-SHA256 signature.
    pub identity_signature: String,
}

const TIMEOUT: Duration = Duration::from_secs(2);
const TOKEN: &str = "/latest/api/token";
const ADDRESS: &str = "/latest/meta-data/local-ipv4";

/// Reads everything once; the caller retries.
///
/// # Errors
/// The first thing that could not be had.
pub async fn read(endpoint: &str) -> Result<Metadata, ImdsError> {
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(ImdsError::Client)?;
    let token = client
        .put(format!("{endpoint}{TOKEN}"))
        .header("X-aws-ec2-metadata-token-ttl-seconds", "300")
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|source| ImdsError::Get { path: TOKEN, source })?
        .text()
        .await
        .map_err(|source| ImdsError::Get { path: TOKEN, source })?;
    let get = |path: &'static str| {
        let request = client.get(format!("{endpoint}{path}")).header("X-aws-ec2-metadata-token", token.clone());
        async move {
            let response = request.send().await.and_then(reqwest::Response::error_for_status);
            response.map_err(|source| ImdsError::Get { path, source })?.text().await.map_err(|source| ImdsError::Get { path, source })
        }
    };
    let address = get(ADDRESS).await?;
    Ok(Metadata {
        instance_id: get("/latest/meta-data/instance-id").await?,
        address: address.trim().parse().map_err(|_| ImdsError::Value { path: ADDRESS, value: address.clone() })?,
        zone: get("/latest/meta-data/placement/availability-zone").await?,
        instance_type: get("/latest/meta-data/instance-type").await?,
        user_data: get("/latest/user-data").await?,
        identity_document: get("/latest/dynamic/instance-identity/document").await?,
        identity_signature: get("/latest/dynamic/instance-identity/signature").await?,
    })
}

/// [`read`], tried again for `patience`: at boot the service may come up after us.
///
/// # Errors
/// The last failure.
pub async fn read_patiently(endpoint: &str, patience: Duration) -> Result<Metadata, ImdsError> {
    let started = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match read(endpoint).await {
            Ok(metadata) => return Ok(metadata),
            Err(error) if started.elapsed() > patience => return Err(error),
            Err(error) => tracing::debug!(%error, "the metadata service is not there yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
