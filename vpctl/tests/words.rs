//! The real program: exit codes and errors for wrong words and for a cluster that is not there.

use std::process::{Command, Output};
use std::sync::LazyLock;

use vp_trust::{Authority, Rank};

/// A person's certificate, of a cluster that does not exist.
static CERTIFICATE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let ada = Authority::create("dev").and_then(|authority| authority.operator(Rank::Admin, "ada", 1_800_000_000)).expect("randomness");
    ada.save(folder.path()).expect("the folder can be written");
    folder
});

fn vpctl(words: &[&str]) -> Output {
    let state = std::env::temp_dir().join("vpctl-words-no-region");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
    for name in ["VP_COORDINATORS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "VP_UPLOADS_BUCKET", "VP_RESULTS_BUCKET"] {
        command.env_remove(name);
    }
    command.env("VP_STATE", state).env("VP_CERTIFICATE", CERTIFICATE.path()).args(words).output().expect("vpctl runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_words_end_with_64_and_name_what_is_wrong() {
    let cases: [(&[&str], &str); 17] = [
        (&[], "Usage"),
        (&["statsu"], "statsu"),
        (&["submit"], "FILE"),
        (&["status", "-o", "xml"], "xml"),
        (&["explain", "kafka", "--coordinators", "127.0.0.1:1"], "ROLE-INDEX"),
        (&["status", "--coordinators", "http://127.0.0.1"], "HOST:PORT"),
        (&["submit", "a.mp4", "--output", "out"], "--wait"),
        (&["drill", "i-1", "--role", "kafka"], "--role"),
        (&["dev", "up", "--network", "7"], "20..=254"),
        (&["drain", "i-1", "--undo", "--wait"], "--undo"),
        (&["jobs", "show"], "JOB"),
        (&["move", "kafka", "--coordinators", "127.0.0.1:1"], "ROLE-INDEX"),
        (&["move", "kafka-1", "--undo", "--empty-disk"], "--undo"),
        (&["scale", "zookeeper"], "COUNT"),
        (&["scale", "zookeeper", "many"], "many"),
        (&["apply"], "--file"),
        (&["brake"], "release"),
    ];
    for (words, named) in cases {
        let output = vpctl(words);
        assert_eq!(output.status.code(), Some(64), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{words:?}: {}", stderr(&output));
    }
}

#[test]
fn help_and_version_are_answers() {
    for words in [&["--help"][..], &["--version"], &["submit", "--help"]] {
        let output = vpctl(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(!output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn help_is_narrow_and_begins_with_what_is_the_commands_own() {
    for words in [
        &[][..],
        &["status"],
        &["events"],
        &["drain"],
        &["move"],
        &["scale"],
        &["brake", "release"],
        &["submit"],
        &["drill"],
        &["jobs", "fetch"],
        &["dev", "up"],
        &["dev", "logs"],
    ] {
        let output = vpctl(&[words, &["--help"]].concat());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let longest = help.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
        assert!(longest.chars().count() <= 100, "{words:?}: {longest}");
        let (own, everywhere) = help.split_once("Everywhere:").expect("a heading of the options that all have");
        assert!(!own.contains("--region-name") && everywhere.contains("--region-name"), "{help}");
    }
}

#[test]
fn without_a_cluster_each_command_ends_with_1_and_says_how_to_get_one() {
    for words in [&["status"][..], &["nodes"], &["plan"], &["jobs", "list"], &["drill"], &["submit", "a.mp4"]] {
        let output = vpctl(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(stderr(&output).contains("vpctl dev up"), "{words:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{words:?}: an error is no answer");
    }
}

#[test]
fn a_coordinator_that_does_not_answer_is_named_with_the_reason() {
    // Port 1 of the loopback network: nobody listens there.
    let output = vpctl(&["status", "--coordinators", "127.38.0.9:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("127.38.0.9:1: connection refused"), "{}", stderr(&output));
    assert!(!stderr(&output).contains('\u{1b}'), "no colours off a terminal");
}

#[test]
fn without_a_certificate_the_error_says_how_to_name_one() {
    let state = std::env::temp_dir().join("vpctl-words-no-region");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
    command.env("VP_STATE", state).env_remove("VP_CERTIFICATE").args(["status", "--coordinators", "127.38.0.9:1"]);
    let output = command.output().expect("vpctl runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no certificate") && stderr(&output).contains("--certificate"), "{}", stderr(&output));
}

#[test]
fn a_file_that_is_not_there_is_named_before_anything_is_uploaded() {
    let words = ["submit", "/nonexistent/clip.mp4"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
    command.env("AWS_ENDPOINT_URL_S3", "http://127.38.0.9:1").env("VP_UPLOADS_BUCKET", "u").env("VP_RESULTS_BUCKET", "r");
    let output = command.args(words).output().expect("vpctl runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/clip.mp4: No such file"), "{}", stderr(&output));
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = vpctl(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("drill"), "{shell}");
    }
}
