//! How an attack by the mass is judged. Honest agents heartbeat all the while: none is refused or dropped, and how much slower they are answered is told.
//!
//! An attacker brings processors of its own. Here there are only those that coordinators and honest agents run on, so attacks run at the lowest priority
//! (SCHED_IDLE): they get what the others leave, and what they cost shows in the work that they make for a coordinator.
//!
//! The figure is the p99 under attack over the quiet one. With `VP_ATTACK_P99` set (a quiet machine: `make attacks`) each attack is measured three times and
//! the median may be 2 at most. Without it one turn is enough when its ratio is 5 at most; a worse one is measured twice more, and the median judged.
//! An attack that does nothing proves nothing: what each does is counted, and there is a least. Attacks that are no mass: `beside`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, PoisonError};
use std::time::Duration;

use vp_tests::cell::machine::{Latency, Machine, Witnesses};
use vp_tests::wait_until;
use vp_trust::Credentials;

use super::{QUIET, cell, honest};

/// How long each is kept up; where the target is asked, long enough for a p99 that is not the third slowest heartbeat.
pub fn measured_for() -> Duration {
    Duration::from_secs(if strict() { 10 } else { 4 })
}
/// Turns whose median is judged.
const TURNS: usize = 3;
/// The target: p99 under attack over the quiet p99.
const TARGET: f64 = 2.0;
/// What a single turn may show on a machine that is not quiet. Beyond it something is wrong.
const GROSS: f64 = 5.0;
/// An attack's tasks end, and the coordinators give back what it held, within this.
pub const SETTLES: Duration = Duration::from_secs(20);
/// Descriptors that a coordinator may have more after an attack than before: segments of its log, connections to its peers.
const SLACK: usize = 32;

/// An attack, and how much of what it does it does at least in one turn: a bound that tells an attack from none, far below what one can do.
pub struct Attack {
    pub name: &'static str,
    pub does: &'static str,
    pub least: u64,
}

/// Whether the machine is said to be quiet, and the target is asked of it.
pub fn strict() -> bool {
    std::env::var_os("VP_ATTACK_P99").is_some()
}

/// The most that p99 under attack may be of the quiet one.
pub fn most_ratio() -> f64 {
    if strict() { TARGET } else { GROSS }
}

/// What an attack has done so far.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    pub fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Honest agents in quiet and under attack, once.
struct Turn {
    quiet: Latency,
    loud: Latency,
    done: u64,
}

impl Turn {
    fn ratio(&self) -> f64 {
        self.loud.ratio(&self.quiet)
    }
}

/// Measures honest agents in quiet and then under the attack that `begin` makes of the leader's address. It goes on until it is dropped.
pub fn under<F: Future<Output = ()> + Send + 'static>(attack: &Attack, begin: impl Fn(IpAddr, Count) -> F) {
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let machines: Vec<_> = (0..3).map(|number| cell().block_on(honest(&format!("i-{}-{number}", attack.name.replace(' ', "-"))))).collect();
    let before = cell().descriptors();
    let mut ratios: Vec<f64> = Vec::new();
    while ratios.is_empty() || (ratios.len() < TURNS && (strict() || ratios[0] > GROSS)) {
        let turn = turn(attack, &machines, &begin);
        tell(attack, &turn);
        assert!(turn.done >= attack.least, "{}: only {} {}, {} at least are an attack", attack.name, turn.done, attack.does, attack.least);
        settled(attack, &before);
        ratios.push(turn.ratio());
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let (median, most) = (ratios[ratios.len() / 2], most_ratio());
    assert!(median <= most, "{}: heartbeats have {median:.2} times their quiet p99 (median of {ratios:.2?}), {most} is the most", attack.name);
}

fn turn<F: Future<Output = ()> + Send + 'static>(attack: &Attack, machines: &[(Machine, Credentials)], begin: impl Fn(IpAddr, Count) -> F) -> Turn {
    // Asked here: attackers that ask for themselves would be a load that nobody means.
    let leader = cell().leader().unwrap();
    let quiet = watch(attack, machines);
    let (attackers, count) = (attackers(), Count::default());
    let task = attackers.spawn(begin(leader, count.clone()));
    let loud = watch(attack, machines);
    let (ended, done) = (task.is_finished(), count.get());
    attackers.shutdown_timeout(SETTLES);
    assert!(!ended, "{}: the attack ended by itself after {done} {}", attack.name, attack.does);
    Turn { quiet, loud, done }
}

fn watch(attack: &Attack, machines: &[(Machine, Credentials)]) -> Latency {
    cell().block_on(async {
        let witnesses = Witnesses::watch(cell(), machines).await.unwrap();
        tokio::time::sleep(measured_for()).await; // the span of the measurement
        witnesses.tell().await.unwrap_or_else(|error| panic!("{}: {error:#}\n{}", attack.name, cell().last_words()))
    })
}

/// One line of the table; and what a coordinator must be after each turn.
fn tell(attack: &Attack, turn: &Turn) {
    static HEAD: Once = Once::new();
    HEAD.call_once(|| {
        println!("| attack | quiet p50 | quiet p99 | p50 | p99 | worst | p99 ratio | done | largest coordinator, MiB |\n|---|---|---|---|---|---|---|---|---|");
    });
    let resident = cell().resident_mib().into_iter().max().unwrap_or(0);
    let ms = |span: Duration| format!("{:.1} ms", span.as_secs_f64() * 1000.0);
    let (Turn { quiet, loud, done }, ratio) = (turn, turn.ratio());
    println!(
        "| {} | {} | {} | {} | {} | {} | {ratio:.2} | {done} {} | {resident} |",
        attack.name,
        ms(quiet.p50),
        ms(quiet.p99),
        ms(loud.p50),
        ms(loud.p99),
        ms(loud.worst),
        attack.does
    );
    assert!(cell().all_live(), "{}", cell().last_words());
    assert!(resident <= 256, "{resident} MiB");
}

/// Waits until the coordinators hold no more than before: the next to be measured begins in quiet, and an attack leaves nothing behind.
fn settled(attack: &Attack, before: &[usize]) {
    let what = format!("what the {} held is given back", attack.name);
    wait_until(&what, SETTLES, || {
        let now = cell().descriptors();
        anyhow::ensure!(now.iter().zip(before).all(|(now, before)| *now <= before + SLACK), "{now:?} descriptors, {before:?} before");
        Ok(Some(()))
    })
    .unwrap();
}

/// Threads that run when nobody else wants to.
pub fn attackers() -> tokio::runtime::Runtime {
    let idle = || {
        let parameters = nix::libc::sched_param { sched_priority: 0 };
        // SAFETY: plain system call over a value of ours; 0 is the calling thread.
        assert_eq!(unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_IDLE, &raw const parameters) }, 0);
    };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(idle).build().unwrap()
}
