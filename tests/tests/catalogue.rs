//! The role catalogue as it is shipped: every role loads, renders on instances of different sizes, and the walk-through in
//! `docs/adding-a-role.md` is true word for word. What the roles do once started is left to the tests of whole regions.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vp_agent::{
    catalogue::{self, Catalogue},
    machine,
    render::{Context, Member, Rendered, Renderer, SlotContext},
    settings::{Aws, Buckets, Node},
};
use vp_cluster::{RoleName, state::Fencing};
use vp_coordinator::settings::SpecFile;
use vp_localcloud::keeper::instance_types;
use vp_tests::example::{self, ROLE};

fn clone() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the clone").to_owned()
}

/// What an agent on an instance with so much memory would render `role` from.
fn context(catalogue: &Catalogue, role: &str, memory_mib: u32) -> Context {
    let members = |role: &str| {
        let member = |index: u32| Member {
            name: format!("{role}-{index}"),
            index,
            member_id: index,
            address: format!("127.36.{index}.20"),
            zone: "us-east-1a".into(),
            generation: 7,
        };
        (role.to_owned(), (1..=3).map(member).collect::<Vec<_>>())
    };
    let ensemble = (1..=3).map(|id| format!("server.{id}=127.36.{id}.20:2888:3888:participant;127.36.{id}.20:2181")).collect::<Vec<_>>().join("\n");
    let params = [("join", "founder"), ("initialize", "true"), ("super_digest", "super:abc="), ("ensemble", &ensemble)];
    Context {
        slot: SlotContext { role: role.into(), index: 2, name: format!("{role}-2"), generation: 42, member_id: 2 },
        node: Node {
            instance_id: "i-1".into(),
            address: [127, 36, 2, 20].into(),
            zone: "us-east-1b".into(),
            instance_type: "t3.small".into(),
            vcpus: 2,
            memory_mib,
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
        java: Some("/java".into()),
        members: catalogue.keys().map(|role| members(role)).collect(),
        params: params.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    }
}

fn rendered(catalogue: &Catalogue, role: &str, memory_mib: u32) -> Rendered {
    let ports: &BTreeMap<String, u16> = &catalogue[role].ports;
    let renderer = Renderer::new(&context(catalogue, role, memory_mib), ports);
    renderer.role(&catalogue[role]).unwrap_or_else(|error| panic!("{role}: {error}"))
}

fn shipped() -> Catalogue {
    catalogue::load(&clone().join("roles")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_shipped_role_loads_and_renders() {
    let catalogue = shipped();
    for role in ["kafka", "spark-master", "spark-worker", "stream", "zookeeper"] {
        assert!(catalogue.contains_key(role), "{role} is shipped");
    }
    // Also of a role that somebody has just added.
    for role in catalogue.keys() {
        let rendered = rendered(&catalogue, role, 2048);
        assert!(rendered.command.iter().all(|word| !word.contains("{{")), "{role}: {:?}", rendered.command);
        // Most of them are JVMs or start some: nothing of theirs is to lie in the machine's /tmp.
        let options = &rendered.environment["JDK_JAVA_OPTIONS"];
        assert!(options.contains("-Djava.io.tmpdir=/t ") && options.contains("-XX:+PerfDisableSharedMem"), "{role}: {options}");
    }
}

#[test]
fn kafka_finds_zookeeper_by_the_names_of_its_slots() {
    let text = &rendered(&shipped(), "kafka", 2048).files["server.properties"];
    assert!(text.lines().any(|line| line == "zookeeper.connect=zookeeper-1:2181,zookeeper-2:2181,zookeeper-3:2181"), "{text}");
    assert!(text.lines().any(|line| line == "broker.id=2"), "{text}");
    assert!(text.lines().any(|line| line == "broker.rack=us-east-1b"), "{text}");
}

#[test]
fn the_streaming_job_finds_kafka_and_spark_by_the_names_of_their_slots() {
    let environment = rendered(&shipped(), "stream", 2048).environment;
    assert_eq!(environment["VP_KAFKA_BROKER_NAMES"], "kafka-1:9092,kafka-2:9092,kafka-3:9092");
    assert!(environment["VP_SPARK_MASTER"].starts_with("spark://spark-master-1:7077"), "{environment:?}");
}

#[test]
fn only_a_first_creation_lets_an_empty_zookeeper_disk_vote() {
    let catalogue = shipped();
    let start = |initialize: &str| {
        let mut context = context(&catalogue, "zookeeper", 2048);
        context.params.insert("initialize".into(), initialize.into());
        Renderer::new(&context, &catalogue["zookeeper"].ports).role(&catalogue["zookeeper"]).expect("it renders").files["start.sh"].clone()
    };
    let makes = ": >\"$data/initialize\"";
    assert!(start("true").contains(makes));
    assert!(!start("false").contains(makes));
    assert!(start("false").contains("-Dzookeeper.db.autocreate=false"));
}

#[test]
fn a_bigger_instance_makes_bigger_roles() {
    let catalogue = shipped();
    let heap = |memory_mib| rendered(&catalogue, "kafka", memory_mib).command.into_iter().find(|word| word.starts_with("-Xmx")).expect("a heap size");
    assert_eq!(heap(2048), "-Xmx341m");
    assert_eq!(heap(8192), "-Xmx1365m");
    let worker = |vcpus, memory_mib| {
        let mut context = context(&catalogue, "spark-worker", memory_mib);
        context.node.vcpus = vcpus;
        let command = Renderer::new(&context, &catalogue["spark-worker"].ports).role(&catalogue["spark-worker"]).expect("it renders").command;
        ["--cores", "--memory"].map(|flag| command[command.iter().position(|word| word == flag).expect("a flag") + 1].clone())
    };
    assert_eq!(worker(2, 2048), ["2", "768m"]);
    assert_eq!(worker(8, 32_768), ["8", "12288m"]);
}

#[test]
fn every_instance_type_of_a_local_region_is_as_large_for_the_agent_as_for_the_region() {
    for name in instance_types::known() {
        let theirs = instance_types::size(name).map(|size| (size.vcpus, size.memory_mib));
        assert_eq!(machine::size_of_type(name).map(|size| (size.vcpus, u64::from(size.memory_mib))), theirs, "{name}");
    }
}

/// A folder of links to the shipped roles, with the walk-through's own beside them.
fn with_the_new_role(folder: &Path) -> PathBuf {
    let roles = folder.join("roles");
    example::roles(&roles, &clone().join("roles")).unwrap_or_else(|error| panic!("{error:#}"));
    roles
}

#[test]
fn the_role_of_the_walk_through_is_added_by_adding_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let catalogue = catalogue::load(&with_the_new_role(folder.path())).unwrap_or_else(|error| panic!("{error}"));
    let mut expected = shipped();
    expected.remove(ROLE);
    assert_eq!(catalogue.len(), expected.len() + 1);
    let rendered = rendered(&catalogue, ROLE, 2048);
    assert_eq!(rendered.command.last().map(String::as_str), Some("8090"));
    let page = &rendered.files["index.html"];
    assert!(page.contains("generation 42") && page.contains("kafka-3: 127.36.3.20 in us-east-1a"), "{page}");
}

#[test]
fn the_coordinators_take_the_role_of_the_walk_through_from_the_same_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let roles = with_the_new_role(folder.path());
    let wanted = serde_json::json!({"roles": {"zookeeper": {"pref": 3}, "kafka": {"pref": 3}, (ROLE): {"pref": 1}}});
    let wanted: SpecFile = serde_json::from_value(wanted).expect("a spec");
    let spec = vp_coordinator::catalogue::spec(&roles, &wanted).unwrap_or_else(|error| panic!("{error}"));
    let new = &spec.roles[&RoleName::from(ROLE)];
    assert_eq!((new.pref, new.fencing, new.volume, new.spread_zones, new.memory_mib), (1, Fencing::Disposable, false, false, 40));
    assert_eq!(new.after, [RoleName::from("zookeeper")]);

    let wanted: SpecFile = serde_json::from_value(serde_json::json!({"roles": {"nowhere": {"pref": 1}}})).expect("a spec");
    let refused = vp_coordinator::catalogue::spec(&roles, &wanted).expect_err("no folder has that name").to_string();
    assert!(refused.contains("nowhere") && refused.contains(ROLE) && refused.contains("zookeeper"), "{refused}");
}

#[test]
fn a_mistake_in_a_role_is_refused_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let new = folder.path().join("status-page");
    fs::create_dir(&new).expect("made");
    let (role, template) = example::page().expect("the page is there");
    fs::write(new.join("role.yaml"), role.replace("fencing: disposable", "fencing: perhaps")).expect("written");
    fs::write(new.join("index.html.j2"), template).expect("written");
    let error = catalogue::load(folder.path()).expect_err("it must be refused").to_string();
    assert!(error.contains("status-page/role.yaml") && error.contains("line 2") && error.contains("exclusive"), "{error}");
}
