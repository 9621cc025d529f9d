//! Ingest against a real S3 server, ZooKeeper and Kafka: what arrives on the topic is the source, frame for frame.
//!
//! Needs the components (`VP_COMPONENTS`, else the cache); without them the test says so and ends, with CI set it fails.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod function;

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use function::{ETAG, Function, Memory};
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use sha2::{Digest, Sha256};
use vp_cloud::{Endpoints, Session, s3::ObjectStore};
use vp_ingest::{
    intake::{Ingest, Outcome},
    settings::Settings,
};
use vp_jobs::{
    JobId, Plan, keys,
    records::{JobResult, State},
};

const HOST: &str = "127.33.7.2";

struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn components() -> PathBuf {
    let cache = || std::env::var_os("VP_CACHE").map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/vp"), PathBuf::from);
    std::env::var_os("VP_COMPONENTS").map_or_else(|| cache().join("components"), PathBuf::from)
}

fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn java(folder: &Path, name: &str, heap: &str, lib: &Path, main: &str, config: &Path) -> Child {
    let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    Command::new("java").args([heap, "-cp", &format!("{}/*", lib.display()), main]).arg(config).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// S3, ZooKeeper and one broker in a folder.
fn start(folder: &Path) -> Running {
    let components = components();
    let mut running = Running(Vec::new());
    std::fs::create_dir_all(folder.join("s3")).unwrap();
    let gateway = Command::new(components.join("bin/versitygw"))
        .args(["--port", &format!("{HOST}:7070"), "posix"])
        .arg(folder.join("s3"))
        .env("ROOT_ACCESS_KEY", "test")
        .env("ROOT_SECRET_KEY", "testtest")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    running.0.push(gateway);
    let zoo = folder.join("zoo.cfg");
    std::fs::write(
        &zoo,
        format!("dataDir={}\nclientPort=2181\nclientPortAddress={HOST}\nadmin.enableServer=false\ntickTime=500\n", folder.join("zk").display()),
    )
    .unwrap();
    running.0.push(java(folder, "zookeeper", "-Xmx96m", &components.join("zookeeper/lib"), "org.apache.zookeeper.server.quorum.QuorumPeerMain", &zoo));
    until("zookeeper", Duration::from_secs(60), || TcpStream::connect((HOST, 2181)).is_ok());
    let kafka = folder.join("kafka.properties");
    let text = format!(
        "broker.id=1\nlisteners=PLAINTEXT://{HOST}:9092\nadvertised.listeners=PLAINTEXT://{HOST}:9092\nzookeeper.connect={HOST}:2181\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\nauto.create.topics.enable=false\ngroup.initial.rebalance.delay.ms=0\n",
        folder.join("kafka").display()
    );
    std::fs::write(&kafka, text).unwrap();
    running.0.push(java(folder, "kafka", "-Xmx320m", &components.join("kafka/lib"), "kafka.Kafka", &kafka));
    until("kafka", Duration::from_secs(90), || TcpStream::connect((HOST, 9092)).is_ok());
    running
}

fn ffmpeg(folder: &Path, arguments: &[&str]) {
    let status = Command::new("ffmpeg").args(["-nostdin", "-v", "error", "-y"]).args(arguments).current_dir(folder).status().unwrap();
    assert!(status.success(), "ffmpeg {arguments:?}");
}

fn decoded_frames(path: &Path) -> u64 {
    let said = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .unwrap();
    assert!(said.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&said.stderr));
    // A transport stream's is said twice: in its program and by itself.
    let said = String::from_utf8_lossy(&said.stdout);
    said.lines().next().and_then(|line| line.trim_end_matches(',').parse().ok()).unwrap_or_default()
}

/// All records of the topic: (job, segment) -> part -> (value, sha256 of the whole segment, kind).
type Topic = BTreeMap<(String, String), BTreeMap<u32, (Vec<u8>, String, String)>>;

fn topic() -> Topic {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", format!("{HOST}:9092")).set("group.id", "test").set("enable.partition.eof", "true").create().unwrap();
    let mut assignment = rdkafka::TopicPartitionList::new();
    for partition in 0..6 {
        assignment.add_partition_offset("video-segments", partition, rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let (mut ends, mut found) = (0, Topic::new());
    while ends < 6 {
        match consumer.poll(Duration::from_secs(20)).expect("kafka answers") {
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
            Ok(message) => {
                let headers = message.headers().unwrap();
                let header = |name: &str| headers.iter().find(|h| h.key == name).map(|h| String::from_utf8(h.value.unwrap().to_vec()).unwrap()).unwrap();
                assert_eq!(header("version"), "1");
                assert!(message.payload().unwrap().len() <= 1_000_000);
                let key = format!("{}/{}", header("job"), header("segment"));
                assert_eq!(message.key().unwrap(), key.as_bytes());
                let part = (message.payload().unwrap().to_vec(), header("sha256"), header("kind"));
                found.entry((header("job"), header("segment"))).or_default().insert(header("part").parse().unwrap(), part);
            }
        }
    }
    found
}

/// Puts a job's segments together from the topic, checks every hash, and decodes each on its own.
fn check_segments(folder: &Path, plan: &Plan, topic: &Topic) {
    let job = plan.job.to_string();
    let mut frames = 0;
    for segment in &plan.segments {
        let parts = &topic[&(job.clone(), format!("{:05}", segment.index))];
        assert_eq!(parts.len(), segment.parts as usize);
        let bytes: Vec<u8> = parts.values().flat_map(|(value, ..)| value.clone()).collect();
        assert_eq!(hex::encode(Sha256::digest(&bytes)), segment.sha256);
        let path = folder.join("segment.nut");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(decoded_frames(&path), segment.frames, "segment {} of {}", segment.index, plan.key);
        frames += segment.frames;
    }
    assert_eq!(frames, plan.video.frames);
    assert!(plan.segments.windows(2).all(|pair| pair[0].end_pts == pair[1].first_pts && pair[0].last_pts < pair[1].first_pts));
    if let Some(audio) = &plan.audio {
        let parts = &topic[&(job.clone(), "audio".to_owned())];
        let bytes: Vec<u8> = parts.values().flat_map(|(value, ..)| value.clone()).collect();
        assert_eq!(hex::encode(Sha256::digest(&bytes)), audio.segment.sha256);
    }
    let end = &topic[&(job, "end".to_owned())][&0];
    assert_eq!(end.1, hex::encode(Sha256::digest(plan.to_bytes().unwrap())));
}

fn brokers() -> String {
    format!(r#"{{"brokers":["{HOST}:9092"],"revision":1}}"#)
}

/// The S3 of the other cases refuses such a key; one in memory takes it, so that the function really gets it.
fn a_key_that_leads_out_of_its_folder_is_data_and_never_a_path(folder: &Path) {
    let (memory, key) = (Memory::start(), "up/../../above.mp4");
    memory.put(&format!("/uploads/{key}"), std::fs::read(folder.join("one.mp4")).unwrap());
    memory.put("/cluster/kafka/brokers.json", brokers().into_bytes());
    let function = Function::start(&folder.join("above"), &memory.url);
    let (answer, _) = function.invoke("uploads", "up/..%2F..%2Fabove.mp4");
    let job = JobId::of("uploads", key, ETAG, "default");
    assert_eq!(answer[0]["outcome"], "planned", "{answer}");
    assert_eq!(answer[0]["job"], job.as_str());
    let plan = Plan::from_bytes(&memory.get(&format!("/results/{}", keys::plan(&job))).expect("its plan is stored")).unwrap();
    assert_eq!((plan.key.as_str(), plan.segments.len(), plan.video.frames), (key, 1, 1));
}

/// Noise at a quality that keeps it: in each copy a group of pictures over what travels in records, and one below.
fn large_file(folder: &Path, copies: usize) -> PathBuf {
    let noise = ["-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=25:duration=1.6,noise=alls=100:allf=t", "-force_key_frames", "1"];
    let kept = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "8", "-g", "9999", "-sc_threshold", "0", "noise.mp4"];
    ffmpeg(folder, &[&noise[..], &kept[..]].concat());
    std::fs::write(folder.join("list"), "file 'noise.mp4'\n".repeat(copies)).unwrap();
    ffmpeg(folder, &["-f", "concat", "-safe", "0", "-i", "list", "-c", "copy", "large.mp4"]);
    folder.join("large.mp4")
}

async fn a_file_larger_than_the_memory_used_for_it_streams_through(folder: &Path, store: &ObjectStore) {
    let large = large_file(folder, 6);
    let bytes = std::fs::metadata(&large).unwrap().len();
    assert!(bytes > 256 << 20, "{bytes} bytes are not large");
    store.upload_file("uploads", "large.mp4", &large, "video/mp4", &BTreeMap::new(), &mut |_| {}).await.unwrap();
    // It is on the disk often enough.
    std::fs::remove_file(&large).unwrap();
    let function = Function::start(&folder.join("large"), &format!("http://{HOST}:7070"));
    let (answer, peaks) = function.invoke("uploads", "large.mp4");
    assert_eq!(answer[0]["outcome"], "planned", "{answer}");
    let job: JobId = answer[0]["job"].as_str().unwrap().parse().unwrap();
    let plan = Plan::from_bytes(&store.get("results", &keys::plan(&job)).await.unwrap().0).unwrap();
    let in_records: Vec<bool> = plan.segments.iter().map(|segment| segment.parts > 1).collect();
    assert_eq!(in_records, [false, true].repeat(6), "some by reference, some in records");
    println!("{} MiB: {} MiB for the program, {} MiB for its largest tool", bytes >> 20, peaks.program >> 10, peaks.tool >> 10);
    assert!(peaks.program << 10 < bytes / 2, "{} KiB for a file of {bytes} bytes", peaks.program);
    assert!(peaks.tool > 0 && peaks.tool << 10 < bytes / 2, "{} KiB for ffmpeg or ffprobe on a file of {bytes} bytes", peaks.tool);
}

struct Case {
    key: &'static str,
    file: &'static str,
    make: &'static [&'static str],
    /// Frames, segments at least, rotation, variable.
    expect: (u64, usize, u32, bool),
}

const SOURCE: &str = "testsrc2=size=320x240:rate=24:duration=6";

#[tokio::test(flavor = "multi_thread")]
async fn process_every_odd_video_arrives_frame_for_frame_or_is_refused_with_a_sentence() {
    let components = components();
    if !components.join("bin/versitygw").exists() || !components.join("kafka/lib").exists() {
        let lacks = format!("{} lacks versitygw or kafka (make setup)", components.display());
        assert!(std::env::var_os("CI").is_none(), "{lacks}");
        eprintln!("skipped: {lacks}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let _running = start(at);
    let session = Session::load(Endpoints {
        region: Some("us-east-1".into()),
        endpoint_url: None,
        s3_endpoint_url: Some(format!("http://{HOST}:7070")),
        credentials: Some(("test".into(), "testtest".into())),
    })
    .await;
    let store = ObjectStore::new(&session);
    for bucket in ["uploads", "results", "cluster"] {
        store.create_bucket(bucket).await.unwrap();
    }
    store.put("cluster", "kafka/brokers.json", brokers().into(), "application/json").await.unwrap();
    let settings = Settings {
        results_bucket: "results".into(),
        cluster_bucket: "cluster".into(),
        recipes: Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes"),
        reference_bytes: 32 << 20,
        topic_replication: 1,
    };
    let ingest = Ingest { store: store.clone(), settings };

    let cases = [
        Case {
            key: "gops.mp4",
            file: "gops.mp4",
            make: &[
                "-f",
                "lavfi",
                "-i",
                SOURCE,
                "-f",
                "lavfi",
                "-i",
                "sine=duration=7",
                "-c:v",
                "libx264",
                "-g",
                "24",
                "-bf",
                "2",
                "-pix_fmt",
                "yuv420p",
                "-c:a",
                "aac",
            ],
            expect: (144, 3, 0, false),
        },
        Case {
            key: "a b/ä+%41 #?.mp4",
            file: "open.mp4",
            make: &["-f", "lavfi", "-i", SOURCE, "-c:v", "libx264", "-x264-params", "open-gop=1:keyint=24:min-keyint=24:bframes=3", "-pix_fmt", "yuv420p"],
            expect: (144, 1, 0, false),
        },
        Case { key: "rotated.mp4", file: "rotated.mp4", make: &["-i", "gops.mp4", "-c", "copy", "-metadata:s:v", "rotate=90"], expect: (144, 3, 270, false) },
        Case {
            key: "vfr.mkv",
            file: "vfr.mkv",
            make: &[
                "-f",
                "lavfi",
                "-i",
                SOURCE,
                "-vf",
                "select=not(mod(n\\,3))+lt(mod(n\\,10)\\,5)",
                "-vsync",
                "vfr",
                "-c:v",
                "libx264",
                "-g",
                "12",
                "-pix_fmt",
                "yuv420p",
            ],
            expect: (98, 2, 0, true),
        },
        Case {
            key: "odd.mp4",
            file: "odd.mp4",
            make: &["-f", "lavfi", "-i", "testsrc=size=853x481:rate=25:duration=2", "-c:v", "libx264", "-pix_fmt", "yuv444p"],
            expect: (50, 1, 0, false),
        },
        Case {
            key: "ten.mp4",
            file: "ten.mp4",
            make: &["-f", "lavfi", "-i", SOURCE, "-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-g", "48"],
            expect: (144, 3, 0, false),
        },
        Case {
            key: "one.mp4",
            file: "one.mp4",
            make: &["-f", "lavfi", "-i", SOURCE, "-frames:v", "1", "-c:v", "libx264", "-pix_fmt", "yuv420p"],
            expect: (1, 1, 0, false),
        },
        Case {
            key: "late.ts",
            file: "late.ts",
            make: &[
                "-f",
                "lavfi",
                "-i",
                SOURCE,
                "-f",
                "lavfi",
                "-i",
                "sine=duration=6",
                "-c:v",
                "libx264",
                "-g",
                "24",
                "-pix_fmt",
                "yuv420p",
                "-c:a",
                "aac",
                "-output_ts_offset",
                "10",
            ],
            expect: (144, 3, 0, false),
        },
        Case {
            key: "hevc.mp4",
            file: "hevc.mp4",
            make: &["-f", "lavfi", "-i", SOURCE, "-c:v", "libx265", "-x265-params", "keyint=24:open-gop=0:log-level=none", "-pix_fmt", "yuv420p"],
            expect: (144, 3, 0, false),
        },
        Case { key: "mpeg4.avi", file: "mpeg4.avi", make: &["-f", "lavfi", "-i", SOURCE, "-c:v", "mpeg4", "-g", "24"], expect: (144, 3, 0, false) },
    ];
    let deadline = || Instant::now() + Duration::from_secs(60);
    let mut plans = Vec::new();
    for case in &cases {
        let mut make = case.make.to_vec();
        make.push(case.file);
        ffmpeg(at, &make);
        store.upload_file("uploads", case.key, &at.join(case.file), "video/mp4", &BTreeMap::new(), &mut |_| {}).await.unwrap();
        let outcome = ingest.object("uploads", case.key, deadline()).await.unwrap();
        let Outcome::Planned { job, segments } = outcome else { panic!("{}: {outcome:?}", case.key) };
        let plan = Plan::from_bytes(&store.get("results", &keys::plan(&job)).await.unwrap().0).unwrap();
        let (frames, at_least, rotation, variable) = case.expect;
        assert_eq!(plan.segments.len(), segments);
        assert_eq!((plan.video.frames, plan.video.rotation, plan.video.variable), (frames, rotation, variable), "{}", case.key);
        assert!(segments >= at_least, "{}: {segments} segments", case.key);
        assert_eq!(decoded_frames(&at.join(case.file)), frames, "{}", case.key);
        plans.push(plan);
    }
    let bunny = components.join("samples/bigbuckbunny.mp4");
    store.upload_file("uploads", "bunny.mp4", &bunny, "video/mp4", &BTreeMap::new(), &mut |_| {}).await.unwrap();
    let Outcome::Planned { job, segments: 1 } = ingest.object("uploads", "bunny.mp4", deadline()).await.unwrap() else { panic!() };
    plans.push(Plan::from_bytes(&store.get("results", &keys::plan(&job)).await.unwrap().0).unwrap());
    let first = topic();
    for plan in &plans {
        check_segments(at, plan, &first);
    }

    // The same event again, while the stream has kept nothing: the same cuts, the same bytes, the plan unchanged.
    let (before, _) = store.get("results", &keys::plan(&plans[0].job)).await.unwrap();
    ingest.object("uploads", "gops.mp4", deadline()).await.unwrap();
    assert_eq!(store.get("results", &keys::plan(&plans[0].job)).await.unwrap().0, before);
    assert_eq!(topic(), first);

    let text = b"this is not a video at all".repeat(100);
    let whole = std::fs::read(at.join("gops.mp4")).unwrap();
    ffmpeg(at, &["-i", "gops.mp4", "-c", "copy", "-movflags", "+faststart", "fast.mp4"]);
    ffmpeg(at, &["-f", "lavfi", "-i", "sine=duration=1", "sound.m4a"]);
    let fast = std::fs::read(at.join("fast.mp4")).unwrap();
    let sound = std::fs::read(at.join("sound.m4a")).unwrap();
    let refused: [(&str, &[u8], &str); 5] = [
        ("empty.mp4", b"", "The file is empty."),
        ("text.mp4", &text, "not a video that can be read"),
        ("cut-off.mp4", &whole[..whole.len() / 2], "index is missing"),
        ("cut-off-fast.mp4", &fast[..fast.len() / 2], "cut off or damaged"),
        ("sound.mp4", &sound, "sound but no pictures"),
    ];
    for (key, bytes, sentence) in refused {
        store.put("uploads", key, bytes.to_vec().into(), "video/mp4").await.unwrap();
        let outcome = ingest.object("uploads", key, deadline()).await.unwrap();
        let Outcome::Refused { job, reason } = outcome else { panic!("{key}: {outcome:?}") };
        assert!(reason.contains(sentence), "{key}: {reason}");
        let result: JobResult = serde_json::from_slice(&store.get("results", &keys::result(&job)).await.unwrap().0).unwrap();
        assert_eq!((result.state, result.generation, result.reason), (State::Failed, 0, Some(reason)));
        assert_eq!(ingest.object("uploads", key, deadline()).await.unwrap(), Outcome::Closed { job });
    }
    assert_eq!(ingest.object("uploads", "nothing", deadline()).await.unwrap(), Outcome::Gone);
    let job = JobId::of("uploads", "gops.mp4", &plans[0].etag, "default");
    assert_eq!(job, plans[0].job);

    // Twenty writers with one entity tag: one wins (the fence of the stream rests on this).
    for round in 0..10 {
        let etag = store.put("cluster", "race", format!("start {round}").into(), "text/plain").await.unwrap();
        let writers = (0..20).map(|writer| {
            let (store, etag) = (store.clone(), etag.clone());
            tokio::spawn(async move { store.put_if_match("cluster", "race", format!("{round} {writer}").into(), "text/plain", &etag).await.is_ok() })
        });
        let won = futures::future::join_all(writers).await.into_iter().filter(|won| *won.as_ref().unwrap()).count();
        assert_eq!(won, 1, "round {round}");
    }

    a_key_that_leads_out_of_its_folder_is_data_and_never_a_path(at);
    a_file_larger_than_the_memory_used_for_it_streams_through(at, &store).await;
}
