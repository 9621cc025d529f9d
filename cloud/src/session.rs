//! The AWS configuration all service clients share.
//!
//! Region and endpoint URLs come from settings, or from the standard environment. Credentials come from the
//! environment when it has them, else from the instance's metadata service. An endpoint on this machine is plain
//! HTTP; anything else speaks TLS through rustls with ring. Left out: profiles, SSO, config files.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_smithy_http_client::{
    Builder as HttpBuilder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};

/// Where the services are and in which region; all of it known before the first call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// AWS region, e.g. `us-east-1`; `None`: `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Endpoint URL of all services; `None`: `AWS_ENDPOINT_URL`, else AWS's own.
    pub endpoint_url: Option<String>,
    /// Endpoint URL of S3; `None`: `AWS_ENDPOINT_URL_S3`, else `endpoint_url`.
    pub s3_endpoint_url: Option<String>,
    /// Static credentials (access key, secret key); `None`: environment, else instance metadata.
    pub credentials: Option<(String, String)>,
}

/// A ready configuration from which each service's client is made.
#[derive(Clone, Debug)]
pub struct Session {
    shared: SdkConfig,
    s3_endpoint_url: Option<String>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Session {
    /// Everything from the environment.
    pub async fn from_environment() -> Self {
        Self::load(Endpoints::default()).await
    }

    /// Configuration for the given endpoints; what is `None` there comes from the environment.
    ///
    /// Makes no network call: credentials are fetched by the first request that needs them.
    pub async fn load(endpoints: Endpoints) -> Self {
        let region = endpoints.region.or_else(|| variable("AWS_REGION")).unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint_url = endpoints.endpoint_url.or_else(|| variable("AWS_ENDPOINT_URL"));
        let s3_endpoint_url = endpoints.s3_endpoint_url.or_else(|| variable("AWS_ENDPOINT_URL_S3")).or_else(|| endpoint_url.clone());
        let http = HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(2))
            // Time to the first byte of the answer, not of the whole body: a big object may stream for minutes.
            .read_timeout(Duration::from_secs(20))
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(region))
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(4).with_initial_backoff(Duration::from_millis(100)));
        if let Some(url) = &endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some((access_key, secret_key)) = endpoints.credentials {
            loader = loader.credentials_provider(Credentials::new(access_key, secret_key, None, None, "settings"));
        }
        Self { shared: loader.load().await, s3_endpoint_url }
    }

    /// The configuration for any service but S3.
    pub fn shared(&self) -> &SdkConfig {
        &self.shared
    }

    /// Endpoint URL of S3; `None` is AWS's own.
    pub fn s3_endpoint_url(&self) -> Option<&str> {
        self.s3_endpoint_url.as_deref()
    }
}
