//! The Lambda service as a program, between a real S3 server and a real queue: tries, dead letters, kill -9, lost events.
//!
//! Needs the components (`VP_COMPONENTS`, else the cache): the S3 server, moto, and Python for the function.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use vp_cloud::{Endpoints, Session, s3::ObjectStore};
use vp_localcloud::{
    lambda::config::{Config, Function, S3},
    process,
};

const HOST: &str = "127.43.9.2";
const KEY: (&str, &str) = ("test", "testtest");

/// A function that does what the object's key says: crash, error, hang, or answer. Each try leaves a line in `seen`.
const FUNCTION: &str = r#"#!/usr/bin/env python3
import json, os, sys, time, urllib.request
api = os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation"
def call(path, body=None):
    return urllib.request.urlopen(urllib.request.Request(api + path, data=body))
while True:
    with call("/next") as answer:
        request, event = answer.headers["Lambda-Runtime-Aws-Request-Id"], json.load(answer)
    key = event["Records"][0]["s3"]["object"]["key"]
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{key} {request}\n")
    if key.startswith("crash"):
        os._exit(3)
    if key.startswith("hang"):
        time.sleep(1000)
    if key.startswith("error"):
        call(f"/{request}/error", b'{"errorType": "E", "errorMessage": "no"}')
    else:
        call(f"/{request}/response", b"{}")
"#;

/// Reads a queue as a program that knows nothing of vp: one JSON line a message.
const READ_QUEUE: &str = r#"
import boto3, json, sys
sqs = boto3.client("sqs", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="testtest")
try:
    url = sqs.get_queue_url(QueueName=sys.argv[2])["QueueUrl"]
except sqs.exceptions.QueueDoesNotExist:
    sys.exit(0)
for message in sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], MaxNumberOfMessages=10, VisibilityTimeout=0).get("Messages", []):
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    print(json.dumps({"body": json.loads(message["Body"]), "attributes": attributes}))
"#;

struct Bed {
    folder: tempfile::TempDir,
    running: Vec<Child>,
    service: Option<Child>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        for mut child in self.service.take().into_iter().chain(self.running.drain(..)) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn components() -> PathBuf {
    let cache = || std::env::var_os("VP_CACHE").map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/vp"), PathBuf::from);
    std::env::var_os("VP_COMPONENTS").map_or_else(|| cache().join("components"), PathBuf::from)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn listens(port: u16) {
    until(&format!("port {port} listens"), async || tokio::net::TcpStream::connect((HOST, port)).await.is_ok()).await;
}

impl Bed {
    async fn up() -> Self {
        let folder = tempfile::Builder::new().prefix("vp-lambda-test").tempdir().unwrap();
        let mut bed = Self { folder, running: Vec::new(), service: None };
        fs::create_dir(bed.path("s3")).unwrap();
        fs::write(bed.path("function"), FUNCTION).unwrap();
        fs::set_permissions(bed.path("function"), fs::Permissions::from_mode(0o755)).unwrap();
        File::create(bed.path("seen")).unwrap();
        let environment = BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap()), ("SEEN".to_owned(), bed.path("seen").display().to_string())]);
        let function = Function {
            name: "act".into(),
            program: bed.path("function"),
            environment,
            timeout_ms: 2_000,
            concurrency: 1,
            bucket: "shell".into(),
            prefix: None,
            suffix: None,
            dead_letter_queue: Some("act-dead".into()),
        };
        let config = Config {
            address: HOST.into(),
            port: 9001,
            state_dir: bed.path("lambda"),
            s3: S3 { endpoint_url: format!("http://{HOST}:7070"), region: "us-east-1".into(), access_key_id: KEY.0.into(), secret_access_key: KEY.1.into() },
            sqs_endpoint_url: Some(format!("http://{HOST}:5000")),
            functions: vec![function],
            sweep_every_ms: 1_000,
            retry_after_ms: vec![200, 400],
        };
        fs::write(bed.path("lambda.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let moto = components().join("moto/bin/moto_server");
        bed.start(Command::new(&moto).args(["-H", HOST, "-p", "5000"]), "moto");
        bed.serve();
        listens(9001).await;
        let gateway = components().join("bin/versitygw");
        let webhook = format!("http://{HOST}:9001/events");
        let mut gateway = Command::new(&gateway);
        gateway.args(["--port", &format!("{HOST}:7070"), "--event-webhook-url", &webhook, "posix"]).arg(bed.path("s3"));
        bed.start(gateway.env("ROOT_ACCESS_KEY", KEY.0).env("ROOT_SECRET_KEY", KEY.1), "s3");
        listens(7070).await;
        listens(5000).await;
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self, name: &str) -> File {
        fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap()
    }

    fn start(&mut self, command: &mut Command, name: &str) {
        let child = command.stdin(Stdio::null()).stdout(self.log(name)).stderr(self.log(name)).spawn();
        self.running.push(child.unwrap_or_else(|error| panic!("{name} cannot be started (make setup): {error}")));
    }

    fn serve(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vp-localcloud"));
        command.args(["lambda", "--config"]).arg(self.path("lambda.json")).stdin(Stdio::null()).stdout(self.log("service")).stderr(self.log("service"));
        self.service = Some(command.spawn().unwrap());
    }

    /// SIGKILL to the service alone.
    fn kill(&mut self) {
        let mut service = self.service.take().unwrap();
        service.kill().unwrap();
        service.wait().unwrap();
    }

    /// The request ids under which the function saw this key, try by try.
    fn tries(&self, key: &str) -> Vec<String> {
        let seen = fs::read_to_string(self.path("seen")).unwrap();
        seen.lines().filter_map(|line| line.split_once(' ')).filter(|(found, _)| *found == key).map(|(_, id)| id.to_owned()).collect()
    }

    fn files(&self, folder: &str) -> usize {
        fs::read_dir(self.path("lambda").join(folder)).map_or(0, Iterator::count)
    }

    /// The function's processes, wherever they hang.
    fn functions(&self) -> usize {
        let mark = format!("SEEN={}", self.path("seen").display()).into_bytes();
        process::find(|_, environment| environment.split(|byte| *byte == 0).any(|one| one == mark)).len()
    }
}

fn dead_letters() -> Vec<Value> {
    let said = Command::new(components().join("moto/bin/python")).args(["-c", READ_QUEUE, &format!("http://{HOST}:5000"), "act-dead"]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn store() -> ObjectStore {
    let session = Session::load(Endpoints {
        region: Some("us-east-1".into()),
        endpoint_url: None,
        s3_endpoint_url: Some(format!("http://{HOST}:7070")),
        credentials: Some((KEY.0.into(), KEY.1.into())),
    })
    .await;
    ObjectStore::new(&session)
}

async fn put(store: &ObjectStore, key: &str) {
    store.put("shell", key, key.to_owned().into(), "text/plain").await.unwrap();
}

/// One bed for all: the ports are fixed, and what one part leaves behind must not disturb the next.
#[tokio::test(flavor = "multi_thread")]
async fn process_every_event_is_delivered_tried_three_times_and_survives_a_kill() {
    assert!(Path::new(&components().join("bin/versitygw")).exists(), "the components are missing: make setup");
    let mut bed = Bed::up().await;
    let store = store().await;
    store.create_bucket("shell").await.unwrap();

    // A plain event: once, its key encoded as AWS encodes it.
    put(&store, "fine ä+1").await;
    until("the event is delivered", async || bed.tries("fine+%C3%A4%2B1").len() == 1).await;

    // Crash, error and hang: three tries under one request id, then a dead letter with the attributes AWS sets.
    for (number, (key, reason)) in [("crash", "ended"), ("error", "no"), ("hang", "timed out after 2.000 seconds")].into_iter().enumerate() {
        put(&store, key).await;
        until(&format!("{key} is put aside"), async || bed.files("failed") == number + 1).await;
        let tries = bed.tries(key);
        assert_eq!(tries.len(), 3, "{key}");
        assert!(tries.iter().all(|id| *id == tries[0]), "{key}: {tries:?}");
        let letters = dead_letters();
        let letter = letters.iter().find(|letter| letter.pointer("/attributes/RequestID").and_then(Value::as_str) == Some(&tries[0]));
        let letter = letter.unwrap_or_else(|| panic!("{key}: no dead letter among {letters:?}"));
        let message = letter.pointer("/attributes/ErrorMessage").and_then(Value::as_str).unwrap();
        assert!(message.contains(reason), "{key}: {message}");
        assert_eq!(letter.pointer("/body/Records/0/s3/object/key").and_then(Value::as_str), Some(key));
    }
    // After each of them the next event goes through.
    put(&store, "fine-2").await;
    until("the event after the bad ones", async || bed.tries("fine-2").len() == 1).await;

    // SIGKILL with an event under way: its process dies with the service; the event is delivered again by the next one.
    put(&store, "hang-again").await;
    until("an event is under way", async || bed.tries("hang-again").len() == 1).await;
    bed.kill();
    until("the function died with the service", async || bed.functions() == 0).await;
    // Nobody hears of this object: the webhook has no listener.
    put(&store, "lost").await;
    bed.serve();
    until("the event is delivered again", async || bed.tries("hang-again").len() >= 2).await;
    let tries = bed.tries("hang-again");
    assert_eq!(tries[0], tries[1], "another request id");
    until("the sweep finds the lost event", async || bed.tries("lost").len() == 1).await;
    until("nothing is left to deliver", async || bed.files("events") == 0).await;
    assert_eq!((bed.tries("lost").len(), bed.tries("fine-2").len(), bed.tries("fine+%C3%A4%2B1").len()), (1, 1, 1), "delivered more than once");
}
