//! Attacks by the mass. Honest agents heartbeat all the while: none is refused or dropped, and how much slower they are answered is told.
//!
//! An attacker brings processors of its own. Here there are only those that coordinators and honest agents run on, so attacks run at the lowest priority
//! (SCHED_IDLE): they get what the others leave, and what they cost shows in the work that they make for a coordinator.
//!
//! The figure (p99 under attack at most twice the quiet one) is a benchmark's; here it is printed, and the test fails only where an honest agent would:
//! a heartbeat that is not answered within half a lease.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Once, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use vp_proto::v1::EnrollRequest;
use vp_proto::v1::enrolment_client::EnrolmentClient;
use vp_proto::{COORDINATOR_PORT, ENROLMENT_PORT};
use vp_tests::cell::dial;
use vp_tests::cell::machine::{Latency, Witnesses};

use super::wire::{PREFACE, frame, raw};
use super::{QUIET, cell, honest};

/// How long each is kept up.
const WHILE: Duration = Duration::from_secs(4);

/// Measures honest agents in quiet and then under `attack`, which goes on until it is dropped.
fn under(name: &str, attack: impl Future<Output = ()> + Send + 'static) -> Latency {
    let _alone = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let (quiet, loud) = cell().block_on(async {
        let mut machines = Vec::new();
        for number in 0..3 {
            machines.push(honest(&format!("i-{}-{number}", name.replace(' ', "-"))).await);
        }
        let watch = async || {
            let witnesses = Witnesses::watch(cell(), &machines).await.unwrap();
            tokio::time::sleep(WHILE).await; // the span of the measurement
            witnesses.tell().await.unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", cell().last_words()))
        };
        let quiet = watch().await;
        let attackers = attackers();
        attackers.spawn(attack);
        let loud = watch().await;
        attackers.shutdown_background();
        (quiet, loud)
    });
    let resident = cell().resident_mib().into_iter().max().unwrap_or(0);
    static HEAD: Once = Once::new();
    HEAD.call_once(|| {
        println!("| attack | quiet p50 | quiet p99 | p50 | p99 | worst | p99 ratio | largest coordinator, MiB |\n|---|---|---|---|---|---|---|---|")
    });
    let ms = |span: Duration| format!("{:.1} ms", span.as_secs_f64() * 1000.0);
    let ratio = loud.p99.as_secs_f64() / quiet.p99.as_secs_f64();
    println!("| {name} | {} | {} | {} | {} | {} | {ratio:.2} | {resident} |", ms(quiet.p50), ms(quiet.p99), ms(loud.p50), ms(loud.p99), ms(loud.worst));
    assert!(cell().all_live(), "{}", cell().last_words());
    assert!(resident <= 256, "{resident} MiB");
    loud
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

async fn connect(from: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let coordinator = cell().leader_now().await.map_err(std::io::Error::other)?;
    socket.connect(SocketAddr::new(coordinator, port)).await
}

/// An attacker's address; there are as many as one likes.
fn attacker(number: usize) -> IpAddr {
    let cell = cell().elsewhere(0);
    let IpAddr::V4(base) = cell else { return cell };
    let [a, b, ..] = base.octets();
    IpAddr::from([a, b, 100 + (number / 250 % 100) as u8, 1 + (number % 250) as u8])
}

#[test]
fn ten_thousand_half_open_connections() {
    under("half-open", async {
        let leader = cell().leader_now().await.unwrap();
        let mut held = std::collections::VecDeque::new();
        for number in 0..usize::MAX {
            let socket = TcpSocket::new_v4().unwrap();
            let port = if number % 2 == 0 { COORDINATOR_PORT } else { ENROLMENT_PORT };
            if socket.bind(SocketAddr::new(attacker(number), 0)).is_ok()
                && let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), socket.connect(SocketAddr::new(leader, port))).await
            {
                held.push_back(stream);
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
    under("slow handshake", async {
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 256]].concat();
        let drips = (0..600).map(|number| {
            let hello = hello.clone();
            async move {
                loop {
                    let Ok(mut stream) = connect(attacker(number), COORDINATOR_PORT).await else { continue };
                    for byte in &hello {
                        if stream.write_all(&[*byte]).await.is_err() {
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
    under("handshake flood", async {
        let knocks = (0..8).map(|number| async move {
            loop {
                let way = cell().way(cell().leader_now().await.unwrap(), attacker(number), None).unwrap();
                if let Ok(stream) = connect(attacker(number), COORDINATOR_PORT).await {
                    let _ = tokio_rustls::TlsConnector::from(way.tls.clone()).connect(ServerName::IpAddress(way.to.ip().into()), stream).await;
                }
            }
        });
        futures::future::join_all(knocks).await;
    });
}

#[test]
fn garbage_from_everywhere() {
    under("garbage", async {
        let shouts = (0..16).map(|number| async move {
            for turn in 0_usize.. {
                let Ok(mut stream) = connect(attacker(number + turn * 16), [COORDINATOR_PORT, ENROLMENT_PORT][turn % 2]).await else { continue };
                let _ = stream.write_all(&[turn as u8; 4096]).await;
            }
        });
        futures::future::join_all(shouts).await;
    });
}

#[test]
fn rapid_resets_on_every_connection_one_may_have() {
    under("rapid reset", async {
        let floods = (0..8_u8).map(|number| async move {
            loop {
                let Ok(mut stream) = raw(80 + number).await else { continue };
                let _ = stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await;
                for id in 0..100_000_u32 {
                    let reset = [frame(1, 5, id * 2 + 1, &[0x83, 0x86, 0x84]), frame(3, 0, id * 2 + 1, &[0, 0, 0, 8])].concat();
                    if stream.write_all(&reset).await.is_err() {
                        break;
                    }
                }
            }
        });
        futures::future::join_all(floods).await;
    });
}

#[test]
fn enrolments_with_forged_documents_as_fast_as_they_go() {
    under("forged enrolments", async {
        let fresh = vp_trust::request::Fresh::new(&cell().name("i-many")).unwrap();
        let (document, signature) = cell().document("i-many", cell().elsewhere(90), "us-east-1", true).unwrap();
        let claim = EnrollRequest {
            cluster: vp_tests::cell::CLUSTER.into(),
            instance_id: "i-many".into(),
            address: cell().elsewhere(90).to_string(),
            identity_document: document,
            identity_signature: signature,
            certificate_request: fresh.der().to_vec(),
        };
        let asks = (0..8).map(|number| {
            let claim = claim.clone();
            async move {
                loop {
                    let way = cell().enrolment_way(cell().leader_now().await.unwrap(), attacker(number)).unwrap();
                    let Ok(channel) = dial(&way).await else { continue };
                    let mut client = EnrolmentClient::new(channel);
                    while client.enroll(claim.clone()).await.is_err_and(|status| status.code() == tonic::Code::PermissionDenied) {}
                }
            }
        });
        futures::future::join_all(asks).await;
    });
}

#[test]
fn streams_of_the_largest_messages() {
    under("oversized streams", async {
        let streams = (0..8_u8).map(|number| async move {
            let own = cell().authority.coordinator(2).unwrap();
            loop {
                let way = cell().way(cell().leader_now().await.unwrap(), cell().elsewhere(100 + number), Some(&own)).unwrap();
                let Ok(channel) = dial(&way).await else { continue };
                let envelope = vp_proto::v1::Envelope { cluster: "prod".into(), from: 2, to: 1, message: vec![0; 3 << 20] };
                let mut client = vp_proto::v1::peers_client::PeersClient::new(channel).max_encoding_message_size(8 << 20);
                let _ = client.send(tokio_stream::iter(std::iter::repeat_n(envelope, 64))).await;
            }
        });
        futures::future::join_all(streams).await;
    });
}
