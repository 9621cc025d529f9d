//! As much of EC2, S3 and instance metadata as coordinators ask for, over HTTP, with the test's own truth behind it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, put},
};

/// Port of EC2, Auto Scaling and S3 alike.
pub const PORT: u16 = 5000;

/// An instance as EC2 shows it.
#[derive(Clone, Debug)]
pub struct Instance {
    pub address: IpAddr,
    /// `running`, `terminated`, …
    pub state: &'static str,
    pub group: String,
}

/// What the services know.
#[derive(Default)]
pub struct Aws {
    instances: Mutex<BTreeMap<String, Instance>>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// How often each instance was asked for.
    asked: Mutex<BTreeMap<String, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Aws {
    /// EC2 knows this instance from now on.
    pub fn launch(&self, id: &str, instance: Instance) {
        lock(&self.instances).insert(id.to_owned(), instance);
    }

    /// EC2 knows nothing of this instance any more, as an hour after its end.
    pub fn forget(&self, id: &str) {
        lock(&self.instances).remove(id);
    }

    /// Puts an object, `bucket/key`.
    pub fn put(&self, place: &str, body: &[u8]) {
        lock(&self.objects).insert(place.to_owned(), body.to_vec());
    }

    /// An object, `bucket/key`, if somebody has put it.
    pub fn object(&self, place: &str) -> Option<Vec<u8>> {
        lock(&self.objects).get(place).cloned()
    }

    /// How often EC2 was asked for instances whose ids begin so.
    pub fn asked(&self, prefix: &str) -> u64 {
        lock(&self.asked).iter().filter(|(id, _)| id.starts_with(prefix)).map(|(_, times)| times).sum()
    }

    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let router = Router::new().fallback(answer).with_state(self);
        let _ = axum::serve(listener, router).await;
    }

    fn serve_object(&self, method: &Method, place: &str, headers: &HeaderMap, body: &[u8]) -> Response {
        let mut objects = lock(&self.objects);
        let found = objects.get(place);
        match *method {
            Method::PUT if headers.contains_key("if-none-match") && found.is_some() => error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
            Method::PUT => {
                objects.insert(place.to_owned(), body.to_vec());
                ([("etag", "\"e\"")], "").into_response()
            }
            Method::DELETE => {
                objects.remove(place);
                StatusCode::NO_CONTENT.into_response()
            }
            _ => match found {
                Some(body) => ([("etag", "\"e\"")], body.clone()).into_response(),
                None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            },
        }
    }

    fn describe_instances(&self, form: &str) -> String {
        let wanted: Vec<&str> =
            form.split('&').filter_map(|pair| pair.split_once('=')).filter(|(name, _)| name.contains(".Value.")).map(|(_, id)| id).collect();
        for id in &wanted {
            *lock(&self.asked).entry((*id).to_owned()).or_default() += 1;
        }
        let instances = lock(&self.instances);
        let mut items = String::new();
        for (id, one) in instances.iter().filter(|(id, _)| wanted.contains(&id.as_str())) {
            let _ = write!(
                items,
                "<item><instancesSet><item><instanceId>{id}</instanceId><instanceState><code>16</code><name>{}</name></instanceState>\
                 <privateIpAddress>{}</privateIpAddress><instanceType>t3.small</instanceType><placement><availabilityZone>us-east-1a</availabilityZone></placement>\
                 <tagSet><item><key>aws:autoscaling:groupName</key><value>{}</value></item></tagSet></item></instancesSet></item>",
                one.state, one.address, one.group
            );
        }
        format!("<reservationSet>{items}</reservationSet>")
    }
}

fn error(status: StatusCode, code: &str) -> Response {
    (status, [("content-type", "application/xml")], format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>")).into_response()
}

async fn answer(State(aws): State<Arc<Aws>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    if method != Method::POST {
        return aws.serve_object(&method, uri.path().trim_start_matches('/'), &headers, &body);
    }
    let form = String::from_utf8_lossy(&body);
    let action = form.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
    let content = if action == "DescribeInstances" { aws.describe_instances(&form) } else { String::new() };
    let xml = format!("<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>{content}</{action}Response>");
    ([("content-type", "text/xml")], xml).into_response()
}

/// One instance's metadata service (IMDSv2, as far as a token is asked for and shown), for ever.
pub async fn serve_metadata(listener: tokio::net::TcpListener, values: BTreeMap<String, String>) {
    let value = move |uri: Uri, headers: HeaderMap| {
        let found = values.get(uri.path().trim_start_matches("/latest/")).cloned();
        async move {
            match (headers.contains_key("x-aws-ec2-metadata-token"), found) {
                (false, _) => Err(StatusCode::UNAUTHORIZED),
                (true, Some(found)) => Ok(found),
                (true, None) => Err(StatusCode::NOT_FOUND),
            }
        }
    };
    let router = Router::new().route("/latest/api/token", put(|| async { "token" })).route("/latest/{*path}", get(value));
    let _ = axum::serve(listener, router).await;
}
