//! The real agent binary against a coordinator that misbehaves on purpose, with small roles that are real processes.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod cluster;

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::hardship::Power;
use cluster::{Bed, alive, assignment, signal};
use nix::sys::signal::Signal;
use vp_proto::v1::{Assignment, Phase};

/// Writes a file its probe looks at, again and again; a child of its own in the same session, another in a session of its own.
const SOLID: &str = r#"summary: Keeps a file fresh.
fencing: exclusive
fenced_sinks: true
command: [sh, -c, "sleep 4001 & setsid sleep 4002 & while :; do echo \"beat=$VP_GENERATION\" > {{ run_dir }}/beat; sleep 0.1; done"]
stop: {signal: TERM, timeout_ms: 1000}
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "beat=(?<beat>[0-9]+)"}}
"#;

/// Does not end when asked.
const STUBBORN: &str = r#"summary: Ignores its stop signal.
fencing: quorum
command: [sh, -c, "trap '' TERM; while :; do echo beat=1 > {{ run_dir }}/beat; sleep 0.1; done"]
stop: {signal: TERM, timeout_ms: 300}
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "beat"}}
"#;

const CRASHING: &str = r#"summary: Ends at once.
fencing: quorum
command: [sh, -c, "echo run >> {{ log_dir }}/runs; exit 3"]
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "beat"}}
"#;

/// Leaves a temporary file, and says what it found where it left it.
const UNTIDY: &str = r#"summary: Leaves a file behind.
fencing: quorum
command: [sh, -c, "{ ls -A \"$TMPDIR\"; echo run; } >> {{ log_dir }}/found; mktemp; exit 3"]
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 3000, expect: "beat"}}
"#;

/// Says that it is well, ends, and says nothing the second time.
const ONCE: &str = r#"summary: Is well once.
fencing: quorum
command: [sh, -c, "echo run >> {{ log_dir }}/runs; [ $(wc -l < {{ log_dir }}/runs) = 1 ] || exec sleep 4001; echo beat > {{ run_dir }}/beat; exit 3"]
probe: {every_ms: 50, file: {path: "{{ run_dir }}/beat", max_age_ms: 600000, expect: "beat"}}
"#;

const SERVER: &str = r#"summary: Speaks a line protocol.
fencing: disposable
ports: {line: 2181}
command: [python3, -c, "import socket\ns=socket.create_server(('{{ node.address }}',{{ ports.line }}))\nwhile 1:\n c,_=s.accept(); c.recv(99); c.sendall(b'Mode: leader\\n'); c.close()"]
probe: {every_ms: 100, tcp: {port: 2181, send: "srvr\n", expect: "Mode: (?<mode>leader|follower)"}}
"#;

fn quorum() -> String {
    SOLID.replace("exclusive", "quorum").replace("fenced_sinks: true\n", "")
}

fn exclusive_running() -> (Bed, i32) {
    let mut bed = Bed::new(&[("solid", SOLID)]);
    bed.want(vec![assignment("solid", 7, "exclusive")]);
    let seen = bed.reported("solid-1", Phase::Healthy);
    assert_eq!(seen.facts.get("beat").map(String::as_str), Some("7"));
    (bed, seen.pid)
}

fn gone(bed: &Bed, since: Instant) {
    bed.dies_by_its_lease("solid-1", since);
}

/// Two roles under an agent that `restart` replaces: they must not notice.
fn adopts(bed: &mut Bed, restart: impl FnOnce(&mut Bed)) {
    bed.want(vec![assignment("solid", 7, "exclusive"), assignment("calm", 8, "quorum")]);
    let before = [bed.reported("solid-1", Phase::Healthy).pid, bed.reported("calm-1", Phase::Healthy).pid];
    let (sessions, first) = (bed.sessions(), bed.agent_pid());
    restart(bed);
    assert_ne!(bed.agent_pid(), first);
    bed.eventually("another session", || (bed.sessions() > sessions).then_some(()));
    // Well past the lease that the first agent held: the second one renews it.
    bed.outlive_a_lease();
    let after = [bed.reported("solid-1", Phase::Healthy), bed.reported("calm-1", Phase::Healthy)];
    assert_eq!(after.each_ref().map(|o| o.pid), before);
    assert!(before.into_iter().all(alive) && after.iter().all(|o| o.restarts == 0));
    let hellos = bed.script.hellos();
    assert_eq!(hellos[0].boot_id, hellos.last().unwrap().boot_id);
}

#[test]
fn an_agent_killed_and_started_again_adopts_its_roles_with_the_same_pids() {
    let quorum = quorum();
    adopts(&mut Bed::new(&[("solid", SOLID), ("calm", &quorum)]), |bed| {
        bed.kill_agent();
        bed.start_agent();
    });
}

#[test]
fn an_agent_asked_to_end_and_started_again_adopts_its_roles_with_the_same_pids() {
    let quorum = quorum();
    adopts(&mut Bed::new(&[("solid", SOLID), ("calm", &quorum)]), |bed| {
        bed.end_agent();
        bed.start_agent();
    });
}

/// Another file with the same content, dated a day ago.
fn install(at: &Path) {
    let (beside, day) = (at.with_extension("new"), Duration::from_secs(24 * 3600));
    std::fs::copy(env!("CARGO_BIN_EXE_vp-agent"), &beside).unwrap();
    std::fs::File::options().write(true).open(&beside).unwrap().set_modified(std::time::SystemTime::now() - day).unwrap();
    std::fs::rename(&beside, at).unwrap();
}

#[test]
fn an_agent_whose_program_is_replaced_adopts_its_roles_with_the_same_pids() {
    let quorum = quorum();
    let mut bed = Bed::new(&[("solid", SOLID), ("calm", &quorum)]);
    let program = bed.path("vp-agent");
    install(&program);
    bed.kill_agent();
    bed.program = program;
    bed.start_agent();
    let runs = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    adopts(&mut bed, |bed| {
        install(&bed.program);
        bed.end_agent();
        bed.start_agent();
        assert_eq!(runs(bed.agent_pid()), bed.program.canonicalize().unwrap());
    });
    let guard = bed.reported("solid-1", Phase::Healthy).pid;
    assert!(runs(guard).to_string_lossy().ends_with(" (deleted)"), "the guard is still of the program before: {:?}", runs(guard));
    // The new agent renews the old one's guard; without it the lease still ends.
    bed.stop_coordinator();
    gone(&bed, Instant::now());
}

/// Of the lines `NAME: VALUE` in a process's status.
fn status(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().to_owned()
}

/// Of capabilities(7), by its number.
fn may(pid: i32, capability: u32) -> bool {
    u64::from_str_radix(&status(pid, "CapEff"), 16).unwrap() >> capability & 1 == 1
}

const CAP_SYS_NICE: u32 = 23;
const CAP_SYS_RESOURCE: u32 = 24;

fn oom_score(pid: i32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

fn niceness(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The 19th field of proc_pid_stat(5); the name before the third may hold anything.
    text.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// What the rights of this process do not allow is a wish: then the roles still say more for themselves.
#[test]
fn agent_guard_and_deputy_outrank_the_roles_in_memory_and_on_the_processor() {
    let quorum = quorum();
    let mut bed = Bed::new(&[("solid", SOLID), ("calm", &quorum)]);
    bed.want(vec![assignment("solid", 7, "exclusive"), assignment("calm", 8, "quorum")]);
    let (guard, calm) = (bed.reported("solid-1", Phase::Healthy).pid, bed.reported("calm-1", Phase::Healthy).pid);
    let solid = *bed.processes("solid-1", "while").iter().find(|pid| **pid != guard).unwrap();
    let deputy = bed.processes("solid-1", "deputy")[0];
    let (agent, me) = (bed.agent_pid(), std::process::id() as i32);

    let spared = if may(me, CAP_SYS_RESOURCE) { -900 } else { oom_score(me) };
    assert_eq!([agent, guard, deputy, solid, calm].map(oom_score), [spared, spared, spared, 200, 200]);
    assert!(spared < 200, "{spared}");

    let own = niceness(me);
    let raised = if may(me, CAP_SYS_NICE) { 0 } else { own };
    assert_eq!([agent, guard, deputy, solid, calm].map(niceness), [own, raised, raised, 10, 10]);

    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let unlimited = limits.lines().any(|line| line.starts_with("Max locked memory") && line.contains("unlimited  "));
    let locks = [agent, guard, deputy].map(|pid| status(pid, "VmLck") != "0 kB");
    println!("may raise limits: {}, memory locked: {locks:?}", may(me, CAP_SYS_RESOURCE));
    assert_eq!(locks, [unlimited || may(me, CAP_SYS_RESOURCE); 3]);
}

#[test]
fn an_exclusive_role_outlives_a_killed_agent_by_its_lease_at_most() {
    let (mut bed, guard) = exclusive_running();
    assert!(!bed.processes("solid-1", "4002").is_empty(), "a child in a session of its own runs");
    bed.kill_agent();
    let killed = Instant::now();
    assert!(alive(guard));
    gone(&bed, killed);
}

#[test]
fn an_exclusive_role_outlives_a_frozen_agent_by_its_lease_at_most() {
    let (bed, _) = exclusive_running();
    signal(bed.agent_pid(), Signal::SIGSTOP);
    gone(&bed, Instant::now());
    signal(bed.agent_pid(), Signal::SIGCONT);
    // Thawed, it notices, and the next acknowledgement lets it start again.
    bed.reported("solid-1", Phase::Healthy);
}

#[test]
fn an_exclusive_role_dies_when_no_acknowledgement_comes_and_a_quorum_role_runs_on() {
    let quorum = quorum();
    let mut bed = Bed::new(&[("solid", SOLID), ("calm", &quorum)]);
    bed.want(vec![assignment("solid", 7, "exclusive"), assignment("calm", 8, "quorum")]);
    bed.reported("solid-1", Phase::Healthy);
    let calm = bed.reported("calm-1", Phase::Healthy).pid;
    bed.stop_coordinator();
    gone(&bed, Instant::now());
    assert!(alive(calm));
    // A crashed quorum role comes back although nobody leads.
    signal(calm, Signal::SIGKILL);
    bed.eventually("the quorum role is started again", || bed.processes("calm-1", "beat").into_iter().find(|pid| *pid != calm));
    assert!(bed.processes("solid-1", "").is_empty());
    bed.script.acknowledge(true);
    bed.start_coordinator();
    bed.reported("solid-1", Phase::Healthy);
}

/// No agent sees it: the agent stands still meanwhile. The role's own children die as well, one of them in a session of its own.
#[test]
fn the_role_and_what_it_started_die_with_their_guard_and_are_started_again() {
    let (bed, guard) = exclusive_running();
    signal(bed.agent_pid(), Signal::SIGSTOP);
    signal(guard, Signal::SIGKILL);
    bed.within(Duration::from_secs(1), "all died with their guard", || bed.processes("solid-1", "").is_empty().then_some(()));
    signal(bed.agent_pid(), Signal::SIGCONT);
    bed.eventually("it runs again under another guard", || {
        bed.script.observation("solid-1").filter(|o| o.phase() == Phase::Healthy && o.pid != guard && o.restarts == 1)
    });
}

/// Nobody would notice the guard's death any more; the agent goes on renewing.
#[test]
fn the_role_dies_with_its_guards_deputy_and_is_started_again() {
    let (bed, guard) = exclusive_running();
    let all = bed.processes("solid-1", "");
    let deputies = bed.processes("solid-1", "deputy");
    assert_eq!(deputies.len(), 1, "{deputies:?} of {all:?}");
    signal(deputies[0], Signal::SIGKILL);
    bed.within(Duration::from_secs(2), "all died with the deputy", || all.iter().all(|pid| !alive(*pid)).then_some(()));
    bed.eventually("it runs again under another guard", || {
        bed.script.observation("solid-1").filter(|o| o.phase() == Phase::Healthy && o.pid != guard && o.restarts == 1)
    });
}

/// A role may signal its whole group, itself in it.
#[test]
fn a_group_that_is_killed_as_one_leaves_nobody() {
    let (bed, guard) = exclusive_running();
    signal(bed.agent_pid(), Signal::SIGSTOP);
    signal(-guard, Signal::SIGKILL);
    bed.within(Duration::from_secs(1), "all died with their group", || bed.processes("solid-1", "").is_empty().then_some(()));
    signal(bed.agent_pid(), Signal::SIGCONT);
    bed.reported("solid-1", Phase::Healthy);
}

#[test]
fn an_exclusive_role_whose_program_is_missing_leaves_no_deputy() {
    let mut bed = Bed::new(&[("solid", &SOLID.replace("command: [sh", "command: [no-such-program"))]);
    bed.want(vec![assignment("solid", 7, "exclusive")]);
    bed.eventually("it failed and left nobody", || {
        let failed = bed.script.observation("solid-1").filter(|o| o.restarts > 0);
        failed.filter(|_| bed.processes("solid-1", "").is_empty())
    });
}

#[test]
fn an_exclusive_role_is_not_started_before_an_acknowledgement_names_it() {
    let mut bed = Bed::new(&[("solid", SOLID)]);
    bed.script.acknowledge(false);
    bed.want(vec![assignment("solid", 7, "exclusive")]);
    let seen = bed.reported("solid-1", Phase::Waiting);
    assert!(seen.message.contains("lease"), "{}", seen.message);
    assert!(bed.processes("solid-1", "").is_empty());
    bed.script.acknowledge(true);
    bed.reported("solid-1", Phase::Healthy);
}

#[test]
fn an_older_generation_and_an_older_set_are_refused_after_a_restart() {
    let quorum = quorum();
    let mut bed = Bed::new(&[("calm", &quorum)]);
    bed.want_at(5, vec![assignment("calm", 8, "quorum")]);
    let before = bed.reported("calm-1", Phase::Healthy);
    bed.kill_agent();
    // A stale leader's set: dropped whole, though it names nothing.
    bed.want_at(4, vec![]);
    let sessions = bed.sessions();
    bed.start_agent();
    bed.eventually("a session", || (bed.sessions() > sessions).then_some(()));
    bed.eventually("the older set is dropped", || std::fs::read_to_string(bed.path("agent.log")).ok().filter(|log| log.contains("older desired set dropped")));
    bed.reported("calm-1", Phase::Healthy);
    assert_eq!(bed.processes("calm-1", "while"), [before.pid]);
    // A newer set with an older generation: the newer one runs on, untouched.
    bed.want_at(6, vec![assignment("calm", 7, "quorum")]);
    bed.eventually("the set is taken", || std::fs::read_to_string(bed.path("root/agent/generations.json")).ok().filter(|t| t.contains("\"revision\": 6")));
    let seen = bed.reported("calm-1", Phase::Healthy);
    assert_eq!((seen.pid, seen.generation), (before.pid, 8));
}

#[test]
fn what_was_accepted_survives_the_loss_of_power() {
    let (quorum, power) = (quorum(), Power::new());
    let mut bed = Bed::new(&[("calm", &quorum)]);
    bed.kill_agent();
    bed.environment = power.environment("root/agent/generations.json");
    bed.start_agent();
    bed.want_at(5, vec![assignment("calm", 8, "quorum")]);
    bed.reported("calm-1", Phase::Healthy);
    bed.kill_agent();
    let kept = std::fs::read_to_string(bed.path("root/agent/generations.json")).unwrap();
    assert!(kept.contains("\"revision\": 5") && kept.contains("calm-1"), "{kept:?}");
}

#[test]
fn a_slot_with_a_volume_waits_until_it_is_attached() {
    let quorum = quorum().replace("fencing: quorum", "fencing: quorum\nvolume: true");
    let mut bed = Bed::new(&[("calm", &quorum)]);
    bed.want(vec![Assignment { volume_id: "vol-1".into(), ..assignment("calm", 8, "quorum") }]);
    let seen = bed.reported("calm-1", Phase::Waiting);
    assert!(seen.message.contains("vol-1"), "{}", seen.message);
    std::fs::create_dir(bed.path("volumes/vol-1")).unwrap();
    bed.reported("calm-1", Phase::Healthy);
    assert!(bed.path("volumes/vol-1/data").is_dir());
}

#[test]
fn a_slot_asked_to_stop_is_given_back_again_and_again_until_it_is_no_longer_named() {
    let mut bed = Bed::new(&[("stubborn", STUBBORN)]);
    bed.want(vec![assignment("stubborn", 8, "quorum")]);
    let pid = bed.reported("stubborn-1", Phase::Healthy).pid;
    bed.want(vec![Assignment { stop: true, ..assignment("stubborn", 8, "quorum") }]);
    bed.eventually("given back three times", || (bed.script.released().len() >= 3).then_some(()));
    assert!(bed.script.released().iter().all(|pair| *pair == ("stubborn-1".to_owned(), 8)));
    assert!(!alive(pid));
    bed.reported("stubborn-1", Phase::Stopped);
    // Our word binds us: the same generation is never started again, a later one is.
    bed.want(vec![assignment("stubborn", 8, "quorum")]);
    let refused = bed.reported("stubborn-1", Phase::Waiting);
    assert!(refused.message.contains("refused"), "{}", refused.message);
    bed.want(vec![assignment("stubborn", 9, "quorum")]);
    bed.reported("stubborn-1", Phase::Healthy);
    bed.want(vec![]);
    bed.eventually("no longer reported", || bed.script.observation("stubborn-1").is_none().then_some(()));
    assert!(bed.processes("stubborn-1", "").is_empty());
}

#[test]
fn a_crashing_role_is_started_again_with_growing_pauses() {
    let mut bed = Bed::new(&[("crashing", CRASHING)]);
    bed.want(vec![assignment("crashing", 8, "quorum")]);
    let begun = Instant::now();
    let runs = || std::fs::read_to_string(bed.path("root/slots/crashing-1/log/runs")).unwrap_or_default().lines().count();
    let seen = bed.reported("crashing-1", Phase::Backoff);
    assert!(seen.message.contains("code 3"), "{}", seen.message);
    bed.eventually("four runs", || (runs() >= 4).then_some(()));
    // 0.5 + 1 + 2 s lie between the first and the fourth.
    assert!(begun.elapsed() >= Duration::from_millis(3400), "{:?}", begun.elapsed());
    bed.eventually("restarts are counted", || bed.script.observation("crashing-1").filter(|o| o.restarts >= 3 && o.ends_in_a_row >= 4));
}

#[test]
fn what_an_earlier_process_said_of_itself_is_no_health_of_the_next() {
    let mut bed = Bed::new(&[("once", ONCE)]);
    bed.want(vec![assignment("once", 8, "quorum")]);
    let runs = |bed: &Bed| std::fs::read_to_string(bed.path("root/slots/once-1/log/runs")).unwrap_or_default().lines().count();
    bed.eventually("a second run", || (runs(&bed) == 2).then_some(()));
    assert!(!bed.path("root/slots/once-1/run/beat").exists());
    bed.eventually("it is asked", || {
        bed.script.observation("once-1").filter(|o| o.restarts == 1 && o.phase() == Phase::Starting && o.message.contains("beat"))
    });
}

#[test]
fn temporary_files_lie_in_the_slots_folder_and_are_gone_at_its_next_start() {
    let mut bed = Bed::new(&[("untidy", UNTIDY)]);
    bed.want(vec![assignment("untidy", 8, "quorum")]);
    let found = bed.eventually("a second run", || {
        std::fs::read_to_string(bed.path("root/slots/untidy-1/log/found")).ok().filter(|found| found.matches("run").count() >= 2)
    });
    assert!(found.lines().all(|line| line == "run"), "{found}");
    let left = |bed: &Bed| std::fs::read_dir(bed.path("root/slots/untidy-1/tmp")).map_or(0, Iterator::count);
    bed.eventually("its own file", || (left(&bed) == 1).then_some(()));
}

#[test]
fn what_the_probe_captured_is_reported_and_the_machine_measured() {
    let mut bed = Bed::new(&[("server", SERVER)]);
    bed.want(vec![assignment("server", 8, "disposable")]);
    let seen = bed.reported("server-1", Phase::Healthy);
    assert_eq!(seen.facts.get("mode").map(String::as_str), Some("leader"));
    assert!(bed.script.measures().memory_total_bytes > 0);
    let hosts = std::fs::read_to_string(bed.path("root/agent/hosts")).unwrap();
    assert!(hosts.contains("server-1"), "{hosts}");
}

#[test]
fn changed_params_without_a_new_generation_restart_nothing_and_a_new_generation_does() {
    let quorum = quorum();
    let mut bed = Bed::new(&[("calm", &quorum)]);
    bed.want(vec![assignment("calm", 8, "quorum")]);
    let first = bed.reported("calm-1", Phase::Healthy).pid;
    let mut changed = assignment("calm", 8, "quorum");
    changed.params.insert("ensemble".into(), "other".into());
    changed.start = false;
    bed.want(vec![changed, assignment("other", 9, "quorum")]);
    bed.eventually("the hosts file names the new member", || {
        std::fs::read_to_string(bed.path("root/agent/hosts")).ok().filter(|hosts| hosts.contains("other-1"))
    });
    let unknown = bed.reported("other-1", Phase::Waiting);
    assert!(unknown.message.contains("no such role"), "{}", unknown.message);
    assert_eq!(bed.reported("calm-1", Phase::Healthy).pid, first);
    bed.want(vec![assignment("calm", 10, "quorum")]);
    let second = bed.eventually("generation 10 is healthy", || bed.script.observation("calm-1").filter(|o| o.phase() == Phase::Healthy && o.generation == 10));
    assert_ne!(second.pid, first);
    assert!(!alive(first));
}

#[test]
fn a_followers_hint_leads_to_the_leader() {
    let bed = Bed::with_coordinators(&[], 3);
    bed.eventually("a session with the leader", || (!bed.script.hellos().is_empty()).then_some(()));
    let hello = &bed.script.hellos()[0];
    assert_eq!((hello.cluster.as_str(), hello.instance_id.as_str(), hello.memory_mib), ("t", "i-0test", 2048));
    assert_eq!(bed.followers_asked(), [1, 0], "the second follower is passed over");
}

#[test]
fn the_agent_is_small_with_five_roles() {
    let quorum = quorum();
    let names = ["one", "two", "three", "four", "five"];
    let mut bed = Bed::new(&names.map(|name| (name, quorum.as_str())));
    bed.want(names.map(|name| assignment(name, 8, "quorum")).into());
    for name in names {
        bed.reported(&format!("{name}-1"), Phase::Healthy);
    }
    let rss = bed.eventually("it measured itself", || Some(bed.script.measures().agent_rss_bytes).filter(|rss| *rss > 0));
    println!("resident with five roles, this build: {} KiB", rss / 1024);
    // The target of 20 MiB is for a release build; an unoptimized one is about twice that.
    assert!(rss < 40 * 1024 * 1024, "{rss}");
}
