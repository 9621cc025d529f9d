//! Which member is this instance, and may it vote? The first instances of a cluster found it together: one conditional write decides the incarnation, one each
//! who fills which place. Every later instance has an empty disk and asks the leader for a fresh id, since a voter that has forgotten what it promised could
//! undo an acknowledged command. Each step is decided from what the disk and the store show, so that a crash anywhere is followed by the same step again.
//!
//! ```text
//! founder:     record ─> disk ─> claim (if absent) ─> serve
//! replacement: record ─> ask the leader ─> disk ─> claim (over the predecessor's) ─> serve
//! ```
//!
//! Why founders need no vote among themselves: docs/decisions/0010-founders-are-named-in-one-record.md.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use raft::eraftpb::Snapshot;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};
use vp_cluster::{Zone, coordinators::CoordinatorSlot, version};

use crate::{
    claims::{self, Claim, ClaimError, Claims, RECORD, Record, claim_key},
    joining::{Join, Joined},
    membership::hand_over,
    peers::Network,
    raft::{Config, Machine, Node, NodeError, RaftHandle},
    saved::{self, SavedError},
    settings::Settings,
    storage::{self, DiskStore, StorageError, Store as _, StoreOptions, whose},
};

/// Between two looks at the record while serving.
const LOOK: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the disk of this coordinator cannot be made or read")]
    Disk(#[from] StorageError),
    #[error("{path} cannot be written")]
    File { path: PathBuf, source: std::io::Error },
    /// It may have voted: without its log it could vote again, differently.
    #[error(
        "coordinator {coordinator} was this instance's, but its log in {folder} is gone: it does not vote any more; terminate the instance, its successor joins under a fresh id"
    )]
    Emptied { coordinator: u32, folder: PathBuf },
    #[error(
        "the state of coordinator {coordinator} in {folder} was not the majority's: it takes no part any more; terminate the instance, its successor starts from the majority's"
    )]
    Differs { coordinator: u32, folder: PathBuf },
    #[error("the disk in {folder} is member {found}'s, but this instance has claimed its place as member {claimed}")]
    OtherMember { folder: PathBuf, found: u64, claimed: u64 },
    #[error("the disk in {folder} belongs to cluster {found:?}, not to {wanted:?}")]
    OtherCluster { folder: PathBuf, found: String, wanted: String },
    #[error("the cluster follows the rules of version {found}, this program knows them up to {known}: start the newer program")]
    Newer { found: u32, known: u32 },
}

/// Who asks, and where its disk is.
pub struct Me {
    pub cluster: String,
    pub coordinator: u32,
    pub instance_id: String,
    pub folder: PathBuf,
    /// All coordinators of the user data: the founders, if the cluster is not founded yet.
    pub slots: BTreeMap<u32, CoordinatorSlot>,
    /// How long a restored cluster waits before it begins: leases of before must have run out.
    pub restore_wait: Duration,
    /// Between two tries.
    pub again: Duration,
}

impl Me {
    pub fn new(settings: &Settings) -> Self {
        let data = &settings.user_data;
        let slot =
            |peer: &crate::settings::Peer| CoordinatorSlot { address: peer.address.to_string(), zone: Zone(peer.zone.clone()), group: peer.group.clone() };
        Self {
            cluster: data.cluster.clone(),
            coordinator: settings.me.id,
            instance_id: settings.instance_id.clone(),
            folder: settings.data.clone(),
            slots: data.coordinators.iter().map(|peer| (peer.id, slot(peer))).collect(),
            // The time in which the last member of before has seen the new record, then the lease with its drift and margin (decision 0003).
            restore_wait: 2 * LOOK + Duration::from_millis(data.lease_ms + data.lease_ms / 100 + 250),
            again: Duration::from_secs(1),
        }
    }
}

/// A place in the group, with a disk that belongs to it.
#[derive(Debug)]
pub struct Place {
    /// Name and incarnation.
    pub cluster_id: String,
    /// The cluster as it was founded.
    pub record: Record,
    pub member: u64,
    /// A founder whose disk holds nothing yet begins with this.
    pub first: Option<Snapshot>,
    /// Where the others were when this one joined or was founded; the replicated state knows better once there is one.
    pub members: BTreeMap<u64, SocketAddr>,
}

impl Place {
    /// Whose disk it is.
    pub fn identity(&self) -> storage::Identity {
        storage::Identity { cluster: self.cluster_id.clone(), member: self.member }
    }

    /// Opens the disk of the place; a founder's that holds nothing yet begins with the founders' first state.
    ///
    /// # Errors
    /// The disk is not usable: the claim was made on it, so if it is gone by now, it is lost.
    pub fn open<M: Machine>(&self, folder: &Path, lease_ms: u64, machine: M) -> Result<Node<DiskStore, M>, NodeError> {
        let options = StoreOptions { must_exist: true, ..StoreOptions::default() };
        let mut store = DiskStore::open(folder, &self.identity(), options)?;
        if let Some(first) = self.first.as_ref().filter(|_| store.is_empty()) {
            store.install(first)?;
            info!(index = first.get_metadata().index, "log founded");
        }
        Node::new(Config { id: self.member, ..Config::for_lease(lease_ms) }, store, machine)
    }
}

/// Name and incarnation, as disks and envelopes carry it.
pub fn cluster_id(cluster: &str, incarnation: &str) -> String {
    format!("{cluster}#{incarnation}")
}

/// Takes steps until this instance has a place. Waits as long as the store does not answer or the leader says "not yet".
///
/// # Errors
/// The disk is not usable, or not this instance's; asking again would not help.
pub async fn find_place(claims: &impl Claims, leader: &impl Join, me: &Me) -> Result<Place, BootstrapError> {
    let mut told = None;
    loop {
        let waits = match step(claims, leader, me).await? {
            Taken::Place(place) => return Ok(*place),
            Taken::Step => continue,
            Taken::Wait(reason) => reason,
        };
        if told.as_ref() != Some(&waits) {
            warn!(coordinator = me.coordinator, reason = %waits, "this instance has no place among the coordinators yet");
            told = Some(waits);
        }
        tokio::time::sleep(me.again).await;
    }
}

/// Ends when the cluster has another incarnation than this member's: it was restored, and two must not act. While `leads`, a record that is gone, or that
/// somebody wrote anew because it was gone, is put back: only a restore ends what a majority keeps alive.
pub async fn superseded(claims: impl Claims, mine: Record, leads: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(found) = claims::read::<Record>(&claims, RECORD).await else { continue };
        let etag = match &found {
            Some((record, _)) if record.incarnation == mine.incarnation => continue,
            Some((record, _)) if record.restored.is_some() || !leads() => return,
            Some((_, etag)) => Some(etag.as_str()),
            None if leads() => None,
            None => continue,
        };
        warn!(key = RECORD, "the record of this cluster is gone: it is put back");
        if let Err(error) = claims::write(&claims, RECORD, &mine, etag).await {
            warn!(error = %chain(&error), "the record is not put back yet");
        }
    }
}

/// Beside the log of a member whose state was not the majority's: whatever starts it again, it takes no part any more.
const DIFFERS: &str = "differs";

/// Says so on the disk.
///
/// # Errors
/// It cannot be written.
pub fn differs(folder: &Path, index: u64) -> Result<(), BootstrapError> {
    let path = folder.join(DIFFERS);
    let cause = |source| BootstrapError::File { path: path.clone(), source };
    std::fs::write(&path, index.to_string()).map_err(cause)?;
    std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(cause)
}

/// A majority contradicts this member's state at `index`: whoever asks is told so, and so is its next start. What is left to do is to [`retire`].
///
/// # Errors
/// The disk cannot be written.
pub fn stand_aside(network: &Network, folder: &Path, index: u64) -> Result<(), BootstrapError> {
    network.differs(index);
    differs(folder, index)?;
    error!("this member's state differs from the majority's at the same index: it takes no part any more, terminate its instance");
    Ok(())
}

/// Stops the log, whose end is `ended`. Whoever follows need not wait for an election, and the state is written, so that the next start replays little. True:
/// this member led no longer when it stopped.
///
/// # Errors
/// The log ended otherwise than asked.
pub async fn retire(raft: &RaftHandle, ended: impl Future<Output = Result<(), NodeError>>) -> Result<bool, NodeError> {
    let handed_over = hand_over(raft).await;
    raft.stop();
    ended.await?;
    Ok(handed_over)
}

enum Taken {
    Place(Box<Place>),
    Step,
    Wait(String),
}

async fn step(claims: &impl Claims, leader: &impl Join, me: &Me) -> Result<Taken, BootstrapError> {
    match try_step(claims, leader, me).await {
        Err(Stop::Store(error)) => Ok(Taken::Wait(chain(&error))),
        Err(Stop::Never(error)) => Err(error),
        Ok(taken) => Ok(taken),
    }
}

enum Stop {
    Store(ClaimError),
    Never(BootstrapError),
}

impl From<ClaimError> for Stop {
    fn from(error: ClaimError) -> Self {
        Self::Store(error)
    }
}

impl From<BootstrapError> for Stop {
    fn from(error: BootstrapError) -> Self {
        Self::Never(error)
    }
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Never(error.into())
    }
}

async fn try_step(claims: &impl Claims, leader: &impl Join, me: &Me) -> Result<Taken, Stop> {
    let Some((record, _)) = claims::read::<Record>(claims, RECORD).await? else {
        if let Some(reason) = founded_before(claims, me).await? {
            return Ok(Taken::Wait(reason));
        }
        claims::write(claims, RECORD, &first_record(me), None).await?;
        return Ok(Taken::Step);
    };
    if record.apply_version > version::NEWEST {
        return Err(BootstrapError::Newer { found: record.apply_version, known: version::NEWEST }.into());
    }
    let id = cluster_id(&me.cluster, &record.incarnation);
    let disk = match whose::identity(&me.folder)? {
        Some(found) if found.cluster == id => Some(found.member),
        Some(found) if found.cluster.starts_with(&format!("{}#", me.cluster)) => {
            set_aside(&me.folder, &found)?;
            return Ok(Taken::Step);
        }
        Some(found) => return Err(BootstrapError::OtherCluster { folder: me.folder.clone(), found: found.cluster, wanted: id }.into()),
        None => None,
    };
    let kept = claims::read::<Claim>(claims, &claim_key(me.coordinator)).await?;
    let claim = kept.as_ref().map(|(claim, _)| claim).filter(|claim| claim.incarnation == record.incarnation);
    let founder = record.founders.contains_key(&me.coordinator);
    match decide(disk, claim, &me.instance_id, founder.then_some(u64::from(me.coordinator))) {
        Next::Found => {
            if record.restored.is_some() {
                tokio::time::sleep(me.restore_wait).await;
            }
            make_disk(me, &id, u64::from(me.coordinator))?;
            Ok(Taken::Step)
        }
        // What is left of a disk that lost its log would be refused, and each try costs an id.
        Next::Join if me.folder.join("log").exists() => {
            set_aside(&me.folder, &storage::Identity { cluster: id, member: 0 })?;
            Ok(Taken::Step)
        }
        Next::Join => match leader.join(&id).await {
            Ok(joined) => {
                write_joined(&me.folder, &joined)?;
                make_disk(me, &id, joined.member)?;
                Ok(Taken::Step)
            }
            Err(reason) => Ok(Taken::Wait(format!("asked to join; {reason}"))),
        },
        Next::Claim(member) => {
            let claim = Claim { incarnation: record.incarnation, instance_id: me.instance_id.clone(), member };
            claims::write(claims, &claim_key(me.coordinator), &claim, kept.as_ref().map(|(_, etag)| etag.as_str())).await?;
            Ok(Taken::Step)
        }
        Next::SetAside => {
            set_aside(&me.folder, &storage::Identity { cluster: id, member: disk.unwrap_or_default() })?;
            Ok(Taken::Step)
        }
        Next::Serve(_) if me.folder.join(DIFFERS).exists() => Err(BootstrapError::Differs { coordinator: me.coordinator, folder: me.folder.clone() }.into()),
        Next::Serve(member) => serve(claims, me, &record, id, member).await,
        Next::Emptied => Err(BootstrapError::Emptied { coordinator: me.coordinator, folder: me.folder.clone() }.into()),
        Next::OtherMember { found, claimed } => Err(BootstrapError::OtherMember { folder: me.folder.clone(), found, claimed }.into()),
    }
}

/// Why a missing record is no sign of a new cluster: there are traces of one. Founding beside it would give up all that it has acknowledged.
async fn founded_before(claims: &impl Claims, me: &Me) -> Result<Option<String>, Stop> {
    let mends = "its running members put it back, or an operator does (docs/runbooks/lost-quorum.md)";
    if let Some(found) = whose::identity(&me.folder)? {
        if !found.cluster.starts_with(&format!("{}#", me.cluster)) {
            return Err(BootstrapError::OtherCluster { folder: me.folder.clone(), found: found.cluster, wanted: me.cluster.clone() }.into());
        }
        return Ok(Some(format!("{RECORD} is gone, but this disk is a member's of {}: {mends}", found.cluster)));
    }
    for number in me.slots.keys() {
        if claims::read::<Claim>(claims, &claim_key(*number)).await?.is_some() {
            return Ok(Some(format!("{RECORD} is gone, but {} is there, so the cluster was founded: {mends}", claim_key(*number))));
        }
    }
    Ok(None)
}

async fn serve(claims: &impl Claims, me: &Me, record: &Record, cluster_id: String, member: u64) -> Result<Taken, Stop> {
    let founder = member == u64::from(me.coordinator) && record.founders.contains_key(&me.coordinator);
    // One that holds a log needs no beginning, and the snapshot that it was founded on may be long gone.
    let begins = founder && DiskStore::open(&me.folder, &storage::Identity { cluster: cluster_id.clone(), member }, StoreOptions::default())?.is_empty();
    let first = match begins {
        true => match saved::first(claims, &me.cluster, record).await {
            Ok(first) => Some(first),
            Err(SavedError::Claims(error)) => return Err(error.into()),
            // An operator puts it right; nothing is lost meanwhile.
            Err(error) => return Ok(Taken::Wait(error.to_string())),
        },
        false => None,
    };
    let at = |(number, slot): (&u32, &CoordinatorSlot)| {
        let address = SocketAddr::new(slot.address.parse().ok()?, vp_proto::COORDINATOR_PORT);
        Some((u64::from(*number), address))
    };
    let members = if founder { record.founders.iter().filter_map(at).collect() } else { read_joined(&me.folder, member) };
    info!(coordinator = me.coordinator, member, cluster = %cluster_id, "this instance has its place");
    Ok(Taken::Place(Box::new(Place { cluster_id, record: record.clone(), member, first, members })))
}

#[derive(Debug, PartialEq)]
enum Next {
    /// Make the disk of a first voter.
    Found,
    /// Ask the leader for an id.
    Join,
    Claim(u64),
    Serve(u64),
    /// This disk was overtaken before it served: out of the way with it.
    SetAside,
    Emptied,
    OtherMember {
        found: u64,
        claimed: u64,
    },
}

/// The next step on the way to serving: by the member whose disk this is, who has claimed the place, and the founder's id if the place is a founder's.
/// The disk is made before the claim: so a claim of its own without a disk can only be a disk that was lost, wherever an earlier start was interrupted;
/// and a disk without a claim has never voted. Ids only grow: of two disks for one place the higher id is the later one.
fn decide(disk: Option<u64>, claim: Option<&Claim>, me: &str, founder: Option<u64>) -> Next {
    match (disk, claim) {
        (None, None) if founder.is_some() => Next::Found,
        (None, None) => Next::Join,
        (Some(member), None) => Next::Claim(member),
        (None, Some(claim)) if claim.instance_id == me => Next::Emptied,
        (None, Some(_)) => Next::Join,
        (Some(found), Some(claim)) if claim.instance_id == me && claim.member == found => Next::Serve(found),
        (Some(found), Some(claim)) if claim.instance_id == me => Next::OtherMember { found, claimed: claim.member },
        (Some(found), Some(claim)) if found > claim.member => Next::Claim(found),
        (Some(_), Some(_)) => Next::SetAside,
    }
}

fn first_record(me: &Me) -> Record {
    let mut random = [0; 8];
    // Without randomness the name alone tells incarnations apart: worse, never wrong by itself.
    let _ = SystemRandom::new().fill(&mut random);
    let incarnation = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Record { incarnation, founders: me.slots.clone(), apply_version: version::NEWEST, restored: None }
}

fn make_disk(me: &Me, cluster_id: &str, member: u64) -> Result<(), StorageError> {
    let identity = storage::Identity { cluster: cluster_id.to_owned(), member };
    DiskStore::open(&me.folder, &identity, StoreOptions::default()).map(drop)
}

/// Nothing is ever deleted here: a person may want to look.
fn set_aside(folder: &Path, was: &storage::Identity) -> Result<(), BootstrapError> {
    let cause = |source| BootstrapError::File { path: folder.to_owned(), source };
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let aside = |count: u32| folder.with_file_name(format!("{name}.{}-{}.{count}", was.cluster.replace('#', "-"), was.member));
    let free = (0..).map(aside).find(|path| !path.exists()).unwrap_or_else(|| aside(0));
    warn!(disk = %was, to = %free.display(), "a disk that never served here, or served another incarnation, is set aside");
    std::fs::rename(folder, &free).map_err(cause)?;
    let parent = folder.parent().unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(cause)
}

/// Beside the log of a member that joined: whom it can expect to hear from before it has a state.
const JOINED: &str = "joined.json";

#[derive(Serialize, Deserialize)]
struct JoinedFile {
    member: u64,
    members: BTreeMap<u64, SocketAddr>,
}

fn write_joined(folder: &Path, joined: &Joined) -> Result<(), BootstrapError> {
    let path = folder.join(JOINED);
    let cause = |source| BootstrapError::File { path: path.clone(), source };
    let bytes = serde_json::to_vec(&JoinedFile { member: joined.member, members: joined.members.clone() }).map_err(|error| cause(error.into()))?;
    std::fs::create_dir_all(folder).map_err(cause)?;
    std::fs::write(&path, bytes).map_err(cause)?;
    std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(cause)
}

/// Without it the member still learns of the others from whoever leads: their envelopes come from ids beyond its own knowledge.
fn read_joined(folder: &Path, member: u64) -> BTreeMap<u64, SocketAddr> {
    std::fs::read(folder.join(JOINED)).ok().and_then(|bytes| joined_members(&bytes, member)).unwrap_or_default()
}

/// Whom `member` can expect to hear from, by the file beside its log. None: it is not readable, or another member's.
pub fn joined_members(file: &[u8], member: u64) -> Option<BTreeMap<u64, SocketAddr>> {
    let kept: JoinedFile = serde_json::from_slice(file).ok()?;
    (kept.member == member).then_some(kept.members)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_serves_only_with_its_own_claim_and_the_disk_it_was_made_on() {
        let claim = |instance: &str, member| Some(Claim { incarnation: "x".to_owned(), instance_id: instance.to_owned(), member });
        let founder = Some(2);
        for (disk, claimed, founder, wanted) in [
            (None, None, founder, Next::Found),
            (Some(2), None, founder, Next::Claim(2)),
            (Some(2), claim("i-me", 2), founder, Next::Serve(2)),
            (None, claim("i-me", 2), founder, Next::Emptied),
            (None, claim("i-other", 2), founder, Next::Join),
            (Some(2), claim("i-other", 2), founder, Next::SetAside),
            (Some(4), claim("i-other", 2), founder, Next::Claim(4)),
            (Some(4), claim("i-me", 4), founder, Next::Serve(4)),
            (Some(4), claim("i-other", 5), founder, Next::SetAside),
            (Some(4), claim("i-me", 5), founder, Next::OtherMember { found: 4, claimed: 5 }),
            (None, None, None, Next::Join),
            (Some(4), None, None, Next::Claim(4)),
        ] {
            assert_eq!(decide(disk, claimed.as_ref(), "i-me", founder), wanted, "disk {disk:?}, claimed {claimed:?}");
        }
    }
}
