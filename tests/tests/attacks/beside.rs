//! Honest agents beside the attacks that are no mass: three heartbeat from the first of these to the last, twenty times a second.
//!
//! An attack is to blame when, from its begin to its end, one of them is dropped or waits for half a lease. It is over in a moment, so how much slower they are
//! answered is judged over all so far, each heartbeat once: their p99 while attacks run side by side, over the quiet one before the first. How it was during each
//! by itself is told at the end where the machine is quiet (`make attacks`). Left out: attacks by the mass, which are judged one by one (`load`).

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vp_proto::v1::Heartbeat;
use vp_tests::cell::LEASE_MS;
use vp_tests::cell::machine::{Latency, Machine};
use vp_trust::Credentials;

use super::load::{GROSS, strict};
use super::{QUIET, cell, honest};

/// How long the quiet before the first attack is measured.
const QUIET_FOR: Duration = Duration::from_secs(4);
/// From one heartbeat to the next.
const EVERY: Duration = Duration::from_millis(50);
/// Of so many heartbeats a p99 is judged.
const ENOUGH: usize = 3000;

struct Beside {
    seen: Arc<Mutex<Seen>>,
    quiet: Latency,
    attacks: Mutex<Vec<Attack>>,
}

#[derive(Default)]
struct Seen {
    beats: Vec<Beat>,
    /// A session that ended, or a heartbeat that was not acknowledged in time.
    failures: Vec<(Instant, String)>,
}

#[derive(Clone, Copy)]
struct Beat {
    sent: Instant,
    took: Duration,
}

struct Attack {
    name: String,
    from: Instant,
    to: Instant,
}

impl Attack {
    fn overlaps(&self, beat: &Beat) -> bool {
        beat.sent < self.to && beat.sent + beat.took >= self.from
    }
}

static BESIDE: OnceLock<Beside> = OnceLock::new();

/// They are there from now on.
pub fn begin() {
    BESIDE.get_or_init(|| {
        let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
        let seen = Arc::new(Mutex::new(Seen::default()));
        for number in 0..3 {
            let (machine, own) = cell().block_on(honest(&format!("i-beside-{number}")));
            let seen = seen.clone();
            cell().block_on(async { drop(tokio::spawn(heartbeats(machine, own, seen))) });
        }
        std::thread::sleep(QUIET_FOR); // the span of the measurement
        let quiet = Latency::of(lock(&seen).beats.iter().map(|beat| beat.took).collect()).unwrap();
        Beside { seen, quiet, attacks: Mutex::default() }
    });
}

async fn heartbeats(machine: Machine, own: Credentials, seen: Arc<Mutex<Seen>>) {
    loop {
        let failed = session(&machine, &own, &seen).await;
        lock(&seen).failures.push((Instant::now(), format!("{}: {failed:#}", machine.id)));
        tokio::time::sleep(EVERY).await; // a pause before it is tried again
    }
}

/// Until it fails.
async fn session(machine: &Machine, own: &Credentials, seen: &Mutex<Seen>) -> anyhow::Error {
    let mut session = match machine.session(cell(), own).await {
        Ok(session) => session,
        Err(error) => return error,
    };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sent = Instant::now();
        match session.beat(Heartbeat::default(), Duration::from_millis(LEASE_MS / 2)).await {
            Ok((took, _)) => lock(seen).beats.push(Beat { sent, took }),
            Err(error) => return error,
        }
    }
}

fn lock<T>(place: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What they have noticed of the attack that this thread has made since `from`, and of all before it.
pub fn judge(from: Instant) {
    let Some(beside) = BESIDE.get() else { return };
    let attack = Attack { name: std::thread::current().name().unwrap_or_default().to_owned(), from, to: Instant::now() };
    let failed = lock(&beside.seen).failures.iter().find(|(at, _)| (attack.from..attack.to).contains(at)).map(|(_, error)| error.clone());
    if let Some(error) = failed {
        panic!("an honest agent noticed: {error}\n{}", cell().last_words());
    }
    lock(&beside.attacks).push(attack);
    if let Some(all) = beside.all().filter(|all| all.beats >= ENOUGH) {
        let ratio = beside.ratio(&all);
        assert!(ratio <= GROSS, "beside attacks heartbeats have {ratio:.2} times their quiet p99, {GROSS} is the most");
    }
}

impl Beside {
    fn all(&self) -> Option<Latency> {
        let attacks = lock(&self.attacks);
        let under = |beat: &&Beat| attacks.iter().any(|attack| attack.overlaps(beat));
        Latency::of(lock(&self.seen).beats.iter().filter(under).map(|beat| beat.took).collect())
    }

    fn during(&self, attack: &Attack) -> Option<Latency> {
        Latency::of(lock(&self.seen).beats.iter().filter(|beat| attack.overlaps(beat)).map(|beat| beat.took).collect())
    }

    fn ratio(&self, loud: &Latency) -> f64 {
        loud.p99.as_secs_f64() / self.quiet.p99.as_secs_f64()
    }
}

/// A line of all, and, where the machine is quiet, one of each.
pub fn tell() {
    let Some(beside) = BESIDE.get() else { return };
    let Some(all) = beside.all() else { return };
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let line = |name: &str, of: &Latency| {
        format!("| {name} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {:.2} |\n", of.beats, ms(of.p50), ms(of.p99), ms(of.worst), beside.ratio(of))
    };
    let attacks = lock(&beside.attacks);
    let mut table = "| beside | heartbeats | p50 | p99 | worst | p99 ratio |\n|---|---|---|---|---|---|\n".to_owned();
    table += &line("nothing", &beside.quiet);
    for attack in attacks.iter().filter(|_| strict()) {
        table += &beside.during(attack).map_or_else(String::new, |of| line(&attack.name, &of));
    }
    let count = attacks.len();
    drop(attacks);
    table += &line(&format!("{count} attacks, side by side"), &all);
    let _ = std::io::stdout().write_all(table.as_bytes());
}
