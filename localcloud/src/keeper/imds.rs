//! The instance metadata service (IMDSv2) of one instance, on an address of its own: token first, then what the control API and the instance's
//! notices say. Leaves out what no program here asks for (network interfaces, hibernation, IMDSv1).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::KeeperError;
use super::config::Config;
use super::disk::Disk;
use super::instance_types;
use super::launcher::Listed;

/// Port of the metadata service on an instance's own address.
pub const PORT: u16 = 1338;
const MAX_TTL: u64 = 21_600;
/// Tokens are small, but a client that never stops asking must not fill the keeper.
const MAX_TOKENS: usize = 4096;
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What all metadata services of a region share: the signing key and the role's credentials.
#[derive(Clone)]
pub struct Region {
    config: Config,
    key: Arc<RsaKeyPair>,
}

impl Region {
    /// Reads the signing key that the control API's launcher made.
    ///
    /// # Errors
    /// `Config` when the key is missing or no RSA key.
    pub fn load(config: &Config, state: &Path) -> Result<Self, KeeperError> {
        let path = state.join("identity/private.pk8");
        let fail = |reason: String| KeeperError::Config { path: path.clone(), reason };
        let content = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let key = RsaKeyPair::from_pkcs8(&content).map_err(|error| fail(error.to_string()))?;
        Ok(Self { config: config.clone(), key: Arc::new(key) })
    }
}

/// What a person or a test may announce to one instance, in its `notices.json`; read at every request.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notices {
    /// `spot/instance-action`, e.g. `{"action": "terminate", "time": "…"}`.
    pub spot_action: Option<serde_json::Value>,
    /// `events/recommendations/rebalance`, e.g. `{"noticeTime": "…"}`.
    pub rebalance: Option<serde_json::Value>,
    /// `autoscaling/target-lifecycle-state` instead of the group's own.
    pub target_lifecycle_state: Option<String>,
}

struct Service {
    region: Region,
    disk: Disk,
    instance: watch::Receiver<Listed>,
    tokens: Mutex<BTreeMap<String, Instant>>,
}

/// A running metadata service; ends when dropped.
pub struct Imds {
    instance: watch::Sender<Listed>,
    task: JoinHandle<()>,
}

impl Drop for Imds {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Imds {
    /// Listens on `address`, with its port.
    ///
    /// # Errors
    /// `Imds` when the address cannot be bound.
    pub async fn serve(region: Region, disk: Disk, instance: Listed, address: &str) -> Result<Self, KeeperError> {
        let fail = |source| KeeperError::Imds { instance: instance.id.clone(), address: address.to_owned(), source };
        let parsed: SocketAddr = address.parse().map_err(|_| fail(std::io::ErrorKind::InvalidInput.into()))?;
        let listener = tokio::net::TcpListener::bind(parsed).await.map_err(fail)?;
        let (sender, receiver) = watch::channel(instance);
        let service = Arc::new(Service { region, disk, instance: receiver, tokens: Mutex::new(BTreeMap::new()) });
        let router = Router::new().route("/latest/api/token", put(make_token)).route("/latest/{*path}", get(answer)).with_state(service);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "metadata service ended");
            }
        });
        Ok(Self { instance: sender, task })
    }

    /// Tells it how the control API sees the instance now.
    pub fn update(&self, instance: Listed) {
        self.instance.send_if_modified(|known| {
            let changed = *known != instance;
            *known = instance;
            changed
        });
    }
}

async fn make_token(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    // As AWS: a request that passed a proxy gets no token.
    if headers.contains_key("x-forwarded-for") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let ttl = headers.get(TTL).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else { return StatusCode::BAD_REQUEST.into_response() };
    let token = STANDARD.encode([uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat());
    let now = Instant::now();
    let mut tokens = service.tokens.lock().await;
    tokens.retain(|_, until| *until > now);
    if tokens.len() >= MAX_TOKENS {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    tokens.insert(token.clone(), now + Duration::from_secs(ttl));
    ([(TTL, ttl.to_string())], token).into_response()
}

async fn answer(State(service): State<Arc<Service>>, UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response {
    let token = headers.get(TOKEN).and_then(|value| value.to_str().ok());
    let known = match token {
        Some(token) => service.tokens.lock().await.get(token).is_some_and(|until| *until > Instant::now()),
        None => false,
    };
    if !known {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let instance = service.instance.borrow().clone();
    match content(&service, &instance, path.trim_end_matches('/')) {
        Some(body) => ([(header::CONTENT_TYPE, "text/plain")], body).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The body at a path below `/latest/`; `None` is AWS's 404.
fn content(service: &Service, instance: &Listed, path: &str) -> Option<Vec<u8>> {
    if path == "user-data" {
        return STANDARD.decode(&instance.user_data).ok().filter(|data| !data.is_empty());
    }
    if let Some(path) = path.strip_prefix("dynamic/instance-identity") {
        let document = document(service, instance);
        return match path.trim_start_matches('/') {
            "" => Some(b"document\nsignature".to_vec()),
            "document" => Some(document.into_bytes()),
            "signature" => sign(&service.region.key, document.as_bytes()).map(String::into_bytes),
            _ => None,
        };
    }
    let path = path.strip_prefix("meta-data")?.trim_start_matches('/');
    if let Some(key) = path.strip_prefix("tags/instance") {
        return match key.trim_start_matches('/') {
            "" => Some(instance.tags.keys().cloned().collect::<Vec<_>>().join("\n").into_bytes()),
            key => instance.tags.get(key).map(|value| value.clone().into_bytes()),
        };
    }
    let notices = || notices(&service.disk);
    let config = &service.region.config;
    let text = match path {
        "" => LISTING.to_owned(),
        "instance-id" => instance.id.clone(),
        "instance-type" => instance.instance_type.clone(),
        "ami-id" => instance.image.clone(),
        "local-ipv4" => instance.address.clone(),
        "local-hostname" | "hostname" => format!("ip-{}.ec2.internal", instance.address.replace('.', "-")),
        "instance-life-cycle" => "on-demand".to_owned(),
        "placement" => "availability-zone\nregion".to_owned(),
        "placement/availability-zone" => instance.zone.clone(),
        "placement/region" => config.region.clone(),
        "services/domain" => "amazonaws.com".to_owned(),
        "spot/instance-action" => notices().spot_action?.to_string(),
        "events/recommendations/rebalance" => notices().rebalance?.to_string(),
        "autoscaling/target-lifecycle-state" => notices().target_lifecycle_state.unwrap_or_else(|| instance.lifecycle.clone()),
        "iam/info" => {
            serde_json::json!({"Code": "Success", "InstanceProfileArn": format!("arn:aws:iam::{}:instance-profile/{}", instance.account, config.role)})
                .to_string()
        }
        "iam/security-credentials" => config.role.clone(),
        _ => {
            let role = path.strip_prefix("iam/security-credentials/")?;
            (role == config.role).then(|| credentials(config))?
        }
    };
    Some(text.into_bytes())
}

const LISTING: &str =
    "ami-id\nautoscaling/\nhostname\niam/\ninstance-id\ninstance-life-cycle\ninstance-type\nlocal-hostname\nlocal-ipv4\nplacement/\nservices/\ntags/";

/// An unreadable notice is as good as none, but said.
fn notices(disk: &Disk) -> Notices {
    let Ok(text) = std::fs::read(disk.notices()) else { return Notices::default() };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(file = %disk.notices().display(), %error, "notices are not understood");
        Notices::default()
    })
}

/// Static, with an end far away: SDKs want one.
fn credentials(config: &Config) -> String {
    serde_json::json!({
        "Code": "Success",
        "LastUpdated": "2020-01-01T00:00:00Z",
        "Type": "AWS-HMAC",
        "AccessKeyId": config.access_key_id,
        "SecretAccessKey": config.secret_access_key,
        // Empty: the S3 gateway refuses a session token for keys it knows as a permanent account's; the SDKs treat empty as none.
        "Token": "",
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

/// The same bytes at every request, or the signature would not fit.
fn document(service: &Service, instance: &Listed) -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let document = BTreeMap::from([
        ("accountId", serde_json::json!(instance.account)),
        ("architecture", serde_json::json!(architecture)),
        ("availabilityZone", serde_json::json!(instance.zone)),
        ("billingProducts", serde_json::Value::Null),
        ("devpayProductCodes", serde_json::Value::Null),
        ("imageId", serde_json::json!(instance.image)),
        ("instanceId", serde_json::json!(instance.id)),
        ("instanceType", serde_json::json!(instance.instance_type)),
        ("kernelId", serde_json::Value::Null),
        ("marketplaceProductCodes", serde_json::Value::Null),
        ("pendingTime", serde_json::json!(instance.launched)),
        ("privateIp", serde_json::json!(instance.address)),
        ("ramdiskId", serde_json::Value::Null),
        ("region", serde_json::json!(service.region.config.region)),
        ("version", serde_json::json!("2017-09-30")),
    ]);
    if instance_types::size(&instance.instance_type).is_none() {
        tracing::debug!(instance_type = instance.instance_type, "instance type is not in the table");
    }
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// RSA-SHA256 (PKCS#1 v1.5), base64, as `instance-identity/signature` is.
fn sign(key: &RsaKeyPair, document: &[u8]) -> Option<String> {
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), document, &mut signature).ok()?;
    Some(STANDARD.encode(signature))
}
