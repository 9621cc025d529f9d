//! The whole way of a video on a real region: upload, ingest, Kafka, Spark, result, and every way an upload can be odd.
//!
//! One region for all scenarios; each waits on conditions only. `VP_SCENARIO` chooses among them.

mod foreign;
mod media;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use media::{End, Facts, facts, ffmpeg, is_faststart, odd_inputs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vp_jobs::{JobId, Plan, keys};
use vp_tests::{Region, counted::counted, jobs::JobStatus, processes, processes::Process, region::sample, scenarios::Scenarios, wait_until};

/// A job of a short clip, with all cores of the machine busy.
const SHORT: Duration = Duration::from_secs(180);
/// A job of a minute and a half.
const LONG: Duration = Duration::from_secs(300);
/// A contact sheet of a 16:9 clip, pixels: four by four tiles of 160x90, with 4 around and between them.
const SHEET: (u64, u64) = (660, 380);

fn id(region: &Region, key: &str, etag: &str, recipe: &str) -> JobId {
    JobId::of(&region.bucket("uploads"), key, etag, recipe)
}

fn object(region: &Region, key: &str) -> anyhow::Result<Vec<u8>> {
    Ok(region.block_on(region.store().get(&region.bucket("results"), key))?.0.to_vec())
}

fn exists(region: &Region, key: &str) -> anyhow::Result<bool> {
    match region.block_on(region.store().head(&region.bucket("results"), key)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Key, entity tag and time of every object of a job that stays.
fn standing(region: &Region, job: &str) -> anyhow::Result<Vec<(String, String, u64)>> {
    let mut all = Vec::new();
    for prefix in [format!("jobs/{job}/"), format!("results/{job}/")] {
        let listed = region.block_on(region.store().list(&region.bucket("results"), &prefix))?;
        all.extend(listed.into_iter().map(|found| (found.key, found.etag, found.modified_unix_ms)));
    }
    Ok(all)
}

/// An output of a finished job as a file of the test's.
fn fetched(region: &Region, job: &str, name: &str) -> anyhow::Result<PathBuf> {
    let path = region.scratch().join(format!("{job}-{name}"));
    std::fs::write(&path, object(region, &format!("results/{job}/{name}"))?)?;
    Ok(path)
}

/// What a transcode must keep: every frame, and both lengths within a frame of the source's.
fn same_length(source: &Facts, made: &Facts) -> anyhow::Result<()> {
    anyhow::ensure!(made.frames == source.frames, "{} frames of {}", made.frames, source.frames);
    anyhow::ensure!((made.video_s - source.video_s).abs() <= source.frame_s, "pictures for {} s of {}", made.video_s, source.video_s);
    match (source.audio_s, made.audio_s) {
        (Some(source_s), Some(made_s)) => anyhow::ensure!((made_s - source_s).abs() <= source.frame_s, "sound for {made_s} s of {source_s}"),
        (wanted, found) => anyhow::ensure!(wanted == found, "sound {found:?} of {wanted:?}"),
    }
    Ok(())
}

fn submit(region: &Region, clip: &Path) -> anyhow::Result<String> {
    Ok(region.submit(clip)?.id)
}

/// Ctrl-C while `vpctl submit --wait` waits: it ends with 130 and says how to look, and the job goes on without it.
fn submitted_and_left(region: &Region, clip: &Path) -> anyhow::Result<String> {
    let mut vpctl = region.vpctl().args(["submit", "--wait"]).arg(clip).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let waits = Process::of(i32::try_from(vpctl.id())?).context("vpctl ended at once")?;
    let mut lines = BufReader::new(vpctl.stderr.take().context("a pipe")?).lines().map_while(Result::ok);
    let uploaded = lines.by_ref().find(|line| line.contains(": uploaded ") && line.contains(", job "));
    let signalled = waits.signal(Signal::SIGINT);
    let said: Vec<String> = lines.collect();
    let ended = vpctl.wait()?;
    signalled?;
    let job = uploaded.as_deref().and_then(|line| line.rsplit_once(", job ")).context("no job was named")?.1.trim().to_owned();
    anyhow::ensure!(ended.code() == Some(130), "{ended}: {said:?}");
    let hint = |line: &String| line.contains("interrupted; the job goes on") && line.contains(&format!("jobs show {job}`"));
    anyhow::ensure!(said.iter().any(hint), "nothing is said of how to look: {said:?}");
    region.wait_job(&job, SHORT)?;
    Ok(job)
}

/// Whoever waits for a file that is no video is told so in a sentence, and by the exit code.
fn a_bad_file_fails_its_submitter(region: &Region, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("no-video.mp4");
    std::fs::write(&file, b"this is not a video at all".repeat(100))?;
    let answer = region.ctl(&["submit", "--wait", &file.to_string_lossy()])?;
    let told = answer.json()?;
    let reason = told[0]["reason"].as_str().unwrap_or_default();
    anyhow::ensure!(answer.code == 1 && told[0]["state"] == "failed" && reason.contains("not a video that can be read"), "{answer:?}");
    Ok(())
}

/// From submission to its end, seconds.
fn timed(region: &Region, clip: &Path) -> anyhow::Result<(String, f64)> {
    let begun = Instant::now();
    let job = submit(region, clip)?;
    region.wait_job(&job, LONG)?;
    Ok((job, begun.elapsed().as_secs_f64()))
}

fn nothing_is_left_of(region: &Region, job: &str) -> anyhow::Result<()> {
    wait_until(&format!("work/{job}/ is empty"), Duration::from_secs(30), || {
        let left = region.block_on(region.store().list(&region.bucket("results"), &format!("work/{job}/")))?;
        Ok(left.is_empty().then_some(()))
    })
}

/// boto3 puts an object with metadata; the other recipe is what comes out. An unknown one fails and says so.
fn any_client_makes_a_job(region: &Region) -> anyhow::Result<()> {
    let clip = sample("clip-10s.mp4");
    let etag = foreign::put_by_boto(region, "by boto/cl ip.mp4", &clip, "contact-sheet")?.context("refused by S3")?;
    let wrong = foreign::put_by_boto(region, "by boto/wrong.mp4", &clip, "no-such-recipe")?.context("refused by S3")?;
    // A key that leads out of its bucket is refused by this S3 itself. What ingest makes of one is in its own test, with an S3 that takes it.
    let above = foreign::put_by_boto(region, "up/../../above.mp4", &clip, "contact-sheet")?;
    anyhow::ensure!(above.is_none(), "S3 took a key that leads out of its bucket: {above:?}");
    let outside: Vec<PathBuf> = files(&region.state())?.into_iter().filter(|path| path.ends_with("above.mp4")).collect();
    anyhow::ensure!(outside.is_empty(), "refused, and yet written: {outside:?}");

    let job = id(region, "by boto/cl ip.mp4", &etag, "contact-sheet").to_string();
    let done = taken(region, &job)?;
    anyhow::ensure!(done.state == "done", "{:?}", done.reason);
    let names: Vec<&str> = done.outputs.iter().map(|output| output.name.as_str()).collect();
    anyhow::ensure!(names == ["contact-sheet.jpg"], "outputs {names:?}");

    let failed = taken(region, id(region, "by boto/wrong.mp4", &wrong, "no-such-recipe").as_str())?;
    let reason = failed.reason.unwrap_or_default();
    anyhow::ensure!(failed.state == "failed" && reason.contains("no-such-recipe") && reason.contains("contact-sheet"), "{}: {reason}", failed.state);
    Ok(())
}

/// A job that begins with an upload's event: known a moment later.
fn taken(region: &Region, job: &str) -> anyhow::Result<JobStatus> {
    region.wait_ended(job, SHORT)
}

/// Kafka, ZooKeeper and Spark through foreign libraries, for a job that nothing disturbed.
fn foreign_clients_see_the_plan(region: &Region, job: &str) -> anyhow::Result<()> {
    let plan = Plan::from_bytes(&object(region, &format!("jobs/{job}/plan.json"))?)?;
    foreign::agrees(&foreign::topic(region)?, &plan)?;
    foreign::zookeeper(region)?;
    foreign::spark(region)
}

fn posted(region: &Region, bucket: &str, key: &str, etag: &str) -> anyhow::Result<()> {
    let event =
        json!({"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key, "eTag": etag, "size": 1}}}]});
    let url = format!("http://127.{}.0.2:9001/events", region.network());
    let script = "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}))";
    let said = std::process::Command::new("python3").args(["-c", script, &url, &event.to_string()]).output()?;
    anyhow::ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

fn lambda_log(region: &Region) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(region.state().join("logs/lambda.log"))?)
}

/// The ids of the events that were accepted for an object.
fn accepted<'a>(log: &'a str, key: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains("event accepted") && line.contains(key)).filter_map(|line| field(line, "id=")).collect()
}

/// Events of an object that the Lambda service has seen succeed.
fn delivered(region: &Region, key: &str) -> anyhow::Result<usize> {
    let log = lambda_log(region)?;
    let ids = accepted(&log, key);
    Ok(log.lines().filter(|line| line.contains("event delivered") && ids.iter().any(|id| field(line, "id=") == Some(id))).count())
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.split_once(&format!(" {name}"))?.1;
    Some(rest.split_whitespace().next().unwrap_or(rest).trim_matches('"'))
}

/// Both functions get the same event a second time: every record and output stays the very object it was, and Kafka gets no segment.
fn an_event_again_changes_nothing(region: &Region, job: &str) -> anyhow::Result<()> {
    let submitted: Value = serde_json::from_slice(&object(region, &format!("jobs/{job}/submitted.json"))?)?;
    let (key, etag) = submitted["key"].as_str().zip(submitted["etag"].as_str()).context("a submitted record")?;
    let result_key = format!("jobs/{job}/result.json");
    let result_etag = region.block_on(region.store().head(&region.bucket("results"), &result_key))?.etag;
    let before = standing(region, job)?;
    let records = |topic: &foreign::Topic| topic.iter().filter(|(key, _)| key.starts_with(job)).map(|(_, found)| found.len()).sum::<usize>();
    let sent = records(&foreign::topic(region)?);
    let seen = (delivered(region, key)?, delivered(region, &result_key)?);
    anyhow::ensure!(seen.0 >= 1 && seen.1 >= 1, "events delivered before: {seen:?}");
    posted(region, &region.bucket("uploads"), key, etag)?;
    posted(region, &region.bucket("results"), &result_key, &result_etag)?;
    wait_until("both events are delivered again", SHORT, || {
        let now = (delivered(region, key)?, delivered(region, &result_key)?);
        Ok((now.0 > seen.0 && now.1 > seen.1).then_some(()))
    })?;
    let after = standing(region, job)?;
    anyhow::ensure!(before == after, "{before:?} became {after:?}");
    anyhow::ensure!(records(&foreign::topic(region)?) == sent, "segments were sent again");
    nothing_is_left_of(region, job)
}

/// The function that is at the upload is killed between the upload's record and its plan; the event comes again, and the job is done once.
fn a_killed_function_is_invoked_again(region: &Region, clip: &Path) -> anyhow::Result<String> {
    let ours = |pid: &i32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.to_string_lossy().contains("vp-ingest"));
        program && processes::variable(*pid, "VP_RESULTS_BUCKET") == Some(region.bucket("results"))
    };
    let job = region.submit(clip)?;
    let killed: Vec<Process> = wait_until("ingest is at work", SHORT, || {
        anyhow::ensure!(!exists(region, &format!("jobs/{}/plan.json", job.id))?, "the plan came before the kill");
        Ok(exists(region, &format!("jobs/{}/submitted.json", job.id))?.then(|| processes::all().filter(ours).filter_map(Process::of).collect()))
    })?;
    anyhow::ensure!(!killed.is_empty(), "no process of ingest");
    for process in &killed {
        process.signal(Signal::SIGKILL)?;
    }
    wait_until("the try is counted as failed", SHORT, || {
        let log = lambda_log(region)?;
        Ok(log.lines().any(|line| line.contains("invocation failed") && line.contains("Runtime.ExitError")).then_some(()))
    })?;
    let done = region.wait_job(&job.id, LONG)?;
    anyhow::ensure!(done.outputs.len() == 2, "{:?}", done.outputs);
    anyhow::ensure!(delivered(region, &job.key)? == 1, "delivered {} times", delivered(region, &job.key)?);
    // The sweep, which takes up what was given up, would have brought another event.
    let log = lambda_log(region)?;
    let events = accepted(&log, &job.key);
    anyhow::ensure!(events.len() == 1, "the event itself was not tried again: {events:?} were accepted");
    let others = region.block_on(region.store().list(&region.bucket("results"), "results/"))?;
    anyhow::ensure!(others.iter().filter(|found| found.key.contains(&job.id)).count() == 3, "not two outputs and a manifest");
    Ok(job.id)
}

/// The result is the source: frames, lengths, faststart; the contact sheet is a picture of the right size.
fn the_result_is_the_source(region: &Region, job: &str, clip: &Path) -> anyhow::Result<()> {
    let plan = Plan::from_bytes(&object(region, &format!("jobs/{job}/plan.json"))?)?;
    anyhow::ensure!(plan.segments.len() >= 20, "{} segments", plan.segments.len());
    let video = fetched(region, job, "360p.mp4")?;
    let (source, made) = (facts(clip)?, facts(&video)?);
    same_length(&source, &made)?;
    anyhow::ensure!((made.width, made.height, made.codec.as_str()) == (640, 360, "h264"), "{made:?}");
    anyhow::ensure!(is_faststart(&std::fs::read(&video)?), "the index stands behind the media");
    let sheet = facts(&fetched(region, job, "contact-sheet.jpg")?)?;
    anyhow::ensure!((sheet.width, sheet.height, sheet.codec.as_str(), sheet.frames) == (SHEET.0, SHEET.1, "mjpeg", 1), "{sheet:?}");
    nothing_is_left_of(region, job)
}

/// Every odd input ends as it must, all at once; then an ordinary clip goes through as before.
fn odd_inputs_end_well_or_with_a_sentence(region: &Region) -> anyhow::Result<()> {
    let folder = region.scratch().join("odd");
    std::fs::create_dir_all(&folder)?;
    let mut jobs = Vec::new();
    for odd in odd_inputs(&folder)? {
        let etag = region.block_on(region.store().put(&region.bucket("uploads"), odd.key, odd.bytes.into(), "video/mp4"))?;
        jobs.push((odd.key, odd.end, id(region, odd.key, &etag, "default").to_string()));
    }
    let mut wrong = BTreeMap::new();
    for (key, end, job) in jobs {
        let judged = region.wait_ended(&job, LONG).and_then(|ended| match end {
            End::Failed(sentence) => {
                let reason = ended.reason.unwrap_or_default();
                anyhow::ensure!(ended.state == "failed" && reason.contains(sentence), "{}: {reason}", ended.state);
                Ok(())
            }
            End::Done(frames, width, height) => {
                anyhow::ensure!(ended.state == "done", "{}: {:?}", ended.state, ended.reason);
                let made = facts(&fetched(region, &job, "360p.mp4")?)?;
                anyhow::ensure!((made.frames, made.width, made.height) == (frames, width, height), "{made:?}");
                anyhow::ensure!(ended.outputs.len() == 2, "{:?}", ended.outputs);
                Ok(())
            }
        });
        if let Err(error) = judged {
            wrong.insert(key, format!("{error:#}"));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}");
    anyhow::ensure!(foreign::topic(region)?.values().flatten().any(|found| found.kind == "reference"), "nothing was too large for records");
    a_bad_file_fails_its_submitter(region, &folder)?;
    timed(region, &sample("clip-10s.mp4")).map(drop)
}

/// Alone, then while ten minutes of video are under way: at most three times as long. The long one is then cancelled.
fn a_short_clip_does_not_wait_behind_a_long_one(region: &Region) -> anyhow::Result<()> {
    let folder = region.scratch();
    std::fs::write(folder.join("list"), format!("file '{}'\n", sample("clip-90s.mp4").display()).repeat(7))?;
    ffmpeg(&folder, &["-f", "concat", "-safe", "0", "-i", "list", "-c", "copy", "-t", "600", "ten-minutes.mp4"])?;
    let short = sample("clip-10s.mp4");
    let (first, alone_s) = timed(region, &short)?;
    let long = submit(region, &folder.join("ten-minutes.mp4"))?;
    wait_until("the long one is processed", LONG, || Ok((region.job(&long)?.segments_done >= Some(2)).then_some(())))?;
    let (second, beside_s) = timed(region, &short)?;
    println!("   10 s clip: {alone_s:.1} s alone, {beside_s:.1} s beside ten minutes of video");
    let at = region.job(&long)?;
    anyhow::ensure!(!at.ended(), "the long one was over before the short one: {at:?}");
    anyhow::ensure!(beside_s <= 3.0 * alone_s, "{beside_s:.1} s beside the long one, {alone_s:.1} s alone");
    anyhow::ensure!(region.job(&first)?.hashes() == region.job(&second)?.hashes(), "the same clip, other bytes");

    anyhow::ensure!(region.ctl(&["jobs", "cancel", &long])?.code == 0, "not cancelled");
    let ended = region.wait_ended(&long, SHORT)?;
    anyhow::ensure!(ended.state == "cancelled" && ended.outputs.is_empty(), "{ended:?}");
    nothing_is_left_of(region, &long)?;

    // A finished job again: a new job, the same bytes. And one that goes on cannot be begun again.
    let answer = region.json(&["jobs", "retry", &first])?;
    let again = answer["job"].as_str().context("no job")?.to_owned();
    anyhow::ensure!(again != first && answer["retry_of"] == first.as_str(), "{answer}");
    let refused = region.ctl(&["jobs", "retry", &again])?;
    let ended = region.wait_job(&again, SHORT)?;
    anyhow::ensure!(refused.code != 0 && refused.stderr.contains("not over yet"), "{refused:?}");
    anyhow::ensure!(ended.hashes() == region.job(&first)?.hashes(), "the same clip, other bytes");
    Ok(())
}

/// What opens the root's key, and people's own keys, stand in no file of the region but their own: in no log, no disk of an instance, no bucket.
fn no_secret_is_where_it_does_not_belong(region: &Region) -> anyhow::Result<()> {
    let trust = region.state().join("trust");
    let own: Vec<PathBuf> = files(&trust)?;
    let mut secrets = vec![std::fs::read_to_string(trust.join("seal.key"))?.trim().to_owned()];
    for key in own.iter().filter(|path| path.ends_with("key.pem")) {
        secrets.extend(std::fs::read_to_string(key)?.lines().nth(1).map(str::to_owned));
    }
    anyhow::ensure!(secrets.len() == 4 && secrets.iter().all(|secret| secret.len() >= 40), "{} secrets", secrets.len());
    let (mut looked_at, mut found) = (0, Vec::new());
    for path in files(&region.state())?.into_iter().filter(|path| !own.contains(path)) {
        // What is gone meanwhile is no place for a secret.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        looked_at += 1;
        let text = String::from_utf8_lossy(&bytes);
        if secrets.iter().any(|secret| text.contains(secret)) {
            found.push(path);
        }
    }
    anyhow::ensure!(looked_at > 50 && found.is_empty(), "{looked_at} files looked at, secrets in {found:?}");
    Ok(())
}

/// Every plain file below a folder but Kafka's, which hold what was uploaded.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "volumes" {
            all.extend(files(&path).unwrap_or_default());
        } else if kind.is_file() {
            all.push(path);
        }
    }
    Ok(all)
}

#[test]
fn process_a_video_goes_through_whatever_it_is_and_no_packet_leaves_the_machine() {
    let ((), packets) = counted(scenarios).unwrap();
    assert_eq!(packets, 0, "packets for link-local addresses or other machines");
}

fn scenarios() {
    let region = Region::up("pipeline").expect("a region comes up");
    let mut scenarios = Scenarios::new();
    let (short, long) = (sample("clip-10s.mp4"), sample("clip-90s.mp4"));
    let (mut plain, mut disturbed) = (None, None);
    scenarios.run("any S3 client makes a job", || any_client_makes_a_job(&region));
    scenarios.run("a plain job, whose submitter did not wait for its end", || {
        plain = Some(submitted_and_left(&region, &short)?);
        let job = plain.as_deref().context("a job")?;
        let sheet = facts(&fetched(&region, job, "contact-sheet.jpg")?)?;
        anyhow::ensure!((sheet.width, sheet.height) == SHEET, "{sheet:?}");
        anyhow::ensure!(exists(&region, &keys::manifest(&job.parse()?))?, "no manifest");
        same_length(&facts(&short)?, &facts(&fetched(&region, job, "360p.mp4")?)?)
    });
    scenarios.run("foreign clients see the plan", || foreign_clients_see_the_plan(&region, plain.as_deref().context("no plain job")?));
    scenarios.run("an event again changes nothing", || an_event_again_changes_nothing(&region, plain.as_deref().context("no plain job")?));
    scenarios.run("a killed function is invoked again", || {
        disturbed = Some(a_killed_function_is_invoked_again(&region, &long)?);
        Ok(())
    });
    scenarios.run("the result is the source", || the_result_is_the_source(&region, disturbed.as_deref().context("no job")?, &long));
    scenarios.run("odd inputs end well or with a sentence", || odd_inputs_end_well_or_with_a_sentence(&region));
    scenarios.run("a short clip does not wait behind a long one", || a_short_clip_does_not_wait_behind_a_long_one(&region));
    scenarios.run("no secret is where it does not belong", || no_secret_is_where_it_does_not_belong(&region));
    // Inside, so that a failure keeps the region's logs.
    scenarios.finish();
}
