//! The smallest region in which real coordinators and agents run: instance metadata on each instance's address, the few EC2, Auto Scaling and S3 calls that
//! they make, answered from memory over HTTP. It stands in for AWS so that ten thousand instances cost nothing and every answer is the test's to give;
//! whole-system tests use `localcloud` instead. Left out: signatures (nobody here forges any), everything nobody asks for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ring::rand::SystemRandom;
use ring::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use tokio::task::JoinSet;

/// Port of the control API and of S3.
const API_PORT: u16 = 5000;
const METADATA_PORT: u16 = 1338;
/// Calls that end an instance.
const TERMINATING: [&str; 2] = ["TerminateInstanceInAutoScalingGroup", "TerminateInstances"];
/// Largest object anybody puts.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// A key that signs this region's identity documents; nothing else trusts it.
const KEY: &str = include_str!("../../../coordinator/tests/data/identity-test-key.pk8.base64");

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub address: Ipv4Addr,
    pub zone: String,
    /// Auto Scaling Group.
    pub group: String,
    /// EC2's word: `running`, `shutting-down`, `terminated`.
    pub state: &'static str,
}

#[derive(Default)]
struct World {
    instances: BTreeMap<String, Instance>,
    objects: BTreeMap<String, Bytes>,
    /// Calls that ask for an instance to be terminated, answered or not.
    terminations: u64,
    /// Every call of the control API is answered with an error.
    failing: bool,
}

/// The region; its services end when it is dropped.
pub struct Region {
    network: u8,
    world: Arc<Mutex<World>>,
    key: RsaKeyPair,
    services: JoinSet<()>,
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Region {
    /// Serves on 127.`network`.0.2.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn start(network: u8) -> anyhow::Result<Self> {
        let compact: String = KEY.split_whitespace().collect();
        let key = RsaKeyPair::from_pkcs8(&STANDARD.decode(compact)?).map_err(|error| anyhow::anyhow!("the region's key: {error}"))?;
        let world: Arc<Mutex<World>> = Arc::default();
        let mut services = JoinSet::new();
        let router = Router::new().fallback(answer).with_state(world.clone());
        serve(&mut services, SocketAddr::from(([127, network, 0, 2], API_PORT)), router).await?;
        Ok(Self { network, world, key, services })
    }

    /// Where the control API and S3 answer.
    pub fn endpoint(&self) -> String {
        format!("http://127.{}.0.2:{API_PORT}", self.network)
    }

    /// An address of this region's network.
    pub fn address(&self, zone: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.network, zone, host)
    }

    /// The public key of identity documents, as user data carries it.
    pub fn identity_public_key(&self) -> String {
        STANDARD.encode(self.key.public_key().as_ref())
    }

    /// Makes an instance known, or changes it.
    pub fn put(&self, id: &str, instance: Instance) {
        lock(&self.world).instances.insert(id.to_owned(), instance);
    }

    /// Instances that were asked to be terminated and are not yet.
    pub fn dying(&self) -> Vec<String> {
        let world = lock(&self.world);
        world.instances.iter().filter(|(_, instance)| instance.state == "shutting-down").map(|(id, _)| id.clone()).collect()
    }

    /// No process of it is left: from here on EC2 says `terminated`.
    pub fn terminated(&self, id: &str) {
        if let Some(instance) = lock(&self.world).instances.get_mut(id) {
            instance.state = "terminated";
        }
    }

    /// How often anybody has asked for an instance to be terminated, whatever was answered.
    pub fn terminations(&self) -> u64 {
        lock(&self.world).terminations
    }

    /// An object, if somebody has put it.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        lock(&self.world).objects.get(&format!("/{bucket}/{key}")).cloned()
    }

    /// Puts an object.
    pub fn put_object(&self, bucket: &str, key: &str, body: Vec<u8>) {
        lock(&self.world).objects.insert(format!("/{bucket}/{key}"), body.into());
    }

    /// From now on every call of the control API fails, or works again.
    pub fn fail(&self, failing: bool) {
        lock(&self.world).failing = failing;
    }

    /// An instance's identity document and its signature, base64.
    ///
    /// # Errors
    /// The key does not sign.
    pub fn identity(&self, id: &str, address: IpAddr) -> anyhow::Result<(String, String)> {
        let document = format!(r#"{{"instanceId": "{id}", "region": "us-east-1", "privateIp": "{address}"}}"#);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), document.as_bytes(), &mut signature).map_err(|error| anyhow::anyhow!("signing: {error}"))?;
        Ok((document, STANDARD.encode(signature)))
    }

    /// Serves an instance's metadata on its address.
    ///
    /// # Errors
    /// The instance is not known, or its address is taken.
    pub async fn serve_metadata(&mut self, id: &str, user_data: String) -> anyhow::Result<()> {
        let instance = lock(&self.world).instances.get(id).cloned().with_context(|| format!("no instance {id}"))?;
        let (document, signature) = self.identity(id, instance.address.into())?;
        let text = |value: String| {
            get(move |headers: HeaderMap| {
                let told = headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == "token");
                let value = value.clone();
                async move { if told { Ok(value) } else { Err(StatusCode::UNAUTHORIZED) } }
            })
        };
        let router = Router::new()
            .route("/latest/api/token", put(|| async { "token" }))
            .route("/latest/meta-data/instance-id", text(id.to_owned()))
            .route("/latest/meta-data/local-ipv4", text(instance.address.to_string()))
            .route("/latest/meta-data/placement/availability-zone", text(instance.zone.clone()))
            .route("/latest/meta-data/instance-type", text("t3.small".to_owned()))
            .route("/latest/user-data", text(user_data))
            .route("/latest/dynamic/instance-identity/document", text(document))
            .route("/latest/dynamic/instance-identity/signature", text(signature));
        serve(&mut self.services, SocketAddr::from((instance.address, METADATA_PORT)), router).await
    }

    /// Where an instance finds its metadata.
    pub fn metadata_endpoint(address: Ipv4Addr) -> String {
        format!("http://{address}:{METADATA_PORT}")
    }
}

async fn serve(services: &mut JoinSet<()>, address: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    services.spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    Ok(())
}

async fn answer(State(world): State<Arc<Mutex<World>>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MOST_BYTES).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let mut world = lock(&world);
    if parts.uri.path() == "/" {
        return control(&mut world, &String::from_utf8_lossy(&body));
    }
    object(&mut world, &parts.method, parts.uri.path(), &parts.headers, body)
}

fn object(world: &mut World, method: &Method, path: &str, headers: &HeaderMap, body: Bytes) -> Response {
    let etag = |body: &Bytes| {
        format!("\"{:016x}\"", body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    };
    let found = world.objects.get(path).cloned();
    let refuse = |status, code: &str| {
        (status, [(header::CONTENT_TYPE, "application/xml")], format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>")).into_response()
    };
    match (method, found) {
        (&Method::GET, Some(kept)) => ([(header::ETAG, etag(&kept))], kept).into_response(),
        (&Method::HEAD, Some(kept)) => [(header::ETAG, etag(&kept))].into_response(),
        (&Method::GET | &Method::HEAD, None) => refuse(StatusCode::NOT_FOUND, "NoSuchKey"),
        (&Method::PUT, found) => {
            let absent = headers.contains_key(header::IF_NONE_MATCH);
            let wanted = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok());
            let moved = wanted.is_some_and(|wanted| found.as_ref().map(&etag).as_deref() != Some(wanted));
            if (absent && found.is_some()) || moved {
                return refuse(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            let tag = etag(&body);
            world.objects.insert(path.to_owned(), body);
            [(header::ETAG, tag)].into_response()
        }
        _ => refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    }
}

fn control(world: &mut World, form: &str) -> Response {
    let words: Vec<(&str, &str)> = form.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let word = |name: &str| words.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value);
    let action = word("Action");
    if TERMINATING.contains(&action) {
        world.terminations += 1;
    }
    if world.failing {
        let error = "<Response><Errors><Error><Code>InternalError</Code><Message>on purpose</Message></Error></Errors></Response>";
        return (StatusCode::INTERNAL_SERVER_ERROR, error).into_response();
    }
    let content = match action {
        "DescribeInstances" => {
            let asked = words.iter().filter(|(key, _)| key.starts_with("Filter.1.Value.")).map(|(_, value)| *value);
            let found = asked.filter_map(|id| Some((id, world.instances.get(id)?))).map(|(id, instance)| described(id, instance));
            format!(
                "<reservationSet><item><reservationId>r-1</reservationId><instancesSet>{}</instancesSet></item></reservationSet>",
                found.collect::<String>()
            )
        }
        "TerminateInstanceInAutoScalingGroup" | "TerminateInstances" => {
            let id = [word("InstanceId"), word("InstanceId.1")].concat();
            if let Some(instance) = world.instances.get_mut(&id).filter(|instance| instance.state == "running") {
                instance.state = "shutting-down";
            }
            format!("<{action}Result></{action}Result>")
        }
        _ => {
            return (
                StatusCode::BAD_REQUEST,
                format!("<Response><Errors><Error><Code>InvalidAction</Code><Message>{action}</Message></Error></Errors></Response>"),
            )
                .into_response();
        }
    };
    ([(header::CONTENT_TYPE, "text/xml")], format!("<{action}Response><requestId>1</requestId>{content}</{action}Response>")).into_response()
}

fn described(id: &str, instance: &Instance) -> String {
    let Instance { address, zone, group, state } = instance;
    let code = match *state {
        "running" => 16,
        "shutting-down" => 32,
        _ => 48,
    };
    let address = if *state == "terminated" { String::new() } else { format!("<privateIpAddress>{address}</privateIpAddress>") };
    format!(
        "<item><instanceId>{id}</instanceId><instanceState><code>{code}</code><name>{state}</name></instanceState>{address}<placement><availabilityZone>{zone}</availabilityZone></placement><instanceType>t3.small</instanceType><tagSet><item><key>aws:autoscaling:groupName</key><value>{group}</value></item></tagSet></item>"
    )
}
