//! Attacks below gRPC, under a true certificate: HTTP/2 that never comes to the point. Raw frames, by hand.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use vp_trust::{Rank, Way};

use super::{attack, cell};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;

/// A header block: `:method POST`, `:scheme http`, `:path /`, by HPACK's static table, without Huffman.
const BLOCK: &[u8] = &[0x83, 0x86, 0x84];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// TLS to a coordinator as a person; nothing is said in HTTP/2 yet.
pub async fn raw_to(coordinator: IpAddr, host: u8) -> std::io::Result<TlsStream<TcpStream>> {
    let own = cell().operator(Rank::Viewer).unwrap();
    let Way { to, from, tls, .. } = cell().way(coordinator, cell().elsewhere(host), Some(&own)).unwrap();
    let socket = TcpSocket::new_v4()?;
    socket.bind((from.unwrap(), 0).into())?;
    tokio_rustls::TlsConnector::from(tls).connect(ServerName::IpAddress(to.ip().into()), socket.connect(to).await?).await
}

/// As [`raw_to`], to the first coordinator.
async fn raw(host: u8) -> std::io::Result<TlsStream<TcpStream>> {
    raw_to(cell().coordinator(1), host).await
}

/// Waits until the other side has hung up; how long that took.
pub async fn until_closed(stream: &mut TlsStream<TcpStream>, within: Duration) -> Duration {
    let begun = Instant::now();
    let mut sink = vec![0; 16 * 1024];
    let closed = async { while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {} };
    tokio::time::timeout(within, closed).await.expect("the coordinator hangs up");
    begun.elapsed()
}

async fn begun(host: u8) -> TlsStream<TcpStream> {
    let mut stream = raw(host).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// The bound is told at once; whoever goes beyond it breaks the protocol (RFC 9113, 5.1.2).
#[test]
fn how_many_streams_a_connection_may_have_is_said_before_anything_else() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    attack(async {
        let mut stream = begun(59).await;
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[3], SETTINGS);
        let mut settings = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut settings).await.unwrap();
        let said = settings.chunks_exact(6).find(|one| u16::from_be_bytes([one[0], one[1]]) == MAX_CONCURRENT_STREAMS);
        let said = said.map(|one| u32::from_be_bytes([one[2], one[3], one[4], one[5]]));
        assert_eq!(said, Some(vp_coordinator::api::limits::STREAMS));
    });
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    attack(async {
        let mut stream = raw(60).await.unwrap();
        until_closed(&mut stream, Duration::from_secs(9)).await;
    });
}

#[test]
fn a_connection_that_asks_for_nothing_is_closed() {
    attack(async {
        let mut stream = begun(61).await;
        until_closed(&mut stream, Duration::from_secs(9)).await;
    });
}

/// Whoever keeps the others from enrolling has to come back for each connection every two seconds.
#[test]
fn a_stranger_that_asks_for_nothing_is_closed_soon() {
    attack(async {
        let Way { to, from, tls, .. } = cell().enrolment_way(cell().coordinator(1), cell().elsewhere(68)).unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from.unwrap(), 0).into()).unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, socket.connect(to).await.unwrap()).await.unwrap();
        until_closed(&mut stream, Duration::from_secs(5)).await;
    });
}

#[test]
fn a_caller_that_reads_nothing_is_closed_though_it_never_lets_the_coordinator_read() {
    attack(async {
        let mut stream = begun(59).await;
        // Each ping wants an answer, which is not read: soon the coordinator can write no more, and reads no more either.
        let pings = frame(PING, 0, 0, &[7; 8]).repeat(4096);
        let endless = async { while stream.write_all(&pings).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(15), endless).await.expect("the coordinator hangs up");
    });
}

#[test]
fn headers_that_drip_byte_by_byte_end_the_connection() {
    attack(async {
        let (mut read, mut write) = tokio::io::split(begun(62).await);
        let drip = tokio::spawn(async move {
            let block = frame(HEADERS, END_STREAM_AND_HEADERS, 1, &[BLOCK, &[0; 1000]].concat());
            for byte in block {
                if write.write_all(&[byte]).await.and(write.flush().await).is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await; // the attack's own pace
            }
        });
        let mut sink = vec![0; 1024];
        let closed = async { while matches!(read.read(&mut sink).await, Ok(read) if read > 0) {} };
        tokio::time::timeout(Duration::from_secs(9), closed).await.expect("the coordinator hangs up");
        drip.abort();
    });
}

/// Writes the same frames until the other side has had enough.
async fn flood(host: u8, frames: impl Fn(u32) -> Vec<u8>) {
    let mut stream = begun(host).await;
    let attack = async {
        for number in 0..200_000_u32 {
            if stream.write_all(&frames(number * 2 + 1)).await.is_err() {
                return;
            }
        }
        // It took all of it; then it must hang up on a caller that never asked for anything it may.
        until_closed(&mut stream, Duration::from_secs(9)).await;
    };
    tokio::time::timeout(Duration::from_secs(30), attack).await.expect("the coordinator hangs up");
}

#[test]
fn streams_that_are_reset_as_soon_as_they_are_opened_end_the_connection() {
    attack(flood(63, |stream| [frame(HEADERS, END_STREAM_AND_HEADERS, stream, BLOCK), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()));
}

#[test]
fn headers_that_never_end_end_the_connection() {
    attack(async {
        let mut stream = begun(64).await;
        stream.write_all(&frame(HEADERS, 1, 1, BLOCK)).await.unwrap();
        let endless = async {
            // A literal header that nobody indexes, again and again.
            let header = [&[0x00, 0x01, b'x', 0x7F, 0x81, 0x07][..], &[b'v'; 1024]].concat();
            while stream.write_all(&frame(CONTINUATION, 0, 1, &header)).await.is_ok() {}
        };
        tokio::time::timeout(Duration::from_secs(20), endless).await.expect("the coordinator hangs up");
    });
}

#[test]
fn floods_of_pings_settings_and_empty_frames_end_the_connection() {
    attack(async {
        flood(65, |_| frame(PING, 0, 0, &[7; 8])).await;
        flood(66, |_| frame(SETTINGS, 0, 0, &[])).await;
        flood(67, |stream| frame(0, 0, stream, &[])).await;
    });
}

#[test]
fn frames_that_are_none_end_the_connection() {
    attack(async {
        for payload in [vec![0xFF; 4096], frame(HEADERS, 4, 0, BLOCK), frame(HEADERS, 4, 2, BLOCK), frame(SETTINGS, 0, 0, &[1]), frame(0x7F, 0xFF, 1, &[0; 9])]
        {
            let mut stream = begun(68).await;
            let _ = stream.write_all(&payload).await;
            until_closed(&mut stream, Duration::from_secs(9)).await;
        }
    });
}

#[test]
fn one_address_gets_no_more_than_its_share_of_connections() {
    attack(async {
        let mut held = Vec::new();
        for _ in 0..80 {
            match raw(69).await {
                Ok(stream) => held.push(stream),
                Err(_) => break,
            }
        }
        assert!((32..=64).contains(&held.len()), "{} connections", held.len());
        // Another address is not affected.
        raw(70).await.unwrap();
    });
}
