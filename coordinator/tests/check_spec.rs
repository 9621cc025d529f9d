//! `vp-coordinator check-spec`, the real program: what it refuses, with which words, and that it is otherwise silent.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

const WELL: &str = "roles:\n  zookeeper: {min: 3, pref: 3, max: 5}\n  kafka: {pref: 3}\nvolume_wait_ms: 60000\n";

fn coordinator(words: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vp-coordinator"));
    command.args(words).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that ends before it has read everything is judged by what it says.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn check(input: &str, more: &[&str]) -> (Option<i32>, String) {
    let roles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../roles");
    let output = coordinator(&[&["check-spec", "--roles", roles.to_str().unwrap()][..], more].concat(), input);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{input}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_spec_that_is_well_ends_with_0_and_not_a_word() {
    for input in [WELL, "---\nroles:\n  kafka: {pref: 3}\n", "zookeeper_pref_nodes: 5\nzookeeper_max_nodes: 5\nssh_path: /usr/bin/ssh\n"] {
        assert_eq!(check(input, &["--lease-ms", "2000"]), (Some(0), String::new()), "{input}");
    }
}

#[test]
fn a_spec_that_is_wrong_ends_with_1_and_one_line_that_says_what() {
    for (from, to, said) in [
        ("{pref: 3}", "{perf: 3}", "line 3, column 11: unknown field `perf`, expected one of min, pref, max"),
        ("volume_wait_ms", "volume_wait", "line 4, column 1: unknown field `volume_wait`"),
        ("60000", "[", "line "),
        ("kafka", "kafak", "'kafak', which the catalogue in "),
        ("min: 3", "min: 4", "zookeeper: min 4 <= pref 3 <= max 5 does not hold"),
        ("pref: 3, max", "pref: 4, max", "zookeeper: an even number of voters (4)"),
        ("volume_wait_ms", "sources_per_minute: 0\nvolume_wait_ms", "sources_per_minute is 0"),
        ("{pref: 3}", "{pref: 1001}", "kafka: 1001 slots are more than a role can have"),
    ] {
        let (code, told) = check(&WELL.replacen(from, to, 1), &[]);
        assert_eq!(code, Some(1), "{to}: {told}");
        assert!(told.contains(said) && told.lines().count() == 1, "{to}: {told}");
    }
}

/// Taken for no spec at all, it was put into the log anew several times a second.
#[test]
fn a_spec_that_wants_nothing_is_refused() {
    for input in ["", "roles: {}\n", "volume_wait_ms: 60000\n"] {
        let (code, told) = check(input, &[]);
        assert!(code == Some(1) && told.contains("wants no role") && told.lines().count() == 1, "{input:?}: {told}");
    }
}

#[test]
fn a_lease_is_held_against_the_coordinators_own_bounds() {
    for (lease_ms, code, said) in
        [("1999", 1, "lease_ms is 1999; allowed are 2000 to 60000\n"), ("2000", 0, ""), ("60001", 1, "lease_ms is 60001; allowed are 2000 to 60000\n")]
    {
        assert_eq!(check(WELL, &["--lease-ms", lease_ms]), (Some(code), said.to_owned()));
    }
}

#[test]
fn a_catalogue_that_is_not_there_is_named_with_the_reason() {
    let output = coordinator(&["check-spec", "--roles", "/nonexistent/roles"], WELL);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("/nonexistent/roles: No such file"), "{told}");
}

#[test]
fn without_words_it_is_the_daemon_that_asks_its_environment() {
    let output = coordinator(&[], "");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("VP_INSTANCE_ROOT"), "{told}");
}
