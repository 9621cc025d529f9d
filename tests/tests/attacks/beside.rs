//! Honest agents beside the attacks that are no mass: three heartbeat from the first of these to the last, twenty times a second.
//!
//! An attack is to blame when, from its begin to its end, one of them is dropped or waits for half a lease. It is over in a moment, so how much slower they are
//! answered is judged over all so far, each heartbeat once: their p99 while attacks go on, over the quiet one before the first (`load::most_ratio`: `make attacks` has
//! them one after another and asks for the target). How it was during each by itself is told at the end there. Left out: attacks by the mass, which are judged one by one (`load`).

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vp_tests::cell::machine::{Latency, Machine};
use vp_trust::Credentials;

use super::load::{measured_for, most_ratio, strict};
use super::{QUIET, cell, honest};

/// Of so many heartbeats a p99 is judged.
const ENOUGH: usize = 1500;

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
        std::thread::sleep(measured_for()); // the span of the measurement
        let quiet = Latency::of(lock(&seen).beats.iter().map(|beat| beat.took).collect()).unwrap();
        Beside { seen, quiet, attacks: Mutex::default() }
    });
}

async fn heartbeats(machine: Machine, own: Credentials, seen: Arc<Mutex<Seen>>) {
    loop {
        if let Err(error) = session(&machine, &own, &seen).await {
            lock(&seen).failures.push((Instant::now(), format!("{}: {error:#}", machine.id)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // a pause before it is tried again
    }
}

/// Until it fails.
async fn session(machine: &Machine, own: &Credentials, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let noted = |sent, took| {
        lock(seen).beats.push(Beat { sent, took });
        false
    };
    machine.session(cell(), own).await?.beats(noted).await
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
    let mut attacks = lock(&beside.attacks);
    attacks.push(attack);
    if let Some(all) = beside.during(&attacks).filter(|all| all.beats >= ENOUGH) {
        let ratio = all.ratio(&beside.quiet);
        assert!(ratio <= most_ratio(), "beside attacks heartbeats have {ratio:.2} times their quiet p99, {} is the most", most_ratio());
    }
}

impl Beside {
    /// Heartbeats while any of these attacks went on; none: there was none.
    fn during(&self, attacks: &[Attack]) -> Option<Latency> {
        let under = |beat: &&Beat| attacks.iter().any(|attack| attack.overlaps(beat));
        Latency::of(lock(&self.seen).beats.iter().filter(under).map(|beat| beat.took).collect())
    }
}

/// A line of all, and, where the machine is quiet, one of each.
pub fn tell() {
    let Some(beside) = BESIDE.get() else { return };
    let attacks = lock(&beside.attacks);
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let line = |name: &str, of: &Latency| {
        format!("| {name} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {:.2} |\n", of.beats, ms(of.p50), ms(of.p99), ms(of.worst), of.ratio(&beside.quiet))
    };
    let mut table = "| beside | heartbeats | p50 | p99 | worst | p99 ratio |\n|---|---|---|---|---|---|\n".to_owned();
    table += &line("nothing", &beside.quiet);
    let each = attacks.iter().filter(|_| strict()).map(|attack| (attack.name.clone(), std::slice::from_ref(attack)));
    for (name, some) in each.chain([(format!("{} attacks", attacks.len()), &attacks[..])]) {
        table += &beside.during(some).map_or_else(String::new, |of| line(&name, &of));
    }
    if beside.during(&attacks).is_none_or(|all| all.beats < ENOUGH) {
        table += &format!("(not judged: {ENOUGH} heartbeats are needed for it)\n");
    }
    let _ = std::io::stdout().write_all(table.as_bytes());
}
