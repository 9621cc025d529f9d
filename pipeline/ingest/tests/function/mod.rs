//! The function's program as Lambda runs it: a runtime hands it events and takes its answers, and its memory is watched meanwhile. Beside it an S3 in memory,
//! for keys that other servers refuse. Left out: everything of HTTP that these two do not need.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

/// The entity tag of everything that [`Memory`] keeps.
pub const ETAG: &str = "memory";
const INVOCATION: Duration = Duration::from_secs(180);
/// Between two looks at the memory of ffmpeg and ffprobe.
const LOOK: Duration = Duration::from_millis(50);

struct Request {
    method: String,
    /// Without the query.
    path: String,
    body: Vec<u8>,
}

struct Response {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    fn empty(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }
}

/// Answers on an address of its own until the test's process ends.
fn serve(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || talk(&connection, &*answer));
        }
    });
    address
}

/// One connection. That the other side hangs up is how each ends.
fn talk(mut connection: &TcpStream, answer: &dyn Fn(&Request) -> Response) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    while let Some(request) = read(&mut reader)? {
        let Response { status, headers, body } = answer(&request);
        let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        connection.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            connection.write_all(&body)?;
        }
    }
    Ok(())
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or_default();
        }
    }
    let mut body = vec![0; length];
    std::io::Read::read_exact(reader, &mut body)?;
    Ok(Some(Request { method, path, body }))
}

/// An S3 that keeps small objects in memory, by `/BUCKET/KEY`, and takes every key.
pub struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub url: String,
}

impl Memory {
    pub fn start() -> Self {
        let objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let kept = objects.clone();
        let address = serve(move |request| {
            let path = vp_jobs::event::decode_key(&request.path).unwrap_or_default();
            let mut kept = kept.lock().unwrap();
            let headers = vec![("etag", format!("\"{ETAG}\""))];
            match request.method.as_str() {
                "PUT" => {
                    kept.insert(path, request.body.clone());
                    Response { status: "200 OK", headers, body: Vec::new() }
                }
                "GET" | "HEAD" => match kept.get(&path) {
                    Some(body) => Response { status: "200 OK", headers, body: body.clone() },
                    None => Response::empty("404 Not Found"),
                },
                _ => Response::empty("501 Not Implemented"),
            }
        });
        Self { objects, url: format!("http://{address}") }
    }

    pub fn put(&self, path: &str, body: Vec<u8>) {
        self.objects.lock().unwrap().insert(path.to_owned(), body);
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().get(path).cloned()
    }
}

/// The most memory that was used at once, KiB.
#[derive(Debug, Clone, Copy)]
pub struct Peaks {
    /// By the program.
    pub program: u64,
    /// By one ffmpeg or ffprobe of it, as far as it was seen.
    pub tool: u64,
}

/// The running program; killed when dropped.
pub struct Function {
    child: Child,
    events: Sender<Value>,
    answers: Receiver<Value>,
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Function {
    /// Starts it in a folder that is made for it: its log and its temporary files.
    pub fn start(folder: &Path, s3_url: &str) -> Self {
        std::fs::create_dir(folder).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let (events, next) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let runtime = runtime(next, answer);
        let child = Command::new(env!("CARGO_BIN_EXE_vp-ingest"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", folder)
            .env("AWS_LAMBDA_RUNTIME_API", format!("http://{runtime}"))
            .env("AWS_LAMBDA_FUNCTION_NAME", "ingest")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "testtest")
            .env("AWS_ENDPOINT_URL_S3", s3_url)
            .env("VP_RESULTS_BUCKET", "results")
            .env("VP_CLUSTER_BUCKET", "cluster")
            .env("VP_RECIPES", Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes"))
            .env("VP_TOPIC_REPLICATION", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, events, answers }
    }

    /// The event of one upload, its key encoded as events carry it, and what the program answers.
    pub fn invoke(&self, bucket: &str, encoded_key: &str) -> (Value, Peaks) {
        let record = json!({
            "eventTime": "2026-11-23T20:29:24.007Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "vp"},
            "requestParameters": {"sourceIPAddress": "127.0.0.1"},
            "responseElements": {},
            "s3": {"bucket": {"name": bucket}, "object": {"key": encoded_key, "size": 1}},
        });
        self.events.send(json!({"Records": [record]})).unwrap();
        let (begun, mut tool) = (Instant::now(), 0);
        loop {
            match self.answers.recv_timeout(LOOK) {
                // Idle again, so that what it needed is known.
                Ok(answer) => return (answer, Peaks { program: status_of(self.child.id(), "VmHWM").expect("the program lives"), tool }),
                Err(RecvTimeoutError::Timeout) => tool = tool.max(self.largest_tool()),
                Err(RecvTimeoutError::Disconnected) => panic!("the runtime is gone"),
            }
            assert!(begun.elapsed() < INVOCATION, "no answer to {encoded_key} within {INVOCATION:?}");
        }
    }

    fn largest_tool(&self) -> u64 {
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = all.filter(|pid| status_of(*pid, "PPid") == Some(u64::from(self.child.id())));
        ours.filter_map(|pid| status_of(pid, "VmHWM")).max().unwrap_or_default()
    }
}

/// A number of `/proc/PID/status`.
fn status_of(pid: u32, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Lambda's runtime API: the next event once there is one, and the answer or the failure of the last.
fn runtime(events: Receiver<Value>, answers: Sender<Value>) -> SocketAddr {
    let events = Mutex::new(events);
    serve(move |request| {
        if request.method == "POST" {
            // The test may have ended meanwhile.
            let _ = answers.send(serde_json::from_slice(&request.body).unwrap_or_default());
            return Response::empty("202 Accepted");
        }
        let Ok(event) = events.lock().unwrap().recv() else { return Response::empty("410 Gone") };
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + INVOCATION;
        let headers = vec![
            ("lambda-runtime-aws-request-id", "1".to_owned()),
            ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
            ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:000000000000:function:ingest".to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        Response { status: "200 OK", headers, body: event.to_string().into_bytes() }
    })
}
