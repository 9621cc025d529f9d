//! Which rules `apply` obeys. A rule that changes what an old command does waits for a number: programs of two versions then make equal
//! states of one log until every member has the newer one and `RaiseApplyVersion` has passed.
//!
//! | version | rule |
//! |---|---|
//! | 0 | as founded |
//! | 1 | a command with a request id that was answered before changes nothing ([`crate::requests`]) |
//! | 2 | an operator's word fences a lost node ([`crate::Command::Gone`]); programs that know only 1 cannot read it |

use crate::{apply::Events, command::Rejection, state::ClusterState};

/// The newest rules this program knows. A state beyond them is not for this program to change: it stops.
pub const NEWEST: u32 = 2;
/// From here on request ids count.
pub const REQUESTS_ONCE: u32 = 1;
/// From here on [`crate::Command::Gone`] is taken.
pub const OPERATORS_WORD: u32 = 2;

pub(crate) fn raise(state: &mut ClusterState, to: u32, events: &mut Events) -> Result<(), Rejection> {
    if to <= state.apply_version {
        return Err(Rejection::Impossible(format!("the rules of version {to} hold already")));
    }
    if let Some((id, member)) = state.coordinators.members.iter().find(|(_, member)| member.supports < to) {
        return Err(Rejection::Impossible(format!("member {id} knows the rules up to version {}, not {to}: upgrade it first", member.supports)));
    }
    events.say("rules raised", "coordinators", format!("from version {} to {to}", state.apply_version));
    state.apply_version = to;
    Ok(())
}

/// The rules that every member knows, when they are newer than those that hold.
pub fn raisable(state: &ClusterState) -> Option<u32> {
    let common = state.coordinators.members.values().map(|member| member.supports).min()?;
    (common > state.apply_version).then_some(common)
}
