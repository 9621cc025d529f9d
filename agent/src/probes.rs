//! Health, asked for in the role's own protocol: bytes over TCP, a page over HTTP, or a file the role keeps writing. "The
//! port is open" is never an answer. What the pattern's named groups capture becomes facts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use regex::Regex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::catalogue;
use crate::durable::{self, FileError};
use crate::render::{RenderError, Renderer};

/// Most bytes of an answer that are read.
const MOST_BYTES: usize = 1024 * 1024;

/// A probe that cannot be made from its role.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its templates.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Its bytes or pattern, once rendered.
    #[error("probe: {0}")]
    Wrong(String),
    /// No HTTP client.
    #[error("probe: cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
}

enum Question {
    Tcp { port: u16, send: Vec<u8> },
    Http { client: reqwest::Client, url: String },
    File { path: PathBuf, max_age: Duration },
}

/// What a good answer looks like.
pub struct Expect(Regex);

impl Expect {
    /// # Errors
    /// The pattern is wrong.
    pub fn new(pattern: &str) -> Result<Self, ProbeError> {
        Regex::new(pattern).map(Self).map_err(|error| ProbeError::Wrong(error.to_string()))
    }

    /// What the named groups capture in an answer; none: it is not a good one.
    pub fn facts(&self, answer: &str) -> Option<BTreeMap<String, String>> {
        let captures = self.0.captures(answer)?;
        let names = self.0.capture_names().flatten();
        Some(names.filter_map(|name| Some((name.to_owned(), captures.name(name)?.as_str().to_owned()))).collect())
    }
}

/// Bytes as Latin-1: every byte is a character, so that a pattern can match binary protocols.
pub fn latin1(bytes: &[u8]) -> impl Iterator<Item = char> {
    bytes.iter().map(|byte| char::from(*byte))
}

/// A probe ready to be asked.
pub struct Probe {
    address: IpAddr,
    every: Duration,
    timeout: Duration,
    question: Question,
    expect: Expect,
}

/// What the answers so far amount to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// It was good at least once.
    pub ever_good: bool,
    /// Bad answers in a row.
    pub failures: u32,
    /// The last bad answer, for a person.
    pub message: String,
    /// Captured by the last good one.
    pub facts: BTreeMap<String, String>,
}

impl Health {
    fn take(&mut self, answer: Result<BTreeMap<String, String>, String>) {
        match answer {
            Ok(facts) => *self = Self { ever_good: true, failures: 0, message: String::new(), facts },
            Err(message) => {
                self.failures = self.failures.saturating_add(1);
                self.message = message;
            }
        }
    }
}

impl Probe {
    /// From a role, rendered for a slot on the node with `address`.
    ///
    /// # Errors
    /// A template, hexadecimal digits or a pattern that is wrong once rendered.
    pub fn new(probe: &catalogue::Probe, renderer: &Renderer, address: IpAddr) -> Result<Self, ProbeError> {
        let timeout = Duration::from_millis(probe.timeout_ms);
        let (question, expect) = if let Some(tcp) = &probe.tcp {
            let send = match (&tcp.send, &tcp.send_hex) {
                (Some(text), _) => renderer.text("probe", text)?.into_bytes(),
                (None, Some(digits)) => catalogue::decode_hex(digits).map_err(ProbeError::Wrong)?,
                (None, None) => Vec::new(),
            };
            (Question::Tcp { port: tcp.port, send }, &tcp.expect)
        } else if let Some(http) = &probe.http {
            let client = reqwest::Client::builder().no_proxy().local_address(address).timeout(timeout).pool_max_idle_per_host(0).build();
            let path = renderer.text("probe", &http.path)?;
            let url = format!("http://{}/{}", SocketAddr::new(address, http.port), path.trim_start_matches('/'));
            (Question::Http { client: client.map_err(ProbeError::Client)?, url }, &http.expect)
        } else if let Some(file) = &probe.file {
            let path = PathBuf::from(renderer.text("probe", &file.path)?);
            (Question::File { path, max_age: Duration::from_millis(file.max_age_ms) }, &file.expect)
        } else {
            return Err(ProbeError::Wrong("no question".into()));
        };
        let expect = Expect::new(&renderer.text("probe", expect)?)?;
        Ok(Self { address, every: Duration::from_millis(probe.every_ms), timeout, question, expect })
    }

    /// Before a start: the file of an earlier process is no word of the next one.
    ///
    /// # Errors
    /// There is one, and it stays.
    pub fn forget_answer(&self) -> Result<(), FileError> {
        match &self.question {
            Question::File { path, .. } => durable::remove_file(path),
            _ => Ok(()),
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn ask(&self) -> Result<BTreeMap<String, String>, String> {
        let answer = tokio::time::timeout(self.timeout, async {
            match &self.question {
                Question::Tcp { port, send } => self.tcp(*port, send).await,
                Question::Http { client, url } => http(client, url).await,
                Question::File { path, max_age } => file(path, *max_age),
            }
        });
        let text = answer.await.map_err(|_| format!("no answer within {} ms", self.timeout.as_millis()))??;
        self.expect.facts(&text).ok_or_else(|| {
            let begin: String = text.chars().take(80).collect();
            format!("the answer {begin:?} does not match {:?}", self.expect.0.as_str())
        })
    }

    async fn tcp(&self, port: u16, send: &[u8]) -> Result<String, String> {
        let at = SocketAddr::new(self.address, port);
        let failed = |error: std::io::Error| format!("{at}: {error}");
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
        socket.bind(SocketAddr::new(self.address, 0)).map_err(failed)?;
        let mut stream = socket.connect(at).await.map_err(failed)?;
        stream.write_all(send).await.map_err(failed)?;
        let mut text = String::new();
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).await.map_err(failed)?;
            text.extend(latin1(&buffer[..length]));
            if length == 0 || text.len() > MOST_BYTES || self.expect.0.is_match(&text) {
                return Ok(text);
            }
        }
    }
}

async fn http(client: &reqwest::Client, url: &str) -> Result<String, String> {
    let failed = |error: reqwest::Error| format!("{url}: {}", std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string));
    let mut response = client.get(url).send().await.map_err(failed)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("{url} answers {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST_BYTES {
            return Err(format!("{url} answers more than {MOST_BYTES} bytes"));
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn file(path: &PathBuf, max_age: Duration) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let age = SystemTime::now().duration_since(metadata.modified().map_err(failed)?).unwrap_or_default();
    if age > max_age {
        return Err(format!("{} was last written {:.1} s ago", path.display(), age.as_secs_f64()));
    }
    if metadata.len() > MOST_BYTES as u64 {
        return Err(format!("{} is larger than {MOST_BYTES} bytes", path.display()));
    }
    Ok(String::from_utf8_lossy(&std::fs::read(path).map_err(failed)?).into_owned())
}

/// A probe asked again and again for as long as this lives.
pub struct Watch {
    health: Arc<Mutex<Health>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins at once; `wake` is notified when the picture changes.
    pub fn begin(probe: Probe, wake: Arc<Notify>) -> Self {
        let health = Arc::new(Mutex::new(Health::default()));
        let shared = health.clone();
        let task = tokio::spawn(async move {
            loop {
                let answer = probe.ask().await;
                let changed = {
                    let mut health = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let before = health.clone();
                    health.take(answer);
                    *health != before
                };
                if changed {
                    wake.notify_one();
                }
                tokio::time::sleep(probe.every).await;
            }
        });
        Self { health, task }
    }

    /// The picture now.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 35, 9, 1));

    fn probe(yaml: &str) -> Probe {
        let probe: catalogue::Probe = serde_saphyr::from_str(yaml).unwrap();
        let renderer = Renderer::new(&crate::render::tests::context(), &BTreeMap::new());
        Probe::new(&probe, &renderer, ME).unwrap()
    }

    /// Answers one connection after it has read something, and tells from where it came.
    async fn answering(answer: &'static [u8]) -> (u16, JoinHandle<SocketAddr>) {
        let listener = TcpListener::bind((ME, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, from) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
            from
        });
        (port, task)
    }

    #[tokio::test]
    async fn named_groups_become_facts_and_the_question_comes_from_the_nodes_address() {
        let (port, server) = answering(b"Zookeeper version: 3\nMode: leader\n").await;
        let probe = probe(&format!("{{timeout_ms: 2000, tcp: {{port: {port}, send: \"srvr\\n\", expect: \"Mode: (?<mode>leader|follower)\"}}}}"));
        assert_eq!(probe.ask().await, Ok(BTreeMap::from([("mode".into(), "leader".into())])));
        assert_eq!(server.await.unwrap().ip(), ME);
    }

    #[tokio::test]
    async fn binary_answers_match_byte_by_byte() {
        let (port, _server) = answering(&[0, 0, 0xff, 0x80]).await;
        let probe = probe(&format!("{{tcp: {{port: {port}, send_hex: \"00 ff\", expect: '\\xff\\x80'}}}}"));
        assert!(probe.ask().await.is_ok());
    }

    #[tokio::test]
    async fn a_port_that_is_open_and_says_nothing_is_not_healthy() {
        let listener = TcpListener::bind((ME, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = probe(&format!("{{timeout_ms: 100, tcp: {{port: {port}, send: x, expect: y}}}}"));
        assert!(probe.ask().await.unwrap_err().contains("no answer within 100 ms"));
    }

    #[tokio::test]
    async fn a_page_with_another_status_than_200_is_not_healthy() {
        for (answer, good) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"status\":\"ALIVE\"}"[..], true),
            (&b"HTTP/1.1 503 No\r\nContent-Length: 17\r\n\r\n{\"status\":\"ALIVE\"}"[..], false),
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nNOPE"[..], false),
        ] {
            let (port, _server) = answering(answer).await;
            let probe = probe(&format!("{{http: {{port: {port}, path: /json/, expect: 'status\":\"(?<mode>ALIVE)'}}}}"));
            assert_eq!(probe.ask().await.is_ok(), good);
        }
    }

    #[tokio::test]
    async fn a_file_written_too_long_ago_is_not_healthy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress.json");
        let probe = probe(&format!("{{file: {{path: {}, max_age_ms: 1000, expect: 'batch\": (?<batch>[0-9]+)'}}}}", path.display()));
        assert!(probe.ask().await.is_err());
        std::fs::write(&path, "{\"batch\": 12}").unwrap();
        assert_eq!(probe.ask().await, Ok(BTreeMap::from([("batch".into(), "12".into())])));
        let old = SystemTime::now() - Duration::from_secs(5);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(probe.ask().await.unwrap_err().contains("was last written"));
    }
}
