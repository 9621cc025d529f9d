//! An instance that EC2 has forgotten: nothing proves its end but an admin's word, and that is taken only once it can be true. Real coordinators and `vpctl`.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    path::Path,
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

use vp_proto::v1::Heartbeat;
use vp_tests::{
    cell::{
        Cell,
        machine::{Machine, Witnesses},
    },
    region::programs,
    wait_until,
};
use vp_trust::Rank;

static CELL: OnceLock<Cell> = OnceLock::new();
const GONE: &str = "i-forgotten";

/// Coordinators die with this process; their folder is taken along.
extern "C" fn leave() {
    if let Some(cell) = CELL.get() {
        cell.leave();
    }
}

fn vpctl(cell: &Cell, admin: &Path, words: &[&str]) -> Output {
    let coordinators = [1, 2, 3].map(|id| cell.coordinator(id).to_string()).join(",");
    Command::new(programs().join("vpctl")).args(["--coordinators", &coordinators, "--certificate"]).arg(admin).args(words).output().unwrap()
}

/// Refused with these words.
fn refused(output: &Output, words: &str) -> bool {
    output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains(words)
}

/// The node's lifecycle; None: the cluster knows no such node.
fn lifecycle(cell: &Cell, admin: &Path) -> Option<String> {
    let nodes: serde_json::Value = serde_json::from_slice(&vpctl(cell, admin, &["nodes", "-o", "json"]).stdout).unwrap();
    let found = nodes.as_array().unwrap().iter().find(|node| node["instance"] == GONE)?;
    Some(found["lifecycle"].as_str().unwrap().to_owned())
}

#[test]
fn process_an_admins_word_stands_in_for_ec2s_once_ec2_has_forgotten_the_instance() {
    // SAFETY: the function takes nothing and returns nothing.
    unsafe { nix::libc::atexit(leave) };
    let cell = CELL.get_or_init(|| Cell::up().unwrap_or_else(|error| panic!("{error:?}")));
    let folder = tempfile::tempdir().unwrap();
    let admin = folder.path();
    cell.operator(Rank::Admin).unwrap().save(admin).unwrap();
    let word = || vpctl(cell, admin, &["gone", GONE, "--by", "ada"]);

    let enrolled = |id: &'static str| async move {
        let machine = Machine::launch(cell, id).unwrap();
        let own = machine.enrol(cell).await.unwrap();
        (machine, own)
    };
    // Two live on, so that one silent node is no reason for the brake.
    let living = cell.block_on(async { [enrolled("i-living1").await, enrolled("i-living2").await] });
    let witnesses = cell.block_on(Witnesses::watch(cell, &living)).unwrap();
    let session = cell.block_on(async {
        let (machine, own) = enrolled(GONE).await;
        let mut session = machine.session(cell, &own).await.unwrap();
        session.beat(Heartbeat::default(), Duration::from_secs(1)).await.unwrap();
        session
    });
    let output = word();
    assert!(refused(&output, "is not lost"), "{output:?}");

    drop(session);
    wait_until("it is lost", Duration::from_secs(30), || Ok((lifecycle(cell, admin).as_deref() == Some("lost")).then_some(()))).unwrap();
    let output = word();
    assert!(refused(&output, "EC2 has not said that it does not know"), "{output:?}");

    cell.aws.forget(GONE);
    let taken = wait_until("EC2 is asked again and the word is taken", Duration::from_secs(15), || Ok(Some(word()).filter(|output| output.status.success())));
    assert!(String::from_utf8_lossy(&taken.unwrap().stdout).contains("on the word of ada"));
    wait_until("it is forgotten here too", Duration::from_secs(10), || Ok(lifecycle(cell, admin).is_none().then_some(()))).unwrap();
    let events = vpctl(cell, admin, &["events"]);
    assert!(String::from_utf8_lossy(&events.stdout).contains("EC2 has forgotten it, and ada says it is gone"), "{events:?}");
    cell.block_on(witnesses.tell()).unwrap();
}
