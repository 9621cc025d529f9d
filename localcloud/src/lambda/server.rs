//! HTTP: the webhook of the S3 server and the Runtime API of the functions (`/NAME/WORKER/2018-06-01/runtime/…`).

use std::sync::Arc;

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, Response, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    delivery::{Delivery, now_unix_ms},
    event::Created,
};

/// Lambda's limit for an answer is 6 MiB.
const MAX_BODY: usize = 6 << 20;

/// Serves until the process ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, delivery: Arc<Delivery>) -> anyhow::Result<()> {
    let invocation = "/{function}/{worker}/2018-06-01/runtime/invocation";
    let app = Router::new()
        .route("/events", post(events).get(|| async { "ok" }))
        .route("/health", get(|| async { "ok" }))
        .route(&format!("{invocation}/next"), get(next))
        .route(&format!("{invocation}/{{id}}/response"), post(response))
        .route(&format!("{invocation}/{{id}}/error"), post(error))
        .route("/{function}/{worker}/2018-06-01/runtime/init/error", post(init_error))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(delivery);
    axum::serve(listener, app).await.context("lambda server")
}

async fn events(State(delivery): State<Arc<Delivery>>, Json(body): Json<Value>) -> (StatusCode, String) {
    let created = match Created::from_webhook(&body, now_unix_ms()) {
        Ok(created) => created,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason),
    };
    // Blocks on fdatasync for a moment; the answer promises that the event is on the disk.
    for created in &created {
        if let Err(error) = delivery.accept(created) {
            tracing::error!(%error, "event cannot be written down");
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        }
    }
    (StatusCode::OK, String::new())
}

async fn next(State(delivery): State<Arc<Delivery>>, Path((name, worker)): Path<(String, usize)>) -> Response<Body> {
    let Some(function) = delivery.function_named(&name) else {
        return (StatusCode::NOT_FOUND, format!("there is no function {name}")).into_response();
    };
    let in_flight = delivery.next(function, worker).await;
    let event = &in_flight.event;
    let arn = format!("arn:aws:lambda:{}:123456789012:function:{name}", delivery.config.s3.region);
    let answer = Response::builder()
        .header("Content-Type", "application/json")
        .header("Lambda-Runtime-Aws-Request-Id", &event.id)
        .header("Lambda-Runtime-Deadline-Ms", in_flight.deadline_unix_ms)
        .header("Lambda-Runtime-Invoked-Function-Arn", arn)
        .header("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000;Sampled=0")
        .body(Body::from(event.payload.to_string()));
    answer.unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response())
}

fn accepted(known: bool) -> (StatusCode, Json<Value>) {
    if known {
        (StatusCode::ACCEPTED, Json(json!({"status": "OK"})))
    } else {
        (StatusCode::BAD_REQUEST, Json(json!({"errorMessage": "Invalid request ID", "errorType": "InvalidRequestID"})))
    }
}

async fn response(State(delivery): State<Arc<Delivery>>, Path((name, _, id)): Path<(String, usize, String)>) -> (StatusCode, Json<Value>) {
    accepted(delivery.succeed(&name, &id))
}

fn reported(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_owned);
    let kind = headers.get("Lambda-Runtime-Function-Error-Type").and_then(|value| value.to_str().ok()).map(str::to_owned);
    (text("errorType").or(kind).unwrap_or_else(|| "Unhandled".to_owned()), text("errorMessage").unwrap_or_default())
}

async fn error(
    State(delivery): State<Arc<Delivery>>,
    Path((name, _, id)): Path<(String, usize, String)>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> (StatusCode, Json<Value>) {
    let (kind, message) = reported(&headers, &body);
    accepted(delivery.fail(&name, &id, &kind, &message).await)
}

async fn init_error(Path((name, worker)): Path<(String, usize)>, headers: HeaderMap, body: axum::body::Bytes) -> (StatusCode, Json<Value>) {
    let (kind, message) = reported(&headers, &body);
    tracing::warn!(function = name, worker, kind, message, "function cannot start");
    accepted(true)
}
