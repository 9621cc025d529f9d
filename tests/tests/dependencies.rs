//! Who may depend on whom: the house's plan, held against `cargo metadata`. A wrong edge fails here, whatever it is used for.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// A crate and the workspace crates it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("vp-cluster", &[]),
    ("vp-proto", &[]),
    ("vp-trust", &[]),
    ("vp-cloud", &[]),
    ("vp-agent", &["vp-proto", "vp-trust"]),
    ("vp-coordinator", &["vp-cloud", "vp-cluster", "vp-proto", "vp-trust"]),
    ("vp-jobs", &[]),
    ("vp-ingest", &["vp-cloud", "vp-jobs"]),
    ("vp-publish", &["vp-cloud", "vp-jobs"]),
    ("vp-localcloud", &["vp-cloud", "vp-trust"]),
    ("vpctl", &["vp-cloud", "vp-jobs", "vp-localcloud", "vp-proto", "vp-trust"]),
    ("vp-sim", &["vp-agent", "vp-cloud", "vp-cluster", "vp-coordinator", "vp-proto"]),
    ("vp-core-tests", &["vp-agent", "vp-cluster", "vp-coordinator", "vp-proto", "vp-trust"]),
    ("vp-tests", &["vp-agent", "vp-cloud", "vp-cluster", "vp-coordinator", "vp-core-tests", "vp-jobs", "vp-localcloud", "vp-proto", "vp-trust"]),
];

/// Judgement uses nothing but the standard library, thiserror and (behind a feature) serde's derives.
const CLUSTER_MAY_USE: &[&str] = &["serde", "thiserror"];

fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut edges = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let normal = package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"].is_null());
        let names = normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect();
        edges.insert(package["name"].as_str().unwrap().to_owned(), names);
    }
    edges
}

/// The first edge that the plan does not have.
fn wrong_edge(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let plan: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for (name, uses) in edges {
        let Some(allowed) = plan.get(name.as_str()) else { return Some(format!("{name} is not in the plan of the house")) };
        for used in uses {
            if edges.contains_key(used) && !allowed.contains(&used.as_str()) {
                return Some(format!("{name} -> {used}"));
            }
            if used.starts_with("aws-sdk-") && name != "vp-cloud" {
                return Some(format!("{name} -> {used}: only vp-cloud links the AWS SDKs"));
            }
            if name == "vp-cluster" && !CLUSTER_MAY_USE.contains(&used.as_str()) {
                return Some(format!("vp-cluster -> {used}: judgement does no I/O"));
            }
        }
    }
    None
}

#[test]
fn nobody_depends_on_what_the_plan_does_not_allow() {
    assert_eq!(wrong_edge(&edges()), None);
}

#[test]
fn an_agent_that_links_the_cloud_is_noticed() {
    let mut edges = edges();
    edges.get_mut("vp-agent").unwrap().insert("vp-cloud".to_owned());
    assert_eq!(wrong_edge(&edges).as_deref(), Some("vp-agent -> vp-cloud"));
}

#[test]
fn judgement_that_reads_a_clock_crate_is_noticed() {
    let mut edges = edges();
    edges.get_mut("vp-cluster").unwrap().insert("tokio".to_owned());
    assert!(wrong_edge(&edges).unwrap().contains("judgement does no I/O"));
}
