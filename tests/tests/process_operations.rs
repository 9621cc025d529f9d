//! What operators order, on a real region: more and fewer members, another disk, a node emptied. Foreign clients write all the while, and what was
//! acknowledged to them is there at the end. One region for all scenarios; each leaves a healthy cluster to the next. Its image has one role more than is
//! shipped: the one that `docs/adding-a-role.md` adds.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use vp_tests::{
    Region, example,
    processes::Process,
    region::sample,
    scenarios::Scenarios,
    slots::{Instance, Slot},
    topics::Topic,
    wait_until, writers,
    writers::Writers,
};

/// As the region's own, but a fourth broker is allowed, and there is the walk-through's role.
const SPEC: &str = "roles:
  zookeeper: {min: 3, pref: 3, max: 5}
  kafka: {min: 3, pref: 3, max: 4}
  spark-master: {pref: 2}
  spark-worker: {pref: 3}
  stream: {pref: 1}
  status-page: {pref: 1}
volume_wait_ms: 60000
";
/// One order carried out whole: members start one after another, each as slow as its program.
const DONE: Duration = Duration::from_secs(180);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn orders_are_carried_out_whole_while_clients_write() {
    let house = tempfile::tempdir().unwrap();
    let region = Arc::new(region_in(house.path()).unwrap());
    let mut writers = Writers::start(&region).unwrap();
    let mut scenarios = Scenarios::new();
    scenarios.run("a role added by its folder alone runs and serves", || added_role_serves(&region));
    scenarios.run("a role that ends again and again is an alarm", || unsteady_role_is_told_of(&region));
    scenarios.run("a node is emptied and stays in service for others to judge", || node_is_emptied(&region));
    scenarios.run("an ensemble grows to five voters and shrinks to three", || ensemble_grows_and_shrinks(&region));
    scenarios.run("a broker is added, and taken away only when its partitions are elsewhere", || broker_comes_and_goes(&region));
    scenarios.run("a broker moves without its disk and copies what it had", || broker_moves_without_its_disk(&region));
    scenarios.run("three ZooKeeper members move one after another, and every broker lives on", || members_move(&region));
    scenarios.run("a video goes through what is left", || {
        let job = region.submit(&sample("clip-10s.mp4"))?;
        region.wait_job(&job.id, seconds(180)).map(drop)
    });
    scenarios.run("everything acknowledged to foreign writers is there", || writers.verify(&region)?.ensure_whole());
    scenarios.finish();
}

/// A region whose programs lie beside the shipped roles and one more.
fn region_in(house: &Path) -> anyhow::Result<Region> {
    let spec = house.join("spec.yaml");
    std::fs::write(&spec, SPEC)?;
    let programs = example::house(house)?;
    // SAFETY: nothing else runs in this program yet: it has one test, and what waits for that reads no environment.
    unsafe { env::set_var("VP_BIN", programs) };
    Region::up_with("operations", &["--spec", &spec.to_string_lossy()])
}

/// The page is served by whoever holds the slot, and says where ZooKeeper is.
fn added_role_serves(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    let slot = region.slot("status-page-1")?;
    ensure!(slot.healthy(), "{slot:?}");
    ensure!(slot.facts.get("generation") == Some(&slot.generation.to_string()), "the page's generation is another: {slot:?}");
    let address = region.instance(&slot.instance.context("somebody holds it")?)?.address.context("it has an address")?;
    let mut connection = TcpStream::connect((address.as_str(), 8090))?;
    connection.set_read_timeout(Some(seconds(10)))?;
    connection.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    connection.read_to_string(&mut page)?;
    ensure!(page.contains("status-page-1") && page.contains("zookeeper-3: "), "{page}");
    Ok(())
}

/// Killed each time it runs again: the fifth end is an alarm, of which an event and `status` tell.
fn unsteady_role_is_told_of(region: &Region) -> anyhow::Result<()> {
    let (name, since) = ("status-page-1", region.revision()?);
    let slot = region.slot(name)?;
    let holder = slot.instance.context("somebody holds it")?;
    let sentence = format!("{name} has ended 5 times in a row on {holder}");
    for _ in 0..5 {
        let first = wait_until("it runs", seconds(30), || Ok(region.slot_processes(&holder, name).into_iter().min_by_key(|one| one.start)))?;
        first.signal(Signal::SIGKILL)?;
        wait_until("its process is gone", seconds(10), || Ok((!first.alive()).then_some(())))?;
    }
    wait_until("an alarm tells of it", seconds(10), || {
        let alarms = region.status()?["alarms"].to_string();
        ensure!(alarms.contains(&sentence), "{alarms}");
        Ok(Some(()))
    })?;
    let told = region.told(since, "alarm raised", name)?;
    ensure!(told.len() == 1 && told[0].starts_with(&sentence), "the events say {told:?}");
    region.wait_healthy(seconds(60)).map(drop)
}

/// The slot left its holder because the holder's agent said so: `explain` and an event name its word.
fn ensure_given_back(region: &Region, slot: &str, by: &str, after: u64) -> anyhow::Result<()> {
    let proof = region.proof(slot)?;
    ensure!(proof == format!("the agent on {by} said its processes are gone"), "{slot} left {by} because {proof:?}");
    let told = region.told(after, "slot released", slot)?;
    ensure!(told == [format!("by {by}")], "{slot} left {by}, the events say {told:?}");
    Ok(())
}

/// Gives an order that must be accepted.
fn order(region: &Region, words: &[&str]) -> anyhow::Result<()> {
    let answer = region.ctl(words)?;
    ensure!(answer.code == 0, "{words:?}: {} {}{}", answer.code, answer.stdout, answer.stderr);
    Ok(())
}

fn of_role(region: &Region, role: &str) -> anyhow::Result<Vec<Slot>> {
    Ok(region.slots()?.into_iter().filter(|slot| slot.role == role).collect())
}

fn voters(region: &Region) -> anyhow::Result<BTreeSet<u32>> {
    let listed = region.block_on(async { writers::ensemble(&region.env("ZOOKEEPER_CONNECT")?).await })?;
    Ok(listed.into_iter().filter(|(_, line)| line.contains(":participant")).map(|(id, _)| id).collect())
}

/// Waits until ZooKeeper itself lists as many voters, which are those of the role's healthy slots.
fn wait_voters(region: &Region, count: usize) -> anyhow::Result<()> {
    let since = Instant::now();
    wait_until(&format!("{count} members vote"), DONE, || {
        let (voters, slots) = (voters(region)?, of_role(region, "zookeeper")?);
        let members: BTreeSet<u32> = slots.iter().filter(|slot| slot.healthy()).filter_map(|slot| slot.member_id).collect();
        ensure!(voters.len() == count && voters.is_subset(&members), "{voters:?} vote, {members:?} are healthy");
        Ok(Some(()))
    })?;
    println!("   {count} voters after {:.1} s", since.elapsed().as_secs_f32());
    region.wait_healthy(DONE).map(drop)
}

fn ensemble_grows_and_shrinks(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    let founders = voters(region)?;
    order(region, &["scale", "zookeeper", "5"])?;
    wait_voters(region, 5)?;
    ensure!(founders.is_subset(&voters(region)?), "who voted before votes on");
    order(region, &["scale", "zookeeper", "3"])?;
    wait_voters(region, 3)
}

fn brokers(region: &Region) -> anyhow::Result<Vec<String>> {
    region.block_on(async { writers::brokers(&region.env("ZOOKEEPER_CONNECT")?).await })
}

fn wait_brokers(region: &Region, wanted: &[&str]) -> anyhow::Result<()> {
    let since = Instant::now();
    wait_until(&format!("the brokers are {wanted:?}"), DONE, || {
        let now = brokers(region)?;
        ensure!(now == wanted, "{now:?} are registered");
        Ok(Some(()))
    })?;
    println!("   brokers {wanted:?} after {:.1} s", since.elapsed().as_secs_f32());
    region.wait_healthy(DONE).map(drop)
}

fn broker_comes_and_goes(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    order(region, &["scale", "kafka", "4"])?;
    wait_brokers(region, &["1", "2", "3", "4"])?;
    let topic = Topic { region, name: "on-the-fourth" };
    topic.make(&[4, 1, 2])?;
    // 8 MB: enough to be copied and not just begun.
    topic.fill(2_000, 4_096)?;
    order(region, &["scale", "kafka", "3"])?;
    wait_brokers(region, &["1", "2", "3"])?;
    let copies: BTreeSet<u32> = topic.copies()?.into_iter().collect();
    ensure!(copies == [1, 2, 3].into(), "its copies are on {copies:?}");
    ensure!(topic.count()? == 2_000, "{} of 2000 records are left", topic.count()?);
    wait_until("the reassignment's throttle is lifted", seconds(60), || {
        let throttled: Vec<String> = topic.settings()?.into_keys().filter(|key| key.contains("throttled")).collect();
        ensure!(throttled.is_empty(), "{throttled:?}");
        Ok(Some(()))
    })?;
    let told = region.events(0)?.iter().any(|event| event["kind"] == "partitions reassigned");
    ensure!(told, "no event tells of it");
    Ok(())
}

fn broker_moves_without_its_disk(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    let topic = Topic { region, name: "copied" };
    topic.make(&[1, 2, 3])?;
    topic.fill(2_000, 4_096)?;
    let (before, revision) = (region.slot("kafka-1")?, region.revision()?);
    let since = Instant::now();
    order(region, &["move", "kafka-1", "--empty-disk"])?;
    wait_until("it is healthy elsewhere, on another disk", DONE, || {
        let now = region.slot("kafka-1")?;
        ensure!(now.healthy() && now.instance != before.instance && now.volume != before.volume, "{now:?}");
        Ok(Some(()))
    })?;
    region.wait_healthy(DONE)?;
    println!("   moved and in sync after {:.1} s", since.elapsed().as_secs_f32());
    let after = region.slot("kafka-1")?;
    ensure!(after.member_id == before.member_id && after.generation > before.generation, "{before:?}, then {after:?}");
    ensure_given_back(region, "kafka-1", before.instance.as_deref().context("it had a holder")?, revision)?;
    ensure!(topic.count()? == 2_000, "{} of 2000 records are left", topic.count()?);
    Ok(())
}

/// The process that came first of each healthy broker, by slot.
fn broker_processes(region: &Region) -> anyhow::Result<BTreeMap<String, Process>> {
    let brokers = of_role(region, "kafka")?.into_iter().filter(Slot::healthy);
    let first = brokers.filter_map(|slot| {
        let processes = region.slot_processes(&slot.instance?, &slot.name);
        processes.into_iter().min_by_key(|one| one.start).map(|one| (slot.name, one))
    });
    Ok(first.collect())
}

/// Among five nodes a member always lives where another one did: a broker that knew only the old addresses could live on. So its names are looked at.
fn brokers_know_the_members(region: &Region) -> anyhow::Result<()> {
    wait_until("every broker's node knows each member's address", seconds(20), || {
        let nodes = region.nodes()?;
        let address = |holder: &str| nodes.iter().find(|node| node.id == holder).and_then(|node| node.address.clone()).context("it has an address");
        for broker in of_role(region, "kafka")? {
            let names = std::fs::read_to_string(region.disk(&broker.instance.context("it has a holder")?).join("root/agent/hosts"))?;
            for member in of_role(region, "zookeeper")? {
                let line = format!("{} {}", address(&member.instance.context("it has a holder")?)?, member.name);
                ensure!(names.lines().any(|named| named == line), "{} is not told {line:?}: {names}", broker.name);
            }
        }
        Ok(Some(()))
    })
}

/// Brokers know ZooKeeper by its slots' names alone: those that have run since before the first move must find all three members where none was. (A leading Spark
/// master ends by itself when its connection breaks, and the other one takes over: of the masters one must lead in the end.)
fn members_move(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    let before = broker_processes(region)?;
    ensure!(before.len() == 3, "three brokers expected: {before:?}");
    let since = Instant::now();
    for name in ["zookeeper-1", "zookeeper-2", "zookeeper-3"] {
        let holder = region.slot(name)?.instance;
        order(region, &["move", name, "--empty-disk"])?;
        wait_until(&format!("{name} is healthy elsewhere"), DONE, || {
            let now = region.slot(name)?;
            ensure!(now.healthy() && now.instance != holder, "{now:?}");
            Ok(Some(()))
        })?;
        wait_voters(region, 3)?;
    }
    println!("   three moves after {:.1} s", since.elapsed().as_secs_f32());
    wait_brokers(region, &["1", "2", "3"])?;
    brokers_know_the_members(region)?;
    let after = broker_processes(region)?;
    ensure!(after == before, "a broker was started again: {before:?}, then {after:?}");
    wait_until("one of two masters leads", seconds(60), || {
        let masters = of_role(region, "spark-master")?;
        let leading = masters.iter().filter(|slot| slot.healthy() && slot.facts.get("mode").is_some_and(|mode| mode == "ALIVE")).count();
        ensure!(leading == 1 && masters.len() == 2, "{leading} masters lead: {masters:?}");
        Ok(Some(()))
    })?;
    let topic = Topic { region, name: "after-three-moves" };
    topic.make(&[1, 2, 3])?;
    topic.fill(100, 1_024)?;
    ensure!(topic.count()? == 100, "{} of 100 records are there", topic.count()?);
    Ok(())
}

/// The node that carries most of those that can be emptied: volumes move within their zone, and one node carries no two members of one role. As long as
/// members are spread over three zones, each node of a zone with two can be; after some were moved, perhaps none.
fn node_that_can_be_emptied(region: &Region) -> anyhow::Result<String> {
    let (slots, nodes) = (region.slots()?, region.nodes()?);
    let carried = |node: &Instance| slots.iter().filter(|slot| slot.instance.as_deref() == Some(&*node.id)).collect::<Vec<_>>();
    let takes = |other: &Instance, disk: &Slot| carried(other).iter().all(|slot| slot.role != disk.role);
    let can_be_emptied = |one: &&Instance| {
        let neighbours: Vec<&Instance> = nodes.iter().filter(|other| other.id != one.id && other.zone == one.zone).collect();
        let mut disks = carried(one).into_iter().filter(|slot| slot.volume.is_some());
        !neighbours.is_empty() && disks.all(|disk| neighbours.iter().any(|other| takes(other, disk)))
    };
    let fullest = nodes.iter().filter(can_be_emptied).max_by_key(|one| carried(one).len());
    fullest.map(|one| one.id.clone()).with_context(|| format!("no node could be emptied: {slots:?}"))
}

fn node_is_emptied(region: &Region) -> anyhow::Result<()> {
    region.wait_healthy(seconds(120))?;
    let node = node_that_can_be_emptied(region)?;
    let held = |node: &str| anyhow::Ok(region.held_by(node)?.into_iter().map(|slot| slot.name).collect::<Vec<_>>());
    let (before, revision) = (held(&node)?, region.revision()?);
    let since = Instant::now();
    order(region, &["drain", &node])?;
    let emptied = wait_until("it holds nothing", DONE, || {
        let now = held(&node)?;
        ensure!(now.is_empty(), "{now:?}");
        Ok(Some(()))
    });
    if let Err(error) = &emptied {
        println!("   {error:#}; the plan: {}", region.json(&["plan"])?["gates"]);
    }
    order(region, &["drain", &node, "--undo"])?;
    emptied?;
    println!("   {before:?} elsewhere after {:.1} s", since.elapsed().as_secs_f32());
    ensure!(!before.is_empty(), "it held nothing");
    for slot in &before {
        ensure_given_back(region, slot, &node, revision)?;
    }
    let lifecycle = region.json(&["nodes"])?;
    let nodes = lifecycle.as_array().context("nodes are a list")?;
    ensure!(nodes.iter().any(|one| one["instance"] == node.as_str()), "the instance is gone: {lifecycle}");
    region.wait_healthy(DONE).map(drop)
}
