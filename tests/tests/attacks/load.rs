//! Attacks by the mass. Honest agents heartbeat all the while: none is refused or dropped, and how much slower they are answered is told and judged.
//!
//! An attacker brings processors of its own. Here there are only those that coordinators and honest agents run on, so attacks run at the lowest priority
//! (SCHED_IDLE): they get what the others leave, and what they cost shows in the work that they make for a coordinator.
//!
//! The figure is the p99 under attack over the quiet one. With `VP_ATTACK_P99` set (a quiet machine: `make attacks`) each attack is measured three times and
//! the median may be 2 at most. Without it one turn is enough when its ratio is 5 at most; a worse one is measured twice more, and the median judged.
//! An attack that does nothing proves nothing: what each does is counted, and there is a least.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;
use vp_proto::v1::EnrollRequest;
use vp_proto::v1::enrolment_client::EnrolmentClient;
use vp_proto::{COORDINATOR_PORT, ENROLMENT_PORT};
use vp_tests::cell::machine::{Latency, Machine, Witnesses};
use vp_tests::cell::{self, dial};
use vp_tests::wait_until;
use vp_trust::{Credentials, DialError};

use super::wire::{PREFACE, frame, raw_to};
use super::{QUIET, cell, honest};

/// How long each is kept up.
const WHILE: Duration = Duration::from_secs(4);
/// Turns whose median is judged.
const TURNS: usize = 3;
/// The target: p99 under attack over the quiet p99.
const TARGET: f64 = 2.0;
/// What a single turn may show on a machine that is not quiet. Beyond it something is wrong.
const GROSS: f64 = 5.0;
/// An attack's tasks end, and the coordinators give back what it held, within this.
const SETTLES: Duration = Duration::from_secs(20);
/// Descriptors that a coordinator may have more after an attack than before: segments of its log, connections to its peers.
const SLACK: usize = 32;

/// An attack, and how much of what it does it does at least in one turn: a bound that tells an attack from none, far below what one can do.
struct Attack {
    name: &'static str,
    does: &'static str,
    least: u64,
}

/// What an attack has done so far.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
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
        self.loud.p99.as_secs_f64() / self.quiet.p99.as_secs_f64()
    }
}

/// Measures honest agents in quiet and then under the attack that `begin` makes of the leader's address. It goes on until it is dropped.
fn under<F: Future<Output = ()> + Send + 'static>(attack: &Attack, begin: impl Fn(IpAddr, Count) -> F) {
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let machines: Vec<_> = (0..3).map(|number| cell().block_on(honest(&format!("i-{}-{number}", attack.name.replace(' ', "-"))))).collect();
    let strict = std::env::var_os("VP_ATTACK_P99").is_some();
    let before = cell().descriptors();
    let mut ratios: Vec<f64> = Vec::new();
    while ratios.is_empty() || (ratios.len() < TURNS && (strict || ratios[0] > GROSS)) {
        let turn = turn(attack, &machines, &begin);
        tell(attack, &turn);
        assert!(turn.done >= attack.least, "{}: only {} {}, {} at least are an attack", attack.name, turn.done, attack.does, attack.least);
        settled(attack, &before);
        ratios.push(turn.ratio());
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let (median, most) = (ratios[ratios.len() / 2], if strict { TARGET } else { GROSS });
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
        tokio::time::sleep(WHILE).await; // the span of the measurement
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
fn attackers() -> tokio::runtime::Runtime {
    let idle = || {
        let parameters = nix::libc::sched_param { sched_priority: 0 };
        // SAFETY: plain system call over a value of ours; 0 is the calling thread.
        assert_eq!(unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_IDLE, &raw const parameters) }, 0);
    };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(idle).build().unwrap()
}

/// A connection, or none: then others have had their turn, so that an attack that fails at once can still be ended.
async fn connect(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let connected = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(to).await
    };
    let connected = tokio::time::timeout(Duration::from_millis(500), connected).await;
    if !matches!(connected, Ok(Ok(_))) {
        tokio::task::yield_now().await;
    }
    connected.ok()?.ok()
}

/// An attacker's address; there are as many as one likes.
fn attacker(number: usize) -> IpAddr {
    let cell = cell().elsewhere(0);
    let IpAddr::V4(base) = cell else { return cell };
    let [a, b, ..] = base.octets();
    IpAddr::from([a, b, 100 + (number / 250 % 100) as u8, 1 + (number % 250) as u8])
}

/// One of the two doors.
fn door(leader: IpAddr, number: usize) -> SocketAddr {
    SocketAddr::new(leader, [COORDINATOR_PORT, ENROLMENT_PORT][number % 2])
}

#[test]
fn ten_thousand_half_open_connections() {
    under(&Attack { name: "half-open", does: "connections", least: 1000 }, |leader, connections| async move {
        let mut held = std::collections::VecDeque::new();
        for number in 0..usize::MAX {
            if let Some(stream) = connect(attacker(number), door(leader, number)).await {
                held.push_back(stream);
                connections.one_more();
            }
            // As many as this process may hold beside its own; the coordinator has long closed the oldest.
            if held.len() > 10_000 {
                held.pop_front();
            }
            if number % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn handshakes_that_drip_byte_by_byte() {
    under(&Attack { name: "slow handshake", does: "handshakes cut short", least: 100 }, |leader, cut| async move {
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 256]].concat();
        let drips = (0..600).map(|number| {
            let (hello, cut) = (hello.clone(), cut.clone());
            async move {
                loop {
                    let Some(mut stream) = connect(attacker(number), door(leader, 0)).await else { continue };
                    for byte in &hello {
                        if stream.write_all(&[*byte]).await.is_err() {
                            cut.one_more();
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await; // the attack's own pace
                    }
                }
            }
        });
        futures::future::join_all(drips).await;
    });
}

#[test]
fn handshakes_without_a_certificate_one_after_another() {
    under(&Attack { name: "handshake flood", does: "handshakes refused", least: 50 }, |leader, refused| async move {
        let knocks = (0..12).map(|number| {
            let refused = refused.clone();
            async move {
                let way = cell().way(leader, attacker(number), None).unwrap();
                loop {
                    match dial(&way).await {
                        Err(DialError::Refused { .. }) => refused.one_more(),
                        _ => tokio::task::yield_now().await,
                    }
                }
            }
        });
        futures::future::join_all(knocks).await;
    });
}

#[test]
fn garbage_from_everywhere() {
    under(&Attack { name: "garbage", does: "connections closed", least: 200 }, |leader, closed| async move {
        let shouts = (0..32).map(|number| {
            let closed = closed.clone();
            async move {
                for turn in 0_usize.. {
                    let Some(mut stream) = connect(attacker(number + turn * 32), door(leader, turn)).await else { continue };
                    if stream.write_all(&[turn as u8; 4096]).await.is_ok() {
                        // An alert at most, and the end.
                        let mut said = Vec::new();
                        let _ = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut said)).await.map(|_| closed.one_more());
                    }
                }
            }
        });
        futures::future::join_all(shouts).await;
    });
}

#[test]
fn rapid_resets_on_every_connection_one_may_have() {
    under(&Attack { name: "rapid reset", does: "streams reset", least: 500 }, |leader, resets| async move {
        let floods = (0..8_u8).map(|number| {
            let resets = resets.clone();
            async move {
                loop {
                    let Ok(mut stream) = raw_to(leader, 80 + number).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let _ = stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await;
                    for id in 0..100_000_u32 {
                        let reset = [frame(1, 5, id * 2 + 1, &[0x83, 0x86, 0x84]), frame(3, 0, id * 2 + 1, &[0, 0, 0, 8])].concat();
                        if stream.write_all(&reset).await.is_err() {
                            break;
                        }
                        resets.one_more();
                    }
                }
            }
        });
        futures::future::join_all(floods).await;
    });
}

#[test]
fn enrolments_with_forged_documents_as_fast_as_they_go() {
    under(&Attack { name: "forged enrolments", does: "enrolments refused", least: 100 }, |leader, refused| async move {
        let fresh = vp_trust::request::Fresh::new(&cell().name("i-many")).unwrap();
        let (document, signature) = cell().document("i-many", cell().elsewhere(90), "us-east-1", true).unwrap();
        let claim = EnrollRequest {
            cluster: cell::CLUSTER.into(),
            instance_id: "i-many".into(),
            address: cell().elsewhere(90).to_string(),
            identity_document: document,
            identity_signature: signature,
            certificate_request: fresh.der().to_vec(),
        };
        let asks = (0..8).map(|number| {
            let (claim, refused) = (claim.clone(), refused.clone());
            async move {
                let way = cell().enrolment_way(leader, attacker(number)).unwrap();
                loop {
                    let Ok(channel) = dial(&way).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let mut client = EnrolmentClient::new(channel);
                    while client.enroll(claim.clone()).await.is_err_and(|status| status.code() == Code::PermissionDenied) {
                        refused.one_more();
                    }
                }
            }
        });
        futures::future::join_all(asks).await;
    });
}

#[test]
fn streams_of_the_largest_messages() {
    under(&Attack { name: "oversized streams", does: "streams refused", least: 10 }, |leader, refused| async move {
        let streams = (0..8_u8).map(|number| {
            let refused = refused.clone();
            async move {
                let own = cell().authority.coordinator(2).unwrap();
                let way = cell().way(leader, cell().elsewhere(100 + number), Some(&own)).unwrap();
                loop {
                    let Ok(channel) = dial(&way).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let envelope = vp_proto::v1::Envelope { cluster: "prod".into(), from: 2, to: 1, message: vec![0; 3 << 20] };
                    let mut client = vp_proto::v1::peers_client::PeersClient::new(channel).max_encoding_message_size(8 << 20);
                    let answer = client.send(tokio_stream::iter(std::iter::repeat_n(envelope, 64))).await;
                    if answer.is_err_and(|status| status.code() == Code::PermissionDenied) {
                        refused.one_more();
                    }
                }
            }
        });
        futures::future::join_all(streams).await;
    });
}
