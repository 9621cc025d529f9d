//! More and fewer coordinators by an operator's word: real daemons, and `vpctl` as a person would use it. The pure rules are `vp-cluster`'s, and what dies in
//! between is `group_size`'s.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use vp_core_tests::{
    coordinators::{Coordinators, Wanted, zone},
    region::Region,
    root::now_s,
};
use vp_tests::{region::programs, wait_until};
use vp_trust::Rank;

/// N of 127.N.0.0/16.
const NETWORK: u8 = 47;
const PATIENCE: Duration = Duration::from_secs(60);

/// `vpctl` with an admin's certificate.
struct Operator {
    certificate: PathBuf,
    coordinators: String,
}

/// A coordinator that answers: number, member id and standing.
type Answering = (u64, u64, String);

impl Operator {
    fn call(&self, words: &[&str]) -> Output {
        let mut command = Command::new(programs().join("vpctl"));
        command.args(["--coordinators", &self.coordinators, "--certificate"]).arg(&self.certificate).args(words);
        command.output().unwrap()
    }

    fn order(&self, words: &[&str]) {
        let answer = self.call(words);
        assert!(answer.status.success(), "{words:?}: {answer:?}");
    }

    /// Those that answer, and who leads.
    fn group(&self) -> anyhow::Result<(Vec<Answering>, Option<u64>)> {
        let answer = self.call(&["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&answer.stdout).map_err(|error| anyhow::anyhow!("{error}: {answer:?}"))?;
        let listed = status["coordinators"].as_array().cloned().unwrap_or_default();
        let answering = listed.iter().filter(|one| one["reachable"] == true);
        let group = answering.filter_map(|one| Some((one["id"].as_u64()?, one["member"].as_u64()?, one["standing"].as_str()?.to_owned())));
        Ok((group.collect(), status["leader"].as_u64()))
    }

    /// Until those answer and vote, and one of them leads; their member ids by number.
    fn wait_voters(&self, numbers: &[u64]) -> BTreeMap<u64, u64> {
        wait_until(&format!("{numbers:?} vote"), PATIENCE, || {
            let (group, leader) = self.group()?;
            let vote = group.iter().map(|(number, ..)| *number).eq(numbers.iter().copied()) && group.iter().all(|(.., standing)| standing == "voter");
            anyhow::ensure!(vote && leader.is_some_and(|leader| numbers.contains(&leader)), "{group:?}, led by {leader:?}");
            Ok(Some(group.into_iter().map(|(number, member, _)| (number, member)).collect()))
        })
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn process_three_become_five_by_an_operators_word_stand_the_loss_of_two_and_become_three_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut region = Region::start(NETWORK).await.unwrap();
    let mut coordinators = Coordinators::start(&programs().join("vp-coordinator"), &mut region, Wanted::idle(), folder.path()).await.unwrap();
    let certificate = folder.path().join("ada");
    coordinators.root().operator(Rank::Admin, "ada", now_s()).unwrap().save(&certificate).unwrap();
    let addresses: Vec<String> = (0..3).map(|member| coordinators.address(member).ip().to_string()).collect();
    let operator = Operator { certificate, coordinators: addresses.join(",") };
    let founders = operator.wait_voters(&[1, 2, 3]);

    // An even number is refused, with what is allowed.
    let refused = operator.call(&["coordinators", "add", "4=127.0.0.4,us-east-1a,core-coordinator-4"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("use 1, 3 or 5"), "{refused:?}");

    let mut words = Vec::new();
    for number in [4, 5] {
        let member = coordinators.start_another(&mut region).await.unwrap();
        let address = coordinators.address(member).ip();
        words.push(format!("{number}={address},{},{}", zone(number), Coordinators::group(member)));
    }
    operator.order(&["coordinators", "add", &words[0], &words[1]]);
    let five = operator.wait_voters(&[1, 2, 3, 4, 5]);
    assert!(founders.iter().all(|(number, member)| five.get(number) == Some(member)), "{founders:?}, then {five:?}");

    // Of five two may go, the leader first.
    let leader = coordinators.leader(PATIENCE).await.unwrap();
    let gone = [leader, (leader + 1) % 5];
    for member in gone {
        coordinators.kill(member);
    }
    let left: Vec<u64> = (0..5).filter(|member| !gone.contains(member)).map(|member| member as u64 + 1).collect();
    operator.wait_voters(&left);
    for member in gone {
        coordinators.start_member(member).unwrap();
    }
    assert_eq!(operator.wait_voters(&[1, 2, 3, 4, 5]), five, "they are the members they were");

    operator.order(&["coordinators", "remove", "4", "5"]);
    assert_eq!(operator.wait_voters(&[1, 2, 3]), founders);
}
