//! Three instances come up at once, and each may die, or lose an answer, at any step: they make one cluster. The same for a coordinator's successor.
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use raft::eraftpb::Message;
use tokio::sync::Notify;
use vp_cluster::{ClusterState, Command, Zone, coordinators::CoordinatorSlot, version::NEWEST};
use vp_coordinator::{
    bootstrap::{BootstrapError, Me, Place, differs, find_place, superseded},
    claims::{self, Claim, ClaimError, Claims, RECORD, Record, Restored, claim_key},
    joining::{Join, Joined},
    machine::{BadState, ClusterMachine, Entry},
    raft::{Machine, NodeError, Outbox},
    storage::StorageError,
};

type Objects = Arc<Mutex<BTreeMap<String, (Vec<u8>, u64)>>>;

/// What happens at one operation of one process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    DiesBefore,
    DiesAfter,
    /// It is done, and an error comes back.
    LosesAnswer,
}

/// A store as one process sees it: conditional writes, turns taken by a seeded choice, a fault at one operation.
struct View {
    objects: Objects,
    faults: Mutex<BTreeMap<u64, Fault>>,
    operations: Mutex<u64>,
    seed: Mutex<u64>,
    died: Notify,
}

impl View {
    fn new(objects: &Objects, seed: u64, faults: BTreeMap<u64, Fault>) -> Self {
        Self { objects: objects.clone(), faults: Mutex::new(faults), operations: Mutex::new(0), seed: Mutex::new(seed), died: Notify::new() }
    }

    fn random(&self, below: u64) -> u64 {
        let mut seed = self.seed.lock().unwrap();
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % below
    }

    /// The others get their turns.
    async fn turns(&self) {
        for _ in 0..self.random(4) {
            tokio::task::yield_now().await;
        }
    }

    async fn perform<T>(&self, act: impl FnOnce(&mut BTreeMap<String, (Vec<u8>, u64)>) -> T) -> Result<T, ClaimError> {
        let fault = {
            let mut operations = self.operations.lock().unwrap();
            *operations += 1;
            self.faults.lock().unwrap().remove(&*operations)
        };
        self.turns().await;
        if fault == Some(Fault::DiesBefore) {
            self.die().await;
        }
        let outcome = act(&mut self.objects.lock().unwrap());
        self.turns().await;
        match fault {
            Some(Fault::DiesAfter) => self.die().await,
            Some(Fault::LosesAnswer) => return Err(ClaimError::Store("no answer".into())),
            _ => {}
        }
        Ok(outcome)
    }

    async fn die(&self) {
        self.died.notify_one();
        std::future::pending::<()>().await;
    }
}

impl Claims for View {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, String)>, ClaimError> {
        self.perform(|objects| objects.get(key).map(|(bytes, tag)| (bytes.clone(), tag.to_string()))).await
    }

    async fn put(&self, key: &str, body: Vec<u8>, etag: Option<&str>) -> Result<(), ClaimError> {
        self.perform(|objects| {
            let found = objects.get(key).map(|(_, tag)| tag.to_string());
            if found.as_deref() == etag {
                let tag = objects.values().map(|(_, tag)| *tag).max().unwrap_or(0) + 1;
                objects.insert(key.to_owned(), (body, tag));
            }
        })
        .await
    }
}

/// A leader that gives out ids, or says "not yet".
struct Ids {
    next: Mutex<Option<u64>>,
}

impl Ids {
    fn none() -> Self {
        Self { next: Mutex::new(None) }
    }
}

impl Join for Ids {
    async fn join(&self, _: &str) -> Result<Joined, String> {
        tokio::task::yield_now().await;
        let mut next = self.next.lock().unwrap();
        let member = next.ok_or_else(|| "not yet".to_owned())?;
        *next = Some(member + 1);
        let members = BTreeMap::from([(1, SocketAddr::from(([127, 0, 0, 1], 7400)))]);
        Ok(Joined { member, members })
    }
}

fn me(root: &Path, coordinator: u32, instance: &str) -> Me {
    let slot = |number: u32| CoordinatorSlot { address: format!("127.37.9.{number}"), zone: Zone("a".to_owned()), group: format!("coordinator-{number}") };
    Me {
        cluster: "test".to_owned(),
        coordinator,
        instance_id: instance.to_owned(),
        folder: root.join(instance).join("coordinator"),
        slots: (1..=3).map(|number| (number, slot(number))).collect(),
        restore_wait: Duration::from_millis(1),
        again: Duration::from_millis(1),
    }
}

/// Finds its place however often it dies on the way; its disk stays.
async fn finds_place(objects: &Objects, ids: &Ids, me: &Me, seed: u64, mut faults: Vec<BTreeMap<u64, Fault>>) -> Place {
    faults.reverse();
    loop {
        let view = View::new(objects, seed, faults.pop().unwrap_or_default());
        tokio::select! {
            place = find_place(&view, ids, me) => return place.unwrap(),
            () = view.died.notified() => {}
        }
    }
}

#[derive(Default)]
struct Wire(VecDeque<Message>);

impl Outbox for Wire {
    fn send(&mut self, message: Message) -> bool {
        self.0.push_back(message);
        true
    }
}

/// The three serve: one of them is elected by the others and a command is applied by all.
fn make_one_cluster(mes: &[Me], places: &[Place]) {
    let ids: BTreeSet<&str> = places.iter().map(|place| place.cluster_id.as_str()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let mut nodes = BTreeMap::new();
    for (me, place) in mes.iter().zip(places) {
        assert_eq!(place.first, places[0].first, "all begin with the same");
        let (machine, state, _) = ClusterMachine::new();
        nodes.insert(place.member, (place.open(&me.folder, 4000, machine).unwrap(), state));
    }
    assert_eq!(nodes.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    let mut wire = Wire::default();
    let entry = Entry { unix_ms: 0, request: None, command: Command::Note { kind: "one".to_owned(), subject: String::new(), detail: String::new() } };
    nodes.get_mut(&2).unwrap().0.raw().campaign().unwrap();
    for proposes in [false, true] {
        if proposes {
            nodes.get_mut(&2).unwrap().0.propose(serde_json::to_vec(&entry).unwrap()).unwrap();
        }
        loop {
            for (node, _) in nodes.values_mut() {
                node.drive(&mut wire).unwrap();
            }
            let Some(message) = wire.0.pop_front() else { break };
            let _ = nodes.get_mut(&message.to).unwrap().0.raw().step(message);
        }
    }
    for (id, (_, state)) in &nodes {
        let state = state.borrow();
        assert_eq!(state.events.len(), 1, "member {id}");
        assert_eq!(state.coordinators.members.len(), 3);
    }
}

async fn founding(faults: [Vec<BTreeMap<u64, Fault>>; 3], seed: u64) {
    let root = tempfile::tempdir().unwrap();
    let objects = Objects::default();
    let mes: Vec<Me> = (1..=3).map(|number| me(root.path(), number, &format!("i-{number}"))).collect();
    let ids = Ids::none();
    let found = mes.iter().zip(faults).enumerate().map(|(at, (me, faults))| finds_place(&objects, &ids, me, seed + at as u64, faults));
    let places = futures::future::join_all(found).await;
    make_one_cluster(&mes, &places);
    // Whoever starts again has the same place.
    for (me, place) in mes.iter().zip(&places) {
        let again = finds_place(&objects, &ids, me, 1, Vec::new()).await;
        assert_eq!((again.member, &again.cluster_id), (place.member, &place.cluster_id));
    }
}

#[tokio::test]
async fn three_at_once_make_one_cluster_wherever_one_of_them_dies_or_is_not_answered() {
    for operation in 1..=9 {
        for fault in [Fault::DiesBefore, Fault::DiesAfter, Fault::LosesAnswer] {
            for victim in 0..3 {
                let mut faults = [const { Vec::new() }; 3];
                faults[victim] = vec![BTreeMap::from([(operation, fault)])];
                founding(faults, operation * 31 + victim as u64).await;
            }
        }
    }
}

#[tokio::test]
async fn three_that_all_die_again_and_again_make_one_cluster() {
    for seed in 0..40u64 {
        let dice = View::new(&Objects::default(), seed, BTreeMap::new());
        let fault = || [Fault::DiesBefore, Fault::DiesAfter, Fault::LosesAnswer][dice.random(3) as usize];
        let deaths = || (0..dice.random(5)).map(|_| BTreeMap::from([(1 + dice.random(7), fault())])).collect();
        founding([deaths(), deaths(), deaths()], seed).await;
    }
}

#[tokio::test]
async fn of_two_instances_for_one_place_one_founds_and_the_other_asks_to_join() {
    for seed in 0..20 {
        let root = tempfile::tempdir().unwrap();
        let (objects, ids) = (Objects::default(), Ids { next: Mutex::new(Some(4)) });
        let mes = [me(root.path(), 1, "i-a"), me(root.path(), 1, "i-b")];
        let both = mes.iter().enumerate().map(|(at, me)| finds_place(&objects, &ids, me, seed + 7 * at as u64, Vec::new()));
        // This leader gives ids without asking for proof: both get a place, never the same one.
        let mut members: Vec<u64> = futures::future::join_all(both).await.iter().map(|place| place.member).collect();
        members.sort_unstable();
        assert_eq!(members, [1, 4], "seed {seed}");
    }
}

#[tokio::test]
async fn a_successor_that_dies_anywhere_comes_in_under_an_id_that_was_never_given_before() {
    for operation in 1..=8 {
        for fault in [Fault::DiesBefore, Fault::DiesAfter, Fault::LosesAnswer] {
            let root = tempfile::tempdir().unwrap();
            let objects = Objects::default();
            let old = finds_place(&objects, &Ids::none(), &me(root.path(), 2, "i-old"), 3, Vec::new()).await;
            assert_eq!((old.member, old.first.is_some()), (2, true));
            let ids = Ids { next: Mutex::new(Some(4)) };
            let new = me(root.path(), 2, "i-new");
            let place = finds_place(&objects, &ids, &new, 5, vec![BTreeMap::from([(operation, fault)])]).await;
            assert!(place.member >= 4 && place.first.is_none() && !place.members.is_empty(), "{place:?}");
            let view = View::new(&objects, 1, BTreeMap::new());
            let (claim, _) = claims::read::<Claim>(&view, &claim_key(2)).await.unwrap().unwrap();
            assert_eq!((claim.instance_id.as_str(), claim.member), ("i-new", place.member));
            // Its disk is emptied: it does not come back under that id, and not silently under another.
            std::fs::remove_dir_all(&new.folder).unwrap();
            let emptied = find_place(&view, &ids, &new).await;
            assert!(matches!(emptied, Err(BootstrapError::Emptied { coordinator: 2, .. })), "{emptied:?}");
        }
    }
}

#[tokio::test]
async fn a_disk_of_another_cluster_is_refused_and_one_of_before_a_restore_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let objects = Objects::default();
    let mine = me(root.path(), 1, "i-1");
    let before = finds_place(&objects, &Ids::none(), &mine, 1, Vec::new()).await;
    let foreign = Me { cluster: "other".to_owned(), ..me(root.path(), 1, "i-1") };
    let refused = find_place(&View::new(&Objects::default(), 1, BTreeMap::new()), &Ids::none(), &foreign).await;
    assert!(matches!(refused, Err(BootstrapError::OtherCluster { .. })), "{refused:?}");
    let view = View::new(&objects, 1, BTreeMap::new());
    let (record, etag) = claims::read::<Record>(&view, RECORD).await.unwrap().unwrap();
    claims::write(&view, RECORD, &Record { incarnation: "next".to_owned(), ..record }, Some(&etag)).await.unwrap();
    let after = finds_place(&objects, &Ids::none(), &mine, 1, Vec::new()).await;
    assert_eq!((after.cluster_id.as_str(), after.member), ("test#next", 1));
    assert_ne!(before.cluster_id, after.cluster_id);
    let kept = std::fs::read_dir(root.path().join("i-1")).unwrap().count();
    assert_eq!(kept, 2, "the disk of before is still there");
}

#[tokio::test]
async fn a_disk_that_is_lost_after_its_place_was_found_is_not_made_anew() {
    let (root, objects) = (tempfile::tempdir().unwrap(), Objects::default());
    let mine = me(root.path(), 1, "i-1");
    let place = finds_place(&objects, &Ids::none(), &mine, 1, Vec::new()).await;
    std::fs::remove_dir_all(&mine.folder).unwrap();
    let refused = place.open(&mine.folder, 4000, ClusterMachine::new().0).err();
    assert!(matches!(refused, Some(NodeError::Storage(StorageError::Emptied { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_member_whose_state_was_not_the_majoritys_takes_no_part_however_often_it_starts() {
    let (root, objects) = (tempfile::tempdir().unwrap(), Objects::default());
    let mine = me(root.path(), 1, "i-1");
    finds_place(&objects, &Ids::none(), &mine, 1, Vec::new()).await;
    differs(&mine.folder, 7).unwrap();
    for _ in 0..2 {
        let refused = find_place(&View::new(&objects, 1, BTreeMap::new()), &Ids::none(), &mine).await;
        assert!(matches!(refused, Err(BootstrapError::Differs { coordinator: 1, .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_cluster_of_newer_rules_has_no_place_for_this_program() {
    let (root, objects) = (tempfile::tempdir().unwrap(), Objects::default());
    let mine = me(root.path(), 1, "i-1");
    finds_place(&objects, &Ids::none(), &mine, 1, Vec::new()).await;
    let view = View::new(&objects, 1, BTreeMap::new());
    let (record, etag) = claims::read::<Record>(&view, RECORD).await.unwrap().unwrap();
    claims::write(&view, RECORD, &Record { apply_version: NEWEST + 1, ..record }, Some(&etag)).await.unwrap();
    let refused = find_place(&view, &Ids::none(), &mine).await;
    assert!(matches!(refused, Err(BootstrapError::Newer { found, known: NEWEST }) if found == NEWEST + 1), "{refused:?}");
}

#[test]
fn a_state_of_newer_rules_is_not_taken() {
    let newer = ClusterState { apply_version: NEWEST + 1, ..ClusterState::default() };
    let mut machine = ClusterMachine::new().0;
    let refused = machine.restore(&serde_json::to_vec(&newer).unwrap());
    assert!(matches!(refused, Err(BadState::Newer { found, known: NEWEST }) if found == NEWEST + 1), "{refused:?}");
    assert_eq!(*machine.state(), ClusterState::default(), "and changes nothing");
}

#[tokio::test]
async fn a_record_that_is_gone_is_put_back_by_who_leads_and_founds_no_second_cluster() {
    let root = tempfile::tempdir().unwrap();
    let objects = Objects::default();
    let first = finds_place(&objects, &Ids::none(), &me(root.path(), 1, "i-1"), 1, Vec::new()).await;
    let view = View::new(&objects, 1, BTreeMap::new());
    objects.lock().unwrap().remove(RECORD);
    // Neither a member's disk nor a new instance makes a cluster of its own.
    for new in [me(root.path(), 1, "i-1"), me(root.path(), 2, "i-new")] {
        let waits = tokio::time::timeout(Duration::from_millis(200), find_place(&view, &Ids::none(), &new)).await;
        assert!(waits.is_err(), "{waits:?}");
        assert!(!objects.lock().unwrap().contains_key(RECORD));
    }
    // The bucket is lost whole: the disk alone tells.
    let kept = std::mem::take(&mut *objects.lock().unwrap());
    let waits = tokio::time::timeout(Duration::from_millis(200), find_place(&view, &Ids::none(), &me(root.path(), 1, "i-1"))).await;
    assert!(waits.is_err(), "{waits:?}");
    assert_eq!(objects.lock().unwrap().len(), 0, "and nothing is written");
    *objects.lock().unwrap() = kept;
    // Somebody wrote another all the same.
    let other = Record { incarnation: "another".to_owned(), ..first.record.clone() };
    claims::write(&view, RECORD, &other, None).await.unwrap();
    let keeper = tokio::spawn(superseded(View::new(&objects, 2, BTreeMap::new()), first.record.clone(), || true));
    let back = async || {
        while claims::read::<Record>(&view, RECORD).await.unwrap().is_none_or(|(record, _)| record != first.record) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back()).await.unwrap();
    // And it is gone again, with nothing in its place.
    objects.lock().unwrap().remove(RECORD);
    tokio::time::timeout(Duration::from_secs(20), back()).await.unwrap();
    // A restore ends it.
    let (_, etag) = claims::read::<Record>(&view, RECORD).await.unwrap().unwrap();
    let restored = Restored { key: "k".to_owned(), sha256: "s".to_owned(), unix_ms: 1, times: 1 };
    claims::write(&view, RECORD, &Record { restored: Some(restored), ..other }, Some(&etag)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), keeper).await.unwrap().unwrap();
}
