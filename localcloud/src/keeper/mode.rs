//! Modes: how an instance is made, found again and taken away. When that is to happen the keeper decides; a mode knows neither the
//! control API nor volumes.
//!
//! ```text
//! keeper --boot, standing, take away--> Mode --> Processes: PID 1 in namespaces of its own, a control group
//!                                            (later) machines: systemd-nspawn
//! ```

use super::KeeperError;
use super::disk::Disk;
use super::launcher::Listed;

/// What has become of an instance on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its disk has no mark.
    NeverBooted,
    /// Booted, and its PID 1 lives.
    Living,
    /// Booted and ended, or ruled out from being booted.
    Ended,
}

/// How instances of one mode are made.
///
/// A mode keeps nothing in memory: the disk's mark names the instance's PID 1 as the host sees it, and SIGKILL to that takes the whole
/// PID namespace. So a restarted keeper needs no other way to adopt instances than to ask for their standing, and `region::down` ends
/// them without a keeper.
///
/// # Machine mode
/// This is how `systemd-nspawn` is meant to fit; nothing of it is built. The machine's name is derived from the instance's id, short
/// enough for a network link's 15 characters. It needs root, so every machine has a control group, which nspawn itself is in too.
///
/// - `metadata`: the bridge's own address, a port for each instance: the host does not have the machine's address.
/// - `boot`: makes the control group, mounts an overlay (below: the image's folder, above: the disk's root), deletes a stale link of
///   that name, and runs `systemd-nspawn --machine --network-bridge --keep-unit` in the group. The folder of links and the region's
///   volumes are bound at the host's paths, so that a link made later resolves inside too. In place of `-b` a small gate is PID 1: it
///   waits for the mark, gives the machine its address on the bridge, and becomes systemd. The mark names this child of nspawn, never
///   nspawn: SIGKILL to that one can leave the machine running.
/// - `standing`: by the mark, as for processes, so a machine whose nspawn was killed still lives. A machine that reboots has another
///   PID 1: the gate finds its pipe closed and ends, and so a reboot is an end.
/// - `take_away`: SIGKILL to PID 1 and wait for its pidfd, then the same for what is left in the group (nspawn, which after the
///   keeper's restart is nobody's child here); then delete the link, unmount the overlay, remove the group.
pub trait Mode {
    /// Address and port on which the keeper serves the instance's metadata; listened on before the instance is booted.
    fn metadata(&self, instance: &Listed) -> String;

    /// Boots an instance that was never booted. It runs nothing before its disk is marked, and nothing at all when another marked it first.
    ///
    /// # Errors
    /// `Boot`, `File`. An instance that was marked before this failed stays dead, one that was not may be booted again.
    fn boot(&self, disk: &Disk, instance: &Listed) -> impl Future<Output = Result<(), KeeperError>> + Send;

    /// What has become of the instance, whichever keeper booted it.
    ///
    /// # Errors
    /// `File`, `Config` when the mark cannot be understood.
    fn standing(&self, disk: &Disk) -> Result<Standing, KeeperError>;

    /// Kills an instance whose disk is marked and clears up after it. Returns only when no process of it is left; may be called again.
    ///
    /// # Errors
    /// `Kill`, `File`, `Config`: something of it may still run.
    fn take_away(&self, disk: &Disk, instance: &Listed) -> impl Future<Output = Result<(), KeeperError>> + Send;
}
