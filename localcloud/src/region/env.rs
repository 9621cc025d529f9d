//! The exports with which programs that know nothing of vp reach the region.
//! Where ZooKeeper and the Spark masters are at this moment only the coordinators know: here every node is named, which their clients
//! accept (they try one after another); Kafka's brokers come from the object that the coordinators publish.

use std::path::Path;

use vp_cloud::Session;
use vp_cloud::s3::ObjectStore;
use vp_trust::Rank;

use super::{Record, trust};
use crate::keeper::launcher::Launcher;

/// The exports that follow what moves: brokers, ZooKeeper, Spark's masters.
const MOVING: [&str; 3] = ["KAFKA_BOOTSTRAP_SERVERS", "ZOOKEEPER_CONNECT", "SPARK_MASTER_URL"];

pub(super) async fn exports(record: &Record, state: &Path) -> Vec<(String, String)> {
    let nodes = node_addresses(record).await;
    let each = |port: u16| nodes.iter().map(|address| format!("{address}:{port}")).collect::<Vec<_>>().join(",");
    let brokers = brokers(record).await.unwrap_or_else(|| each(9092));
    let moving = MOVING.into_iter().zip([brokers, each(2181), format!("spark://{}", each(7077))]);
    fixed(record, state).into_iter().chain(moving).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The exports that do not change while a region lives, as a file for `source`.
pub(super) fn file(record: &Record, state: &Path) -> String {
    fixed(record, state).iter().map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''"))).collect()
}

fn fixed(record: &Record, state: &Path) -> Vec<(&'static str, String)> {
    let bucket = |which: &str| record.buckets.get(which).cloned().unwrap_or_default();
    vec![
        ("AWS_ENDPOINT_URL", record.endpoint_url.clone()),
        ("AWS_ENDPOINT_URL_S3", record.s3_endpoint_url.clone()),
        ("AWS_ACCESS_KEY_ID", record.access_key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY", record.secret_access_key.clone()),
        ("AWS_REGION", record.aws_region.clone()),
        ("AWS_DEFAULT_REGION", record.aws_region.clone()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        // Spark's own default, 1 GiB, is more than a small worker has, and the application would wait for ever.
        ("SPARK_EXECUTOR_MEMORY", "512m".to_owned()),
        ("VP_UPLOADS_BUCKET", bucket("uploads")),
        ("VP_RESULTS_BUCKET", bucket("results")),
        ("VP_CLUSTER_BUCKET", bucket("cluster")),
        ("VP_COORDINATORS", record.coordinators.join(",")),
        ("VP_CERTIFICATE", trust::operator(state, Rank::Admin).display().to_string()),
        ("VP_STATE", state.display().to_string()),
    ]
}

async fn node_addresses(record: &Record) -> Vec<String> {
    let listed = Launcher::new(&record.endpoint_url).instances().await.unwrap_or_default();
    let nodes = listed.into_iter().filter(|one| one.state == "running" && one.tags.get("aws:autoscaling:groupName") == Some(&record.nodes_group));
    nodes.map(|one| one.address).collect()
}

/// From the object that the leading coordinator keeps (contracts §5).
async fn brokers(record: &Record) -> Option<String> {
    let session = Session::load(record.endpoints()).await;
    let (body, _) = ObjectStore::new(&session).get(record.buckets.get("cluster")?, "kafka/brokers.json").await.ok()?;
    let object: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let names: Vec<&str> = object.get("brokers")?.as_array()?.iter().filter_map(serde_json::Value::as_str).collect();
    (!names.is_empty()).then(|| names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::{UpOptions, up};

    /// The names that clients and the README rely on: the list.
    #[test]
    fn every_export_that_foreign_clients_rely_on_is_there() {
        let state = Path::new("/tmp/x");
        let record = up::new_record(&UpOptions::new("dev", state.to_path_buf()), 20);
        let names: Vec<&str> = fixed(&record, state).into_iter().map(|(name, _)| name).chain(MOVING).collect();
        let promised = "AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION KAFKA_BOOTSTRAP_SERVERS ZOOKEEPER_CONNECT \
                        SPARK_MASTER_URL VP_UPLOADS_BUCKET VP_RESULTS_BUCKET VP_COORDINATORS";
        assert_eq!(promised.split_whitespace().filter(|name| !names.contains(name)).collect::<Vec<_>>(), Vec::<&str>::new());
    }

    #[test]
    fn demo_and_bench_forget_every_export_of_another_region() {
        let state = Path::new("/tmp/x");
        let record = up::new_record(&UpOptions::new("dev", state.to_path_buf()), 20);
        let names: Vec<&str> = fixed(&record, state).into_iter().map(|(name, _)| name).chain(MOVING).collect();
        for script in ["demo", "bench"] {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(script)).unwrap();
            let begin = text.find("AWS_ENDPOINT_URL ").unwrap_or_else(|| panic!("tests/{script} does not list the exports"));
            let listed: Vec<&str> = text[begin..].split_whitespace().filter(|word| *word != "\\").take(names.len()).collect();
            let forgotten: Vec<&&str> = names.iter().filter(|name| !listed.contains(name)).collect();
            assert!(forgotten.is_empty(), "tests/{script} keeps {forgotten:?}");
        }
    }
}
