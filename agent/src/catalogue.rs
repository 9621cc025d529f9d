//! The catalogue of roles this image can run: `roles/NAME/role.yaml` with its templates, checked when the agent starts,
//! so that a mistake is found with its file and line and not at three in the morning. What a role means to the cluster
//! (membership, spread, resources) is read here only to refuse unknown keys; the coordinators act on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::render;

/// A role folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// A file or folder that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A mistake in one, with its place.
    #[error("{path}: {reason}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, what is wrong, what is allowed.
        reason: String,
    },
}

/// What two copies of a role would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fencing {
    /// Harm: runs only under a lease and a guard.
    Exclusive,
    /// Nothing: its own quorum protects it.
    Quorum,
    /// Nothing worth protecting.
    Disposable,
}

impl Fencing {
    /// From the wire's word; anything unknown is the strictest.
    pub fn from_wire(word: &str) -> Self {
        match word {
            "quorum" => Self::Quorum,
            "disposable" => Self::Disposable,
            _ => Self::Exclusive,
        }
    }
}

/// One role as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// One sentence for people.
    pub summary: String,
    /// What two copies would do.
    pub fencing: Fencing,
    #[serde(default, rename = "fenced_sinks")]
    _fenced_sinks: bool,
    /// A slot owns a volume.
    #[serde(default)]
    pub volume: bool,
    #[serde(default, rename = "membership")]
    _membership: Membership,
    #[serde(default, rename = "after")]
    _after: Vec<String>,
    #[serde(default, rename = "spread")]
    _spread: IgnoredAny,
    #[serde(default, rename = "resources")]
    _resources: IgnoredAny,
    /// Names for port numbers.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    /// Templates.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Target in the config folder: template beside `role.yaml`.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Program and arguments, templates.
    pub command: Vec<String>,
    /// How it is asked to end.
    #[serde(default)]
    pub stop: Stop,
    /// Niceness of its processes.
    #[serde(default = "default_nice")]
    pub nice: i32,
    /// Until then a failing probe means "starting".
    #[serde(default = "default_start_timeout_ms")]
    pub start_timeout_ms: u64,
    /// How its health is asked for.
    pub probe: Probe,
    /// Template name → text, of `files`.
    #[serde(skip)]
    pub templates: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Membership {
    #[default]
    None,
    Zookeeper,
    Kafka,
}

fn default_nice() -> i32 {
    10
}

fn default_start_timeout_ms() -> u64 {
    60_000
}

/// The way to end a role politely.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Without `SIG`: TERM, INT, QUIT, HUP.
    #[serde(default = "default_signal")]
    pub signal: String,
    /// Then it is killed.
    #[serde(default = "default_stop_timeout_ms")]
    pub timeout_ms: u64,
}

fn default_signal() -> String {
    "TERM".into()
}

fn default_stop_timeout_ms() -> u64 {
    5_000
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: default_signal(), timeout_ms: default_stop_timeout_ms() }
    }
}

impl Stop {
    /// The signal; checked at load, so the fallback is never taken.
    pub fn signal(&self) -> Signal {
        parse_signal(&self.signal).unwrap_or(Signal::SIGTERM)
    }

    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

fn parse_signal(name: &str) -> Option<Signal> {
    matches!(name, "TERM" | "INT" | "QUIT" | "HUP").then(|| format!("SIG{name}").parse().ok()).flatten()
}

/// How a role's health is asked for: exactly one of tcp, http, file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Time between two questions.
    #[serde(default = "default_every_ms")]
    pub every_ms: u64,
    /// An answer later than this is none.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Speak a protocol over TCP.
    pub tcp: Option<TcpProbe>,
    /// Ask a web server.
    pub http: Option<HttpProbe>,
    /// Look at a file the role keeps writing.
    pub file: Option<FileProbe>,
}

fn default_every_ms() -> u64 {
    1_000
}

fn default_timeout_ms() -> u64 {
    2_000
}

/// Send bytes, expect a pattern in what comes back (bytes as Latin-1).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// On the node's address.
    pub port: u16,
    /// Text to send.
    pub send: Option<String>,
    /// Or bytes in hexadecimal; blanks are ignored.
    pub send_hex: Option<String>,
    /// Pattern (a template); its named groups become facts.
    pub expect: String,
}

/// GET, status 200 and a pattern in the body.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// On the node's address.
    pub port: u16,
    /// Template.
    pub path: String,
    /// Pattern (a template); its named groups become facts.
    pub expect: String,
}

/// A file no older than `max_age_ms` with a pattern in it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileProbe {
    /// Template.
    pub path: String,
    /// By its modification time.
    pub max_age_ms: u64,
    /// Pattern (a template); its named groups become facts.
    pub expect: String,
}

/// Every role of the image, by name.
pub type Catalogue = BTreeMap<String, Role>;

/// Reads and checks `folder/*/role.yaml`.
///
/// # Errors
/// The first mistake, with file and line.
pub fn load(folder: &Path) -> Result<Catalogue, CatalogueError> {
    let read = |source| CatalogueError::Read { path: folder.to_owned(), source };
    let mut catalogue = Catalogue::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = path.join("role.yaml");
        if !file.exists() {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(|source| CatalogueError::Read { path: file.clone(), source })?;
        if crate::slot::Slot::new(&name, 1).is_err() {
            let reason = "the folder's name is no role name: lower-case letters, digits, hyphens".into();
            return Err(CatalogueError::Wrong { path, reason });
        }
        let role = parse(&text, &path).map_err(|reason| CatalogueError::Wrong { path: file, reason })?;
        catalogue.insert(name, role);
    }
    Ok(catalogue)
}

/// Parses and checks one role; `folder` holds its templates.
///
/// # Errors
/// What is wrong with it, with the line.
pub fn parse(text: &str, folder: &Path) -> Result<Role, String> {
    let mut role: Role = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let at = |key: &str, reason: String| match text.lines().position(|line| line.trim_start().starts_with(key)) {
        Some(line) => format!("line {}: {key}: {reason}", line + 1),
        None => format!("{key}: {reason}"),
    };
    if role.summary.trim().is_empty() {
        return Err(at("summary", "is empty; one sentence is wanted".into()));
    }
    if role.command.is_empty() {
        return Err(at("command", "is empty; the program and its arguments are wanted".into()));
    }
    if parse_signal(&role.stop.signal).is_none() {
        return Err(at("stop", format!("signal {:?} is not one of TERM, INT, QUIT, HUP", role.stop.signal)));
    }
    if !(0..=19).contains(&role.nice) {
        return Err(at("nice", format!("{} is not between 0 and 19", role.nice)));
    }
    let templates = role.command.iter().map(|text| ("command", text)).chain(role.environment.values().map(|text| ("environment", text)));
    for (key, template) in templates {
        render::check(template).map_err(|reason| at(key, reason))?;
    }
    for (target, template) in &role.files {
        if Path::new(target).components().count() != 1 || target.starts_with('.') {
            return Err(at("files", format!("{target:?} is no plain file name")));
        }
        let path = folder.join(template);
        let body = fs::read_to_string(&path).map_err(|error| at("files", format!("cannot read {}: {error}", path.display())))?;
        render::check(&body).map_err(|reason| format!("{}: {reason}", path.display()))?;
        role.templates.insert(template.clone(), body);
    }
    check_probe(&role.probe).map_err(|reason| at("probe", reason))?;
    Ok(role)
}

fn check_probe(probe: &Probe) -> Result<(), String> {
    if probe.every_ms < 50 || probe.timeout_ms < 10 {
        return Err("every_ms is at least 50, timeout_ms at least 10".into());
    }
    let patterns = match (&probe.tcp, &probe.http, &probe.file) {
        (Some(tcp), None, None) => {
            match (&tcp.send, &tcp.send_hex) {
                (Some(_), Some(_)) => return Err("tcp: send and send_hex exclude each other".into()),
                (None, Some(hex)) => drop(decode_hex(hex)?),
                _ => {}
            }
            [&tcp.expect, &tcp.expect]
        }
        (None, Some(http), None) => [&http.path, &http.expect],
        (None, None, Some(file)) => [&file.path, &file.expect],
        _ => return Err("exactly one of tcp, http, file is wanted".into()),
    };
    for text in patterns {
        render::check(text)?;
    }
    let expect = patterns[1];
    if expect.is_empty() {
        return Err("expect is empty: an open port is not health".into());
    }
    // A pattern with template marks is compiled once they are filled in.
    if !expect.contains("{{") {
        regex::Regex::new(expect).map_err(|error| format!("expect: {error}"))?;
    }
    Ok(())
}

/// Bytes of a probe's `send_hex`.
pub(crate) fn decode_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    hex::decode(digits).map_err(|error| format!("send_hex: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"summary: A test role.
fencing: quorum
volume: true
membership: zookeeper
after: [zookeeper]
spread: zone
resources: {memory_mib: 200}
ports: {client: 2181}
environment: {NAME: "{{ slot.name }}"}
files: {"a.cfg": "a.cfg.j2"}
command: ["{{ java }}", "-cp", "x"]
stop: {signal: TERM, timeout_ms: 5000}
probe:
  tcp: {port: 2181, send: "srvr\n", expect: "Mode: (?<mode>leader|follower)"}
"#;

    fn read(role: &str, template: &str) -> Result<Catalogue, CatalogueError> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("thing")).unwrap();
        fs::write(dir.path().join("thing/role.yaml"), role).unwrap();
        fs::write(dir.path().join("thing/a.cfg.j2"), template).unwrap();
        load(dir.path())
    }

    #[test]
    fn a_role_as_in_the_contract_is_read_with_its_template() {
        let catalogue = read(GOOD, "id={{ slot.member_id }}").unwrap();
        assert_eq!(catalogue["thing"].templates["a.cfg.j2"], "id={{ slot.member_id }}");
        assert_eq!(catalogue["thing"].nice, 10);
    }

    #[test]
    fn each_mistake_is_refused_with_its_place() {
        let cases = [
            ("volume: true", "volyume: true", "volyume"),
            ("fencing: quorum", "fencing: quorun", "quorun"),
            ("signal: TERM", "signal: KILL", "line 12"),
            ("{{ java }}", "{{ java", "line 11"),
            ("(?<mode>", "(?<mode", "expect"),
            ("send: \"srvr\\n\"", "send_hex: \"0g\"", "send_hex"),
            ("a.cfg.j2", "b.cfg.j2", "b.cfg.j2"),
            ("\"a.cfg\":", "\"../a.cfg\":", "line 10"),
            ("expect: \"Mode: (?<mode>leader|follower)\"", "expect: \"\"", "an open port is not health"),
            ("membership: zookeeper", "membership: etcd", "etcd"),
        ];
        for (from, to, said) in cases {
            assert!(GOOD.contains(from), "{from}");
            let error = read(&GOOD.replace(from, to), "x").unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("role.yaml"), "{to}: {error}");
        }
    }

    #[test]
    fn a_bad_template_file_is_refused_with_its_own_line() {
        let error = read(GOOD, "fine\n{% if %}\n").unwrap_err().to_string();
        assert!(error.contains("a.cfg.j2") && error.contains("line 2"), "{error}");
    }
}
