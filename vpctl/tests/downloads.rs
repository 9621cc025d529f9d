//! The real program downloads a job's results from a store of a few objects: what arrives other than announced is not handed out.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};
use vp_jobs::{JobId, keys};

const BUCKET: &str = "results";
const NAME: &str = "360p.mp4";

type Objects = BTreeMap<String, Vec<u8>>;

/// As much of S3 as a download asks for: objects, and a listing by prefix. Returns its URL.
fn serve(objects: Objects) -> String {
    let listener = TcpListener::bind("127.38.9.2:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let objects = Arc::new(objects);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let objects = Arc::clone(&objects);
            std::thread::spawn(move || answer(connection, &objects));
        }
    });
    url
}

fn answer(mut connection: TcpStream, objects: &Objects) {
    let mut head = BufReader::new(&connection).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let Some(request) = head.next() else { return };
    head.for_each(drop);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let key = path.trim_start_matches('/').trim_start_matches(BUCKET).trim_start_matches('/');
    let (status, body) = match objects.get(key) {
        _ if query.contains("list-type=2") => ("200 OK", listing(objects)),
        Some(bytes) => ("200 OK", bytes.clone()),
        None => ("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\nConnection: close\r\n\r\n", body.len());
    // The client may have gone away; the test fails by what the client says then.
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&body));
}

/// Every record there is; the prefixes asked for name the one job.
fn listing(objects: &Objects) -> Vec<u8> {
    let records = objects.keys().filter(|key| key.starts_with(keys::JOBS));
    let contents: String = records.map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>").into_bytes()
}

/// A done job whose one output is announced as `announced` and stored as `stored`.
fn done(job: &JobId, announced: &[u8], stored: &[u8]) -> Objects {
    let sha256 = hex::encode(Sha256::digest(announced));
    let outputs = json!([{"name": NAME, "key": keys::output(job, NAME), "bytes": announced.len(), "sha256": sha256, "content_type": "video/mp4"}]);
    let source = json!({"bucket": "uploads", "key": "clip.mp4", "etag": "e"});
    let submitted = json!({"job": job, "bucket": "uploads", "key": "clip.mp4", "etag": "e", "size": 1, "recipe": "default", "submitted_unix_ms": 1});
    let closed = json!({"job": job, "state": "done", "generation": 1, "outputs": outputs, "closed_unix_ms": 2});
    let manifest = json!({"job": job, "source": source, "recipe": "default", "outputs": outputs});
    let records = [(keys::submitted(job), submitted), (keys::closed(job), closed), (keys::manifest(job), manifest)];
    let mut objects: Objects = records.into_iter().map(|(key, record)| (key, record.to_string().into_bytes())).collect();
    objects.insert(keys::output(job, NAME), stored.to_vec());
    objects
}

fn fetch(url: &str, job: &JobId, folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
    let settings = [("AWS_ENDPOINT_URL_S3", url), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];
    command.envs(settings).env("VP_UPLOADS_BUCKET", "uploads").env("VP_RESULTS_BUCKET", BUCKET);
    command.env("VP_STATE", folder.join("no-region")).args(["jobs", "fetch", job.as_str(), "--output"]).arg(folder.join("out"));
    command.output().expect("vpctl runs")
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // What an earlier run left.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

#[test]
fn a_result_as_announced_is_downloaded_whole() {
    let (job, folder) = (JobId::of("uploads", "clip.mp4", "e", "default"), folder("downloads-whole"));
    let output = fetch(&serve(done(&job, b"pictures", b"pictures")), &job, &folder);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(folder.join("out").join(NAME)).expect("it is there"), b"pictures");
}

#[test]
fn a_result_of_other_bytes_than_announced_is_refused_and_leaves_no_file() {
    let (job, folder) = (JobId::of("uploads", "clip.mp4", "e", "default"), folder("downloads-other"));
    let output = fetch(&serve(done(&job, b"pictures", b"pictureS")), &job, &folder);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("SHA-256") && said.contains(NAME), "{said}");
    let left: Vec<_> = std::fs::read_dir(folder.join("out")).expect("the folder was made").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
