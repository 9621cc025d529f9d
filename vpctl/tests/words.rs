//! The real program: exit codes and errors for wrong words and for a cluster that is not there.

use std::path::{Path, PathBuf};
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
fn an_answer_that_cannot_be_written_is_a_failure_and_a_reader_that_went_away_is_none() {
    let completion = |out: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
        let child = command.args(["completion", "bash"]).stdin(std::process::Stdio::null()).stdout(out).stderr(std::process::Stdio::piped()).spawn();
        child.and_then(std::process::Child::wait_with_output).expect("vpctl runs")
    };
    let full = completion(std::fs::File::create("/dev/full").expect("every machine has one").into());
    assert!(full.status.code() == Some(1) && stderr(&full).contains("cannot be written"), "{full:?}");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(completion(writer.into()).status.code(), Some(0));
}

#[test]
fn a_state_folder_that_is_a_link_is_refused_and_left_alone() {
    let above = tempfile::tempdir().expect("a folder");
    let (folder, link) = (above.path().join("folder"), above.path().join("link"));
    std::fs::create_dir(&folder).and_then(|()| std::fs::write(folder.join("vp-region"), "")).expect("it can be made");
    std::os::unix::fs::symlink(&folder, &link).expect("it can be made");
    let output = vpctl(&["--state", &link.to_string_lossy(), "dev", "down"]);
    assert!(output.status.code() == Some(64) && stderr(&output).contains("is a link to"), "{output:?}");
    assert!(link.is_symlink() && folder.join("vp-region").exists());
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

/// Files below a folder with what they hold.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be listed").path())
        .map(|path| (path.clone(), std::fs::read_to_string(&path).expect("a file of text")))
        .collect();
    found.sort();
    found
}

fn vpctl_with_homes(state: &Path, homes: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpctl"));
    command.env("VP_STATE", state).env("XDG_STATE_HOME", homes).env("HOME", homes).args(words).output().expect("vpctl runs")
}

#[test]
fn a_region_that_is_named_outweighs_the_state_folder_of_the_environment() {
    let (other, homes) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // As a region that was cut off while it was made: its mark, and no record that says its name.
    std::fs::write(other.path().join("vp-region"), "a region's").expect("written");
    std::fs::write(other.path().join("letters"), "dear").expect("written");
    let before = files(other.path());
    let output = vpctl_with_homes(other.path(), homes.path(), &["--region-name", "demo", "dev", "down"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let named = homes.path().join("vp/demo").display().to_string();
    assert!(told.contains(&format!("no region in {named}: nothing to take away")), "{told}");
    assert_eq!(files(other.path()), before);
    assert_eq!(std::fs::read_dir(homes.path()).expect("it is there").count(), 0, "nothing was made");
}

#[test]
fn a_folder_that_is_no_regions_is_not_taken_away() {
    let (mine, homes) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::write(mine.path().join("letters"), "dear").expect("written");
    let before = files(mine.path());
    let folder = mine.path().to_str().expect("text");
    for words in [&["--state", folder, "dev", "down"][..], &["--state", folder, "--region-name", "dev", "dev", "down"]] {
        let output = vpctl_with_homes(homes.path(), homes.path(), words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(&format!("{folder} is not a region's folder")), "{words:?}: {}", stderr(&output));
        assert_eq!(files(mine.path()), before, "{words:?}");
    }
}

#[test]
fn a_spec_file_that_is_not_there_is_named_before_anything_is_started() {
    let homes = tempfile::tempdir().expect("a folder");
    let output = vpctl_with_homes(&homes.path().join("state"), homes.path(), &["dev", "up", "--spec", "/nonexistent/spec.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/spec.yaml: No such file"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(homes.path()).expect("it is there").count(), 0, "nothing was made");
}
