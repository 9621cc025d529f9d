//! Templates and what they are rendered from. Pure: the same context gives the same bytes. An undefined name is an
//! error, never an empty string in a configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use crate::catalogue::Role;
use crate::settings::{Aws, Buckets, Node};

/// A template that cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[error("cannot render {what}: {reason}")]
pub struct RenderError {
    /// `command`, an environment variable's or a file's name.
    pub what: String,
    /// Line and cause.
    pub reason: String,
}

/// A placed slot of the cluster, as templates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The slot's name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its identity in the role's own system.
    pub member_id: u32,
    /// Where it is.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Its generation.
    pub generation: u64,
}

/// The slot being rendered for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotContext {
    /// Role's name.
    pub role: String,
    /// Number within the role.
    pub index: u32,
    /// `role-index`.
    pub name: String,
    /// The fencing token.
    pub generation: u64,
    /// Identity in the role's own system.
    pub member_id: u32,
}

/// Everything a template may name (docs/contracts.md §3).
#[derive(Debug, Clone)]
pub struct Context {
    /// The slot.
    pub slot: SlotContext,
    /// This node.
    pub node: Node,
    /// The cluster's name.
    pub cluster: String,
    /// AWS region.
    pub region: String,
    /// Endpoints.
    pub aws: Aws,
    /// Buckets.
    pub buckets: Buckets,
    /// Rendered files.
    pub config_dir: PathBuf,
    /// Data, on the volume when the role has one.
    pub data_dir: PathBuf,
    /// Sockets, progress.
    pub run_dir: PathBuf,
    /// Logs.
    pub log_dir: PathBuf,
    /// Temporary files.
    pub temp_dir: PathBuf,
    /// Names of every placed slot.
    pub hosts_file: PathBuf,
    /// Kafka, Spark and the others.
    pub components: PathBuf,
    /// The image.
    pub image: PathBuf,
    /// The JVM; naming it in a template where there is none is an error.
    pub java: Option<PathBuf>,
    /// Role → its placed slots; every role of the catalogue is there.
    pub members: BTreeMap<String, Vec<Member>>,
    /// From the coordinator.
    pub params: BTreeMap<String, String>,
}

/// A role rendered for one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables of the role's own.
    pub environment: BTreeMap<String, String>,
    /// File name in the config folder → content.
    pub files: BTreeMap<String, String>,
}

/// JVM flags: a list as one element of `command`, words with blanks between elsewhere.
#[derive(Debug)]
struct Flags(Vec<String>);

impl Object for Flags {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).map(Value::from)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As the Java launcher reads `JDK_JAVA_OPTIONS`: blanks part words unless they are quoted.
        let quoted = |flag: &String| if flag.contains(char::is_whitespace) { format!("\"{flag}\"") } else { flag.clone() };
        f.write_str(&self.0.iter().map(quoted).collect::<Vec<_>>().join(" "))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // A configuration needs no more; a runaway loop ends here.
    environment.set_recursion_limit(50);
    environment
}

/// Checks a template's syntax.
///
/// # Errors
/// Line and cause.
pub fn check(template: &str) -> Result<(), String> {
    environment().template_from_str(template).map(drop).map_err(|error| describe(&error))
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{line}{}: {detail}", error.kind()),
        None => format!("{line}{}", error.kind()),
    }
}

/// Renders texts from one context.
pub struct Renderer {
    environment: Environment<'static>,
    values: Value,
}

impl Renderer {
    /// From a context; `ports` are the role's.
    pub fn new(context: &Context, ports: &BTreeMap<String, u16>) -> Self {
        let flags = Flags(vec![
            format!("-Djdk.net.hosts.file={}", context.hosts_file.display()),
            "-Dsun.net.inetaddr.ttl=1".into(),
            "-Dsun.net.inetaddr.negative.ttl=0".into(),
            // A JVM asks neither TMPDIR nor, for what `jps` reads, this property: without the last flag it leaves a file in /tmp when it is killed.
            format!("-Djava.io.tmpdir={}", context.temp_dir.display()),
            "-XX:+PerfDisableSharedMem".into(),
        ]);
        let path = |path: &PathBuf| path.display().to_string();
        let values = context! {
            slot => context.slot, node => context.node, cluster => context.cluster, region => context.region,
            aws => context.aws, buckets => context.buckets,
            config_dir => path(&context.config_dir), data_dir => path(&context.data_dir), run_dir => path(&context.run_dir),
            log_dir => path(&context.log_dir), temp_dir => path(&context.temp_dir), hosts_file => path(&context.hosts_file),
            components => path(&context.components), image => path(&context.image),
            ports => ports, members => context.members, params => context.params,
            java_flags => Value::from_object(flags),
        };
        let values = match &context.java {
            Some(java) => context! { java => path(java), ..values },
            None => values,
        };
        Self { environment: environment(), values }
    }

    /// One text; `what` names it in errors.
    ///
    /// # Errors
    /// An undefined name or a failing filter.
    pub fn text(&self, what: &str, template: &str) -> Result<String, RenderError> {
        self.environment.render_str(template, &self.values).map_err(|error| RenderError { what: what.to_owned(), reason: describe(&error) })
    }

    /// One element of a command: a lone expression that names a list becomes its elements, and one that
    /// contains an expression and renders to nothing is left out.
    fn words(&self, template: &str) -> Result<Vec<String>, RenderError> {
        let wrong = |error: minijinja::Error| RenderError { what: "command".into(), reason: describe(&error) };
        let lone = template.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}")).filter(|inner| !inner.contains("}}"));
        if let Some(expression) = lone {
            let value = self.environment.compile_expression(expression).and_then(|e| e.eval(&self.values)).map_err(wrong)?;
            if value.kind() == minijinja::value::ValueKind::Seq {
                return Ok(value.try_iter().map_err(wrong)?.map(|word| word.to_string()).collect());
            }
        }
        let word = self.text("command", template)?;
        Ok(if word.is_empty() && !template.is_empty() { Vec::new() } else { vec![word] })
    }

    /// The whole role.
    ///
    /// # Errors
    /// The first text that cannot be rendered.
    pub fn role(&self, role: &Role) -> Result<Rendered, RenderError> {
        let mut command = Vec::new();
        for template in &role.command {
            command.extend(self.words(template)?);
        }
        let mut environment = BTreeMap::new();
        for (name, template) in &role.environment {
            environment.insert(name.clone(), self.text(name, template)?);
        }
        let mut files = BTreeMap::new();
        for (target, template) in &role.files {
            let body = role.templates.get(template).map_or("", String::as_str);
            files.insert(target.clone(), self.text(template, body)?);
        }
        Ok(Rendered { command, environment, files })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn context() -> Context {
        let member = |index: u32| Member {
            name: format!("zookeeper-{index}"),
            index,
            member_id: index,
            address: format!("127.35.{index}.20"),
            zone: "us-east-1a".into(),
            generation: 7,
        };
        Context {
            slot: SlotContext { role: "kafka".into(), index: 2, name: "kafka-2".into(), generation: 9, member_id: 2 },
            node: Node {
                instance_id: "i-1".into(),
                address: [127, 35, 1, 20].into(),
                zone: "us-east-1a".into(),
                instance_type: "t3.small".into(),
                vcpus: 2,
                memory_mib: 2048,
            },
            cluster: "dev".into(),
            region: "us-east-1".into(),
            aws: Aws::default(),
            buckets: Buckets::default(),
            config_dir: "/c".into(),
            data_dir: "/d".into(),
            run_dir: "/r".into(),
            log_dir: "/l".into(),
            temp_dir: "/t".into(),
            hosts_file: "/h".into(),
            components: "/components".into(),
            image: "/image".into(),
            java: None,
            members: BTreeMap::from([("zookeeper".into(), vec![member(1), member(2)]), ("kafka".into(), vec![])]),
            params: BTreeMap::from([("join".into(), "member".into())]),
        }
    }

    fn renderer() -> Renderer {
        Renderer::new(&context(), &BTreeMap::from([("client".to_owned(), 2181)]))
    }

    #[test]
    fn templates_see_members_ports_params_and_the_machine() {
        let text = "{% for m in members.zookeeper %}{{ m.name }}:{{ ports.client }}{{ ',' if not loop.last }}{% endfor %} {{ params.join }} {{ node.memory_mib // 4 }}m";
        assert_eq!(renderer().text("x", text).unwrap(), "zookeeper-1:2181,zookeeper-2:2181 member 512m");
    }

    #[test]
    fn an_undefined_name_is_an_error_with_its_line() {
        let error = renderer().text("server.properties.j2", "a=1\nb={{ params.nothing }}\n").unwrap_err().to_string();
        assert!(error.contains("server.properties.j2") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn naming_java_where_there_is_none_is_an_error() {
        assert!(renderer().words("{{ java }}").is_err());
    }

    #[test]
    fn a_list_is_spread_over_arguments_and_joined_in_text() {
        assert_eq!(renderer().words("{{ java_flags }}").unwrap().len(), 5);
        let text = renderer().text("x", "{{ java_flags }}").unwrap();
        assert_eq!(text, "-Djdk.net.hosts.file=/h -Dsun.net.inetaddr.ttl=1 -Dsun.net.inetaddr.negative.ttl=0 -Djava.io.tmpdir=/t -XX:+PerfDisableSharedMem");
    }

    #[test]
    fn a_flag_with_a_blank_is_quoted_in_text() {
        let renderer = Renderer::new(&Context { temp_dir: "/a folder".into(), ..context() }, &BTreeMap::new());
        let text = renderer.text("x", "{{ java_flags }}").unwrap();
        assert!(text.ends_with(" \"-Djava.io.tmpdir=/a folder\" -XX:+PerfDisableSharedMem"), "{text}");
    }

    #[test]
    fn an_argument_that_renders_to_nothing_is_left_out_and_an_empty_one_stays() {
        assert_eq!(renderer().words("{{ '-x' if params.join == 'founder' else '' }}").unwrap(), Vec::<String>::new());
        assert_eq!(renderer().words("").unwrap(), vec![String::new()]);
    }

    #[test]
    fn nothing_is_escaped_and_the_last_line_keeps_its_end() {
        assert_eq!(renderer().text("x.html", "{{ '<&>' }}\n").unwrap(), "<&>\n");
    }
}
