//! What the shipped roles ask of the machine: ports, and parts of the components. Found in their files as text; only agents understand those as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How a role's file names something below the components' folder.
const COMPONENTS: &str = "{{ components }}/";

/// What all roles of a catalogue ask for together.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Port on an instance → the role that listens there.
    pub ports: BTreeMap<u16, String>,
    /// Paths below the components' folder.
    pub components: BTreeSet<String>,
}

/// Reads every role below `folder`.
pub(super) fn needs(folder: &Path) -> std::io::Result<Needs> {
    let mut needs = Needs::default();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(role) = std::fs::read(entry.path().join("role.yaml")) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        needs.ports.extend(ports(&String::from_utf8_lossy(&role)).into_iter().map(|port| (port, name.clone())));
        for file in std::fs::read_dir(entry.path())? {
            let path = file?.path();
            if path.is_file() {
                needs.components.extend(components(&String::from_utf8_lossy(&std::fs::read(path)?)));
            }
        }
    }
    Ok(needs)
}

/// The numbers under the key `ports`, on its line or indented below it.
fn ports(role: &str) -> Vec<u16> {
    let from = role.lines().skip_while(|line| !line.starts_with("ports:")).enumerate();
    let block = from.take_while(|(at, line)| *at == 0 || line.starts_with(' ')).map(|(_, line)| line.split('#').next().unwrap_or_default());
    block.flat_map(|line| line.split([',', '{', '}'])).filter_map(|pair| pair.rsplit_once(':')?.1.trim().parse().ok()).collect()
}

fn components(text: &str) -> Vec<String> {
    let beyond = |c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c);
    let paths = text.split(COMPONENTS).skip(1).filter_map(|rest| rest.split(beyond).next());
    paths.map(|path| path.trim_end_matches('/').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_and_components_of_the_shipped_roles_are_found() {
        let needs = needs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../roles")).unwrap();
        assert_eq!(needs.ports.keys().copied().collect::<Vec<_>>(), [2181, 2888, 3888, 7077, 7078, 8080, 8081, 9092]);
        assert_eq!((needs.ports[&9092].as_str(), needs.ports[&8080].as_str()), ("kafka", "spark-master"));
        let components: Vec<&str> = needs.components.iter().map(String::as_str).collect();
        assert_eq!(components, ["kafka/lib", "spark/bin/python", "spark/home", "spark/home/jars", "spark/jars", "zookeeper/lib"]);
    }

    #[test]
    fn ports_are_read_in_one_line_or_one_a_line() {
        assert_eq!(ports("command: [a]\nports: {client: 1, quorum: 2} # and 3: 3\nprobe:\n  tcp: {port: 4}\n"), [1, 2]);
        assert_eq!(ports("ports:\n  client: 1\n  quorum: 2 # not: 3\nprobe:\n  tcp: {port: 4}\n"), [1, 2]);
        assert_eq!(ports("summary: none\n"), Vec::<u16>::new());
    }
}
