//! Attacks by name on three real coordinators: on joining, on certificates, on calls, between peers, and by the mass. Each is refused, and whoever is
//! honest does not notice. Left out: what a coordinator's own key allows (it opens the root's, see `vp_trust::authority`).
#![allow(clippy::unwrap_used, reason = "a test's unwrap is its assertion, in its helpers too")]

mod beside;
mod calls;
mod certificates;
mod coordinators;
mod joining;
mod load;
mod mass;
mod peers;
mod wire;

use std::fmt::Debug;
use std::sync::{OnceLock, RwLock};
use std::time::Instant;

use tonic::{Code, Status};
use vp_tests::cell::Cell;
use vp_tests::cell::machine::Machine;
use vp_trust::Credentials;

/// Attackers share this process with honest agents. The C library's heap asks the kernel for each large message's memory and gives it back, and whoever else
/// needs memory at that moment waits for an attacker that runs at the lowest priority.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Descriptors that this program needs: ten thousand half-open connections, and its own.
const DESCRIPTORS: u64 = 12_000;

/// One cell for the whole program.
static CELL: OnceLock<Cell> = OnceLock::new();

/// Attacks by the mass run alone; the others side by side, or one after another (`--test-threads 1`).
static QUIET: RwLock<()> = RwLock::new(());

/// Coordinators die with this process; their folder is taken along.
extern "C" fn leave() {
    if let Some(cell) = CELL.get() {
        cell.leave();
    }
    beside::tell();
}

/// Lets this program and the coordinators that it starts have as many descriptors as they may. An attack that runs out of them is none, and nobody would see it.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit};
    vp_coordinator::api::limits::raise_descriptors();
    let (allowed, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(allowed >= DESCRIPTORS, "attacks need {DESCRIPTORS} descriptors, {allowed} are allowed and {most} at most: raise the hard limit (ulimit -Hn)");
}

fn cell() -> &'static Cell {
    CELL.get_or_init(|| {
        raise_descriptors();
        // SAFETY: the function takes nothing and returns nothing.
        unsafe { nix::libc::atexit(leave) };
        Cell::up().unwrap_or_else(|error| panic!("{error:?}"))
    })
}

/// Runs one attack beside others, and beside honest agents.
fn attack(attack: impl Future<Output = ()>) {
    beside::begin();
    let _side_by_side = QUIET.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let from = Instant::now();
    cell().block_on(attack);
    assert!(cell().all_live(), "{}", cell().last_words());
    beside::judge(from);
}

/// An honest instance, enrolled.
async fn honest(id: &str) -> (Machine, Credentials) {
    let machine = Machine::launch(cell(), id).unwrap();
    let own = machine.enrol(cell()).await.unwrap_or_else(|error| panic!("{error:?}\n{}", cell().last_words()));
    (machine, own)
}

/// The answer was a refusal of that kind, for that reason.
fn refused<T: Debug>(answer: Result<T, Status>, code: Code, reason: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(reason), "{status:?}");
}
