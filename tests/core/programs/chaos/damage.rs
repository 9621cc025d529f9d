//! One bit of what was synced is not what it was: a member must refuse such a disk with a clear word, and serve again once the bit is back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::sleep;

use crate::dice::Dice;

/// A member whose disk is damaged must say so and end within this.
const REFUSES_WITHIN: Duration = Duration::from_secs(20);

/// Members that keep a log each.
pub trait Keeper {
    /// Where a member's log lies.
    fn log_folder(&self, member: usize) -> PathBuf;

    /// The file with what a member has said.
    fn said(&self, member: usize) -> PathBuf;

    /// Starts a member on its disk.
    ///
    /// # Errors
    /// The program does not start.
    fn start(&mut self, member: usize) -> anyhow::Result<()>;

    /// SIGKILL.
    fn kill(&mut self, member: usize);

    /// Whether a member runs.
    fn runs(&mut self, member: usize) -> bool;
}

/// Flips one bit of a member that is down, sees it refuse, flips it back and starts the member. False: its log is too short yet, and it was only started again.
///
/// # Errors
/// It runs on the damaged disk, or ends without a clear word.
pub async fn flip_a_bit(members: &mut impl Keeper, member: usize, dice: &mut Dice) -> anyhow::Result<bool> {
    members.kill(member);
    let Some((path, at)) = synced_byte(&members.log_folder(member), dice)? else {
        members.start(member)?;
        return Ok(false);
    };
    let bit = 1 << dice.below(8);
    flip(&path, at, bit)?;
    let said_before = fs::metadata(members.said(member)).map_or(0, |log| log.len());
    members.start(member)?;
    let begun = Instant::now();
    while members.runs(member) {
        ensure!(begun.elapsed() < REFUSES_WITHIN, "bit {bit:#04x} of byte {at} of {} is flipped, and member {} runs", path.display(), member + 1);
        sleep(Duration::from_millis(20)).await;
    }
    let said = fs::read(members.said(member))?;
    let said = String::from_utf8_lossy(&said[usize::try_from(said_before)?.min(said.len())..]).into_owned();
    ensure!(said.contains("damaged") || said.contains("belongs to"), "the flipped bit ended member {} without a clear word: {said}", member + 1);
    flip(&path, at, bit)?;
    members.start(member)?;
    Ok(true)
}

/// A byte in the middle of what was synced: not in the last frame, which may have been cut short by the kill.
fn synced_byte(log: &Path, dice: &mut Dice) -> anyhow::Result<Option<(PathBuf, u64)>> {
    let mut segments: Vec<PathBuf> =
        fs::read_dir(log)?.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    segments.sort();
    if segments.is_empty() {
        return Ok(None);
    }
    let path = dice.pick(&segments).clone();
    let bytes = fs::read(&path)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    Ok((end > 400).then(|| (path, dice.below(end / 2) as u64)))
}

fn flip(path: &Path, at: u64, bit: u8) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= bit;
    Ok(file.write_all_at(&byte, at)?)
}
