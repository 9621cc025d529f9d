//! The region as a whole: two side by side, up twice, down twice and half-way, and not one packet to elsewhere.

use std::path::Path;
use std::process::Command;

use vp_localcloud::process;
use vp_localcloud::region::{DownOptions, Progress, Region, RegionError, down};

use crate::bed::{BOOT, Bed, options, sleepers, until};

/// Processes that name the folder in their command line or environment.
fn left(folder: &Path) -> Vec<i32> {
    let text = folder.as_os_str().as_encoded_bytes().to_vec();
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    process::find(|arguments, environment| holds(environment) || arguments.iter().any(|one| holds(one.as_encoded_bytes()))).iter().map(|one| one.pid).collect()
}

#[tokio::test]
async fn process_two_regions_side_by_side_do_not_disturb_each_other() {
    let (one, two) = (Bed::up(136, 1).await, Bed::up(137, 1).await);
    let (here, there) = (one.booted(1).await.remove(0), two.booted(1).await.remove(0));
    assert!(here.address.starts_with("127.136.") && there.address.starts_with("127.137."));
    let sleeping = sleepers(&two.root(&there.id));
    let gone = one.state().to_path_buf();
    drop(one);
    assert!(!gone.exists() && left(&gone).is_empty());
    assert!(two.region.status().await.unwrap().healthy());
    assert!(sleeping.iter().all(process::alive));
    assert_eq!(two.booted(1).await[0].id, there.id);
}

#[tokio::test]
async fn process_up_again_changes_nothing_and_a_lost_service_is_repaired() {
    let bed = Bed::up(138, 2).await;
    let before = bed.booted(2).await;
    let mut changed = Vec::new();
    let mut note = |progress| {
        if let Progress::Done { step, changed: true, .. } = progress {
            changed.push(step);
        }
    };
    let again = Region::up(&bed.options, &mut note).await.unwrap();
    assert_eq!(changed, Vec::<&str>::new());
    assert_eq!(again.record(), bed.region.record());
    process::kill(&bed.region.record().services["s3"]).await.unwrap();
    assert!(!bed.region.status().await.unwrap().healthy());
    changed.clear();
    let mut note = |progress| {
        if let Progress::Done { step, changed: true, .. } = progress {
            changed.push(step);
        }
    };
    let repaired = Region::up(&bed.options, &mut note).await.unwrap();
    assert_eq!(changed, ["s3"]);
    assert!(repaired.status().await.unwrap().healthy());
    assert_eq!(bed.booted(2).await.iter().map(|one| one.pid).collect::<Vec<_>>(), before.iter().map(|one| one.pid).collect::<Vec<_>>());
}

#[tokio::test]
async fn process_down_leaves_nothing_also_without_the_record_and_a_second_time() {
    let bed = Bed::up(139, 2).await;
    bed.booted(2).await;
    let state = bed.state().to_path_buf();
    std::fs::remove_file(state.join("region.json")).unwrap();
    down(&state, &DownOptions::default(), &mut |_| ()).await.unwrap();
    assert!(!state.exists());
    assert_eq!(left(&state), Vec::<i32>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*state.to_string_lossy()));
    for hierarchy in ["cpu", "memory", "pids", "."] {
        assert!(!Path::new("/sys/fs/cgroup").join(hierarchy).join("vp-test-139").exists(), "{hierarchy}");
    }
    down(&state, &DownOptions::default(), &mut |_| ()).await.unwrap();
    assert!(matches!(Region::open(&state), Err(RegionError::Absent(_))));
}

#[tokio::test]
async fn process_up_after_an_interrupted_up_takes_over_what_was_started_but_not_recorded() {
    let bed = Bed::up(143, 0).await;
    let mut record = bed.region.record().clone();
    let lost = record.services.remove("s3").unwrap();
    record.save(bed.state()).unwrap();
    let region = Region::up(&bed.options, &mut |_| ()).await.unwrap();
    assert!(!process::alive(&lost));
    assert!(region.status().await.unwrap().healthy());
}

/// In a network namespace whose only way out is a counted interface: whatever is not for this machine is counted there.
#[test]
fn process_a_region_sends_no_packet_to_link_local_or_any_other_machine() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not checked: a network namespace of its own needs root");
        return;
    }
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // The kernel greets its IPv6 neighbours by itself; that is not ours to count.
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            if Path::new(&path).exists() {
                std::fs::write(path, "1").unwrap();
            }
        }
        for line in [
            "link set lo up",
            "link add out0 type veth peer in0",
            "link set in0 up",
            "link set out0 arp off up",
            "addr add 10.255.0.1/24 dev out0",
            "route add default dev out0",
        ] {
            assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
        }
        let sent = || -> u64 {
            let answer = Command::new("ip").args(["-s", "-j", "link", "show", "out0"]).output().unwrap();
            let parsed: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
            parsed[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
        };
        let before = sent();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bed = Bed::up(140, 2).await;
            let one = bed.booted(2).await.remove(0);
            bed.compute.terminate(&one.id).await.unwrap();
            until("terminated", || async { (bed.state_of(&one.id).await == "terminated").then_some(()) }).await;
        });
        assert_eq!(sent() - before, 0, "packets that left the machine");
        // The counter counts: one packet to a link-local address is one.
        std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "169.254.10.1:80").unwrap();
        assert_eq!(sent() - before, 1);
    })
    .join()
    .unwrap();
}

#[tokio::test]
async fn process_another_network_for_a_living_region_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::up(141, 0).await;
    let mut other = bed.options.clone();
    other.network = Some(142);
    let error = Region::up(&other, &mut |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("141") && error.contains("142"), "{error}");
    let elsewhere = options(folder.path(), 141, 0, BOOT);
    let error = Region::up(&elsewhere, &mut |_| ()).await.unwrap_err().to_string();
    assert!(error.contains("127.141.0.2:5000 is busy"), "{error}");
    assert!(!elsewhere.state.exists(), "nothing was started");
}
