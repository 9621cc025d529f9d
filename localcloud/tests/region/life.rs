//! The region as a whole: two side by side, up twice, down twice and half-way, and not one packet to elsewhere.

use std::path::Path;

use vp_cloud::{Session, s3::ObjectStore};
use vp_localcloud::process;
use vp_localcloud::region::{DownOptions, Progress, Region, RegionError, down};

use crate::bed::{BOOT, Bed, options, sleepers};

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
    let (record, body) = (bed.region.record(), b"kept".as_slice());
    let (store, bucket) = (ObjectStore::new(&Session::load(record.endpoints()).await), &record.buckets["uploads"]);
    store.put(bucket, "before", body.into(), "text/plain").await.unwrap();
    process::kill(&record.services["s3"]).await.unwrap();
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
    assert_eq!(store.get(bucket, "before").await.unwrap().0, body, "what S3 held before it died");
    assert_eq!(bed.booted(2).await.iter().map(|one| one.pid).collect::<Vec<_>>(), before.iter().map(|one| one.pid).collect::<Vec<_>>());
}

#[tokio::test]
async fn process_two_ups_at_once_make_one_region() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::Builder::new().prefix("vp-localcloud-test").tempdir().unwrap();
    let options = options(folder.path(), 146, 0, BOOT);
    let (mut quietly, mut silently) = (|_| (), |_| ());
    let (one, two) = tokio::join!(Region::up(&options, &mut quietly), Region::up(&options, &mut silently));
    let healthy = match &one {
        Ok(region) => region.status().await.is_ok_and(|status| status.healthy()),
        Err(_) => false,
    };
    down(&options.state, &DownOptions::default(), &mut |_| ()).await.unwrap();
    let keys = [one, two].map(|region| region.unwrap().record().access_key_id.clone());
    assert!(healthy && keys[0] == keys[1], "{keys:?}");
    assert!(!options.state.exists() && left(&options.state).is_empty());
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
async fn a_folder_that_is_no_regions_is_neither_made_one_nor_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let precious = folder.path().join("letters").join("first");
    std::fs::create_dir_all(precious.parent().unwrap()).unwrap();
    std::fs::write(&precious, "dear").unwrap();
    let image = tempfile::tempdir().unwrap();
    let mut wanted = options(image.path(), 144, 0, BOOT);
    wanted.state = folder.path().to_path_buf();
    assert!(matches!(Region::up(&wanted, &mut |_| ()).await, Err(RegionError::Foreign(_))));
    assert!(matches!(down(folder.path(), &DownOptions::default(), &mut |_| ()).await, Err(RegionError::Foreign(_))));
    // Nor does a record that is none make it one.
    std::fs::write(folder.path().join("region.json"), "{}").unwrap();
    assert!(matches!(down(folder.path(), &DownOptions::default(), &mut |_| ()).await, Err(RegionError::Foreign(_))));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "dear");
}

#[tokio::test]
async fn process_down_of_another_region_than_the_one_named_touches_nothing() {
    let bed = Bed::up(145, 0).await;
    let other = DownOptions { name: Some("demo".to_owned()), ..DownOptions::default() };
    let refused = down(bed.state(), &other, &mut |_| ()).await.unwrap_err().to_string();
    assert!(refused.contains("test-145, not demo"), "{refused}");
    assert!(bed.region.status().await.unwrap().healthy());
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
