//! The first three coordinators of a cluster, real daemons, lose their power in their first starts, all of them, at one change of the disk after the other; what
//! was not synced is gone. They make one cluster all the same. (Deaths between their calls of S3 are `bootstrap`'s.)
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use vp_core_tests::{
    coordinators::{Coordinators, Wanted},
    group::MEMBERS,
    region::Region,
};
use vp_tests::region::programs;

/// N of 127.N.0.0/16.
const NETWORK: u8 = 48;
/// Clusters that are founded, each under other deaths.
const CLUSTERS: usize = 6;
/// Deaths that each coordinator of each is sent.
const DEATHS: usize = 3;
/// A first start that is not disturbed changes the disk about so often until its member votes.
const CHANGES: usize = 17;
/// A start that has changed the disk less often by then waits for others: it is killed as it stands.
const START: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

fn lossy(folder: &Path) -> PathBuf {
    let library = folder.join("lossy.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coordinator/tests/data/lossy.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).args(["-ldl", "-lpthread"]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// Starts all three, each to die at its own change of the disk; how many did before they were killed.
async fn cut_off(coordinators: &mut Coordinators, library: &Path, at: [usize; MEMBERS]) -> usize {
    for (member, at) in at.into_iter().enumerate() {
        let environment = [("LD_PRELOAD", &*library.to_string_lossy()), ("VP_LOSSY_TOO", "joined.json"), ("VP_LOSSY_DIES_AT", &at.to_string())];
        coordinators.start_member_with(member, &environment).unwrap();
    }
    let begun = Instant::now();
    let dead = |coordinators: &mut Coordinators| (0..MEMBERS).filter(|member| coordinators.process_mut(*member).is_some_and(|one| !one.runs())).count();
    while dead(coordinators) < MEMBERS && begun.elapsed() < START {
        sleep(Duration::from_millis(10)).await;
    }
    let by_the_cut = |how: String| how.contains("SIGKILL");
    let died = (0..MEMBERS).filter(|member| coordinators.process_mut(*member).and_then(|one| one.ended()).is_some_and(by_the_cut)).count();
    (0..MEMBERS).for_each(|member| coordinators.kill(member));
    died
}

async fn founding(number: usize, library: &Path) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut region = Region::start(NETWORK).await.unwrap();
    let mut coordinators = Coordinators::placed(&programs().join("vp-coordinator"), &mut region, Wanted::idle(), folder.path(), Vec::new()).await.unwrap();
    let mut died = 0;
    for death in 0..DEATHS {
        // Every change is met by each member in one of the clusters, beside others of the others.
        let at = std::array::from_fn(|member| 1 + (number * DEATHS + death + member * 5) % CHANGES);
        died += cut_off(&mut coordinators, library, at).await;
    }
    for member in 0..MEMBERS {
        coordinators.start_member(member).unwrap();
    }
    coordinators.founded(&region, PATIENCE).await.unwrap();
    coordinators.agreed(PATIENCE).await.unwrap();
    died
}

#[tokio::test(flavor = "multi_thread")]
async fn process_three_whose_power_goes_at_any_change_of_their_disks_in_their_first_starts_make_one_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let library = lossy(folder.path());
    let mut died = 0;
    for number in 0..CLUSTERS {
        died += founding(number, &library).await;
    }
    let sent = CLUSTERS * DEATHS * MEMBERS;
    println!("{died} of {sent} died at a change of the disk");
    assert!(died > sent / 2, "only {died} of {sent} deaths came at a change of the disk");
}
