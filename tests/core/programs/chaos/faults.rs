//! What can be done to a real cluster, how often relative to each other, and what it is called in the table.

use anyhow::ensure;

/// What can be done to a real cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CoordinatorKill,
    LeaderKill,
    CoordinatorPause,
    CoordinatorFailPoint,
    CoordinatorPower,
    CoordinatorPowerAll,
    CoordinatorClock,
    CoordinatorFullDisk,
    CoordinatorBitFlip,
    LeaderCut,
    LeaderWithHolder,
    CoordinatorOneWay,
    CoordinatorsSlow,
    AgentKill,
    AgentPause,
    AgentFailPoint,
    AgentClock,
    InstanceCut,
    InstanceOneWay,
    InstanceReset,
    InstanceLost,
    MostSilent,
    Drain,
    CloudFails,
}

/// How often, relative to each other.
const FAULTS: [(Fault, usize); 24] = [
    (Fault::CoordinatorKill, 2),
    (Fault::LeaderKill, 2),
    (Fault::CoordinatorPause, 3),
    (Fault::CoordinatorFailPoint, 4),
    (Fault::CoordinatorPower, 2),
    (Fault::CoordinatorPowerAll, 1),
    (Fault::CoordinatorClock, 2),
    (Fault::CoordinatorFullDisk, 1),
    (Fault::CoordinatorBitFlip, 1),
    (Fault::LeaderCut, 3),
    (Fault::LeaderWithHolder, 3),
    (Fault::CoordinatorOneWay, 3),
    (Fault::CoordinatorsSlow, 1),
    (Fault::AgentKill, 3),
    (Fault::AgentPause, 4),
    (Fault::AgentFailPoint, 6),
    (Fault::AgentClock, 2),
    (Fault::InstanceCut, 4),
    (Fault::InstanceOneWay, 4),
    (Fault::InstanceReset, 2),
    (Fault::InstanceLost, 2),
    (Fault::MostSilent, 1),
    (Fault::Drain, 2),
    (Fault::CloudFails, 1),
];

/// The faults whose names have one of the texts in them, or all without a text; each as often as it is to come up.
///
/// # Errors
/// No name has any of them.
pub fn chosen(only: &[String]) -> anyhow::Result<Vec<Fault>> {
    let wanted = |fault: Fault| only.is_empty() || only.iter().any(|text| fault.name().contains(text.as_str()));
    let chosen: Vec<Fault> = FAULTS.iter().filter(|(fault, _)| wanted(*fault)).flat_map(|(fault, weight)| std::iter::repeat_n(*fault, *weight)).collect();
    ensure!(!chosen.is_empty(), "no fault of real clusters is called {}", only.join(" or "));
    Ok(chosen)
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::CoordinatorKill => "coordinator killed",
            Self::LeaderKill => "leading coordinator killed",
            Self::CoordinatorPause => "coordinator paused",
            Self::CoordinatorFailPoint => "coordinator's fail point",
            Self::CoordinatorPower => "coordinator loses power: unsynced writes gone",
            Self::CoordinatorPowerAll => "all coordinators lose power at once",
            Self::CoordinatorClock => "coordinator's wall clock jumps",
            Self::CoordinatorFullDisk => "coordinator's disk full",
            Self::CoordinatorBitFlip => "bit flipped in the log of a coordinator that is down",
            Self::LeaderCut => "leading coordinator cut off from the others",
            Self::LeaderWithHolder => "leading coordinator cut off together with an exclusive slot's holder",
            Self::CoordinatorOneWay => "coordinator heard by the others but not hearing them, or the other way",
            Self::CoordinatorsSlow => "coordinators slow to each other",
            Self::AgentKill => "agent killed",
            Self::AgentPause => "agent paused",
            Self::AgentFailPoint => "agent's fail point",
            Self::AgentClock => "agent's wall clock jumps",
            Self::InstanceCut => "instance cut off",
            Self::InstanceOneWay => "instance heard but not hearing, or the other way",
            Self::InstanceReset => "instance's connections reset",
            Self::InstanceLost => "instance gone without a word",
            Self::MostSilent => "most instances silent at once",
            Self::Drain => "instance drained and taken back",
            Self::CloudFails => "EC2 answers with errors",
        }
    }

    /// Whether it is above all a partition, a pause or a kill: what leases and fences are there for.
    pub fn is_blow(self) -> bool {
        match self {
            Self::CoordinatorKill | Self::LeaderKill | Self::CoordinatorPause | Self::CoordinatorPower | Self::CoordinatorPowerAll => true,
            Self::LeaderCut | Self::LeaderWithHolder | Self::CoordinatorOneWay => true,
            Self::AgentKill | Self::AgentPause | Self::InstanceCut | Self::InstanceOneWay | Self::InstanceLost | Self::MostSilent => true,
            Self::CoordinatorFailPoint | Self::CoordinatorClock | Self::CoordinatorFullDisk | Self::CoordinatorBitFlip | Self::CoordinatorsSlow => false,
            Self::AgentFailPoint | Self::AgentClock | Self::InstanceReset | Self::Drain | Self::CloudFails => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_chooses_the_faults_that_are_called_so_and_none_that_fits_is_refused() {
        assert_eq!(chosen(&["most instances".to_owned()]).unwrap(), [Fault::MostSilent]);
        assert_eq!(chosen(&[]).unwrap().len(), FAULTS.iter().map(|(_, weight)| weight).sum::<usize>());
        assert!(chosen(&["no such fault".to_owned()]).is_err());
    }

    #[test]
    fn more_than_half_of_what_comes_up_are_partitions_pauses_and_kills() {
        let all = chosen(&[]).unwrap();
        assert!(all.iter().filter(|fault| fault.is_blow()).count() * 2 > all.len());
    }
}
