//! Instances live and die as the control API says, and it never says more than is true.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;
use vp_localcloud::process;
use vp_localcloud::region::RecordedProcess;

use crate::bed::{BOOT, Bed, signal, sleepers, until};

#[tokio::test]
async fn process_an_instance_boots_once_isolated_with_the_agreed_environment() {
    let bed = Bed::up(31, 3).await;
    let booted = bed.booted(3).await;
    let zones: BTreeSet<_> = booted.iter().map(|one| one.zone.clone()).collect();
    assert_eq!(zones.len(), 3, "one instance a zone");
    for one in &booted {
        let root = bed.root(&one.id);
        assert_eq!(std::fs::read_to_string(root.join("boots")).unwrap(), "booted\n");
        let environment = std::fs::read_to_string(root.join("environment")).unwrap();
        let names: BTreeSet<_> =
            environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).filter(|name| !matches!(*name, "PWD" | "SHLVL" | "_")).collect();
        let agreed = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_REGION", "HOME", "PATH", "VP_COMPONENTS", "VP_IMAGE", "VP_INSTANCE_ROOT", "VP_VOLUMES"];
        assert_eq!(names, agreed.into_iter().collect());
        assert!(environment.contains(&format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{}:1338\n", one.address)));
        // A PID namespace of its own: boot is no stranger's neighbour, its pid is a small number.
        let pid: u32 = std::fs::read_to_string(root.join("boot-pid")).unwrap().trim().parse().unwrap();
        assert!(pid < 100, "pid {pid} in its own namespace");
    }
}

#[tokio::test]
async fn process_sigkill_to_the_init_takes_double_forks_along_and_ec2_learns_nothing() {
    let bed = Bed::up(32, 1).await;
    let one = bed.booted(1).await.remove(0);
    let root = bed.root(&one.id);
    let sleeping = sleepers(&root);
    assert_eq!(sleeping.len(), 3);
    let init = process::record(one.pid.unwrap()).unwrap();
    assert!(process::kill(&init).await.unwrap());
    assert!(sleeping.iter().all(|left| !process::alive(left)), "gone when the init's end is seen");
    // Two rounds of the keeper later it is still running by EC2, dead in fact, and was not booted again.
    let log = bed.state().join("logs/keeper.log");
    until("the keeper saw it", || async { std::fs::read_to_string(&log).unwrap().contains("ended by itself").then_some(()) }).await;
    let again = bed.instances().await;
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].state.as_str(), again[0].alive), ("running", false));
    assert_eq!(std::fs::read_to_string(root.join("boots")).unwrap(), "booted\n");
}

#[tokio::test]
async fn process_terminated_is_never_shown_while_a_process_is_left_and_the_group_replaces() {
    let bed = Bed::up(131, 3).await;
    let before = bed.booted(3).await;
    let victim = &before[1];
    let sleeping = sleepers(&bed.root(&victim.id));
    let keeper = bed.keeper();
    signal(&keeper, Signal::SIGSTOP);
    bed.compute.terminate(&victim.id).await.unwrap();
    // Asked many times, with nobody there to end it: never more than shutting-down.
    for _ in 0..50 {
        assert_eq!(bed.state_of(&victim.id).await, "shutting-down");
    }
    assert!(sleeping.iter().all(process::alive));
    signal(&keeper, Signal::SIGCONT);
    until("terminated", || async {
        let state = bed.state_of(&victim.id).await;
        if state == "terminated" {
            assert!(sleeping.iter().all(|left| !process::alive(left)), "terminated is the proof that nothing is left");
        }
        (state == "terminated").then_some(())
    })
    .await;
    let after = bed.booted(3).await;
    let new: Vec<_> = after.iter().filter(|one| before.iter().all(|old| old.id != one.id)).collect();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].zone, victim.zone, "into the zone that has fewest");
    assert!(before.iter().all(|old| old.address != new[0].address), "an address is never reused");
}

#[tokio::test]
async fn process_a_keeper_killed_and_restarted_adopts_its_instances() {
    let bed = Bed::up(132, 2).await;
    let before = bed.booted(2).await;
    assert!(process::kill(&bed.keeper()).await.unwrap());
    let region = vp_localcloud::region::Region::up(&bed.options, &mut |_| ()).await.unwrap();
    assert!(region.status().await.unwrap().healthy());
    let pids = |list: &[vp_localcloud::region::InstanceStatus]| list.iter().map(|one| (one.id.clone(), one.pid)).collect::<BTreeSet<_>>();
    let after = bed.booted(2).await;
    assert_eq!(pids(&before), pids(&after));
    bed.compute.terminate(&after[0].id).await.unwrap();
    let sleeping = sleepers(&bed.root(&after[0].id));
    until("terminated by the new keeper", || async { (bed.state_of(&after[0].id).await == "terminated").then_some(()) }).await;
    assert!(sleeping.iter().all(|left| !process::alive(left)));
    assert_eq!(std::fs::read_to_string(bed.root(&after[1].id).join("boots")).unwrap(), "booted\n");
}

#[tokio::test]
async fn process_a_volume_follows_from_a_terminated_instance_to_the_next_with_its_data() {
    let bed = Bed::up(133, 4).await;
    let booted = bed.booted(4).await;
    // Four over three zones: one zone has two.
    let (first, second) =
        booted.iter().flat_map(|one| booted.iter().map(move |other| (one, other))).find(|(one, other)| one.id < other.id && one.zone == other.zone).unwrap();
    let volume = bed.compute.create_volume(&first.zone, 1, &BTreeMap::new(), "token-1").await.unwrap();
    let link = |instance: &str| bed.state().join("instances").join(instance).join("volumes").join(&volume);
    bed.compute.attach_volume(&volume, &first.id, "/dev/sdf").await.unwrap();
    until("linked", || async { link(&first.id).exists().then_some(()) }).await;
    std::fs::write(link(&first.id).join("data"), "kept").unwrap();
    let refused = bed.compute.attach_volume(&volume, &second.id, "/dev/sdf").await.unwrap_err();
    assert_eq!(refused.code(), Some("VolumeInUse"));
    bed.compute.terminate(&first.id).await.unwrap();
    until("attached to the next", || async { bed.compute.attach_volume(&volume, &second.id, "/dev/sdf").await.ok() }).await;
    assert_eq!(bed.state_of(&first.id).await, "terminated", "not before the proof");
    assert!(sleepers(&bed.root(&first.id)).is_empty());
    until("linked again", || async { link(&second.id).exists().then_some(()) }).await;
    assert_eq!(std::fs::read_to_string(link(&second.id).join("data")).unwrap(), "kept");
    assert!(!link(&first.id).exists());
}

/// The birth alone, as a user who is not root: the same isolation by way of a user namespace.
#[tokio::test]
async fn process_without_root_an_instance_is_isolated_too() {
    let folder = tempfile::Builder::new().prefix("vp-localcloud-test").tempdir().unwrap();
    let (disk, program, boot) = (folder.path().join("disk"), folder.path().join("vp-localcloud"), folder.path().join("boot"));
    std::fs::create_dir_all(disk.join("root")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_vp-localcloud"), &program).unwrap();
    std::fs::write(&boot, BOOT).unwrap();
    let root = disk.join("root");
    let environment = BTreeMap::from([("PATH", "/usr/bin:/bin"), ("VP_INSTANCE_ROOT", root.to_str().unwrap())]);
    let birth = serde_json::json!({"boot": boot, "environment": environment, "entrances": []});
    std::fs::write(disk.join("birth.json"), birth.to_string()).unwrap();
    for path in [folder.path(), &disk, &root, &program, &boot] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut command = std::process::Command::new(&program);
    command.arg("instance-init").arg(&disk).current_dir(&disk);
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    assert!(command.status().unwrap().success());
    let init: RecordedProcess = serde_json::from_slice(&std::fs::read(disk.join("init.json")).unwrap()).unwrap();
    let sleeping = until("booted", || async { Some(sleepers(&root)).filter(|found| found.len() == 3) }).await;
    let again = command.status().unwrap().code();
    assert!(process::kill(&init).await.unwrap());
    assert!(sleeping.iter().all(|left| !process::alive(left)), "gone when the init's end is seen");
    assert_eq!(again, Some(3), "booted once only");
    assert_eq!(std::fs::read_to_string(root.join("boots")).unwrap(), "booted\n");
}
