//! A client that did not hear the answer asks again under the same request id: the state remembers what became of the last ones, so that
//! a command is applied once however often it is asked for.

use std::collections::VecDeque;

use crate::{
    apply,
    command::{Command, Rejection},
    ids::Revision,
    state::ClusterState,
    version::REQUESTS_ONCE,
};

/// How many answers are remembered, first in first out. Operators ask by hand: far more than they can within any retry.
pub const REMEMBERED: usize = 1024;
/// Longest request id, bytes.
pub const LONGEST_REQUEST: usize = 64;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Answer {
    /// Where it was applied: for a repeated request, the first time.
    pub revision: Revision,
    pub rejection: Option<Rejection>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Requests {
    answered: VecDeque<(String, Answer)>,
}

impl Requests {
    /// What became of a request, if that is still remembered.
    pub fn answer(&self, request: &str) -> Option<&Answer> {
        self.answered.iter().rev().find(|(id, _)| id == request).map(|(_, answer)| answer)
    }

    pub fn len(&self) -> usize {
        self.answered.len()
    }

    pub fn is_empty(&self) -> bool {
        self.answered.is_empty()
    }
}

/// [`apply::apply`], once a request id.
pub fn apply_once(state: &mut ClusterState, index: u64, unix_ms: u64, request: Option<&str>, command: &Command) -> Answer {
    // A program of before cannot read it, its request id included.
    if let Err(rejection) = command.check_rules(state.apply_version) {
        skip(state, index);
        return Answer { revision: state.revision, rejection: Some(rejection) };
    }
    let request = request.filter(|_| state.apply_version >= REQUESTS_ONCE);
    if let Some(answer) = request.and_then(|request| state.requests.answer(request)).cloned() {
        skip(state, index);
        return answer;
    }
    let rejection = match request.filter(|request| request.len() > LONGEST_REQUEST) {
        Some(_) => {
            skip(state, index);
            Some(Rejection::Impossible(format!("a request id has at most {LONGEST_REQUEST} bytes")))
        }
        None => apply::apply(state, index, unix_ms, command).err(),
    };
    let answer = Answer { revision: state.revision, rejection };
    if let Some(request) = request.filter(|request| request.len() <= LONGEST_REQUEST) {
        state.requests.answered.push_back((request.to_owned(), answer.clone()));
        while state.requests.answered.len() > REMEMBERED {
            state.requests.answered.pop_front();
        }
    }
    answer
}

/// An entry that changes nothing: the revision advances all the same.
pub fn skip(state: &mut ClusterState, index: u64) {
    state.revision = state.revision.max(Revision(index));
}
