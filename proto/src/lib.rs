//! Wire messages of vp, generated from `proto/vp/v1`. Nothing clever lives here: judgement is in `vp-cluster`,
//! translation in the daemons.

/// Version 1 of the wire format.
#[allow(clippy::large_futures, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("vp.v1");

    impl std::fmt::Display for SlotRef {
        /// The slot's name, `role-index`: also its host name inside the cluster.
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}-{}", self.role, self.index)
        }
    }
}

/// Trailing-metadata key under which a follower names the leader's `host:port`.
pub const LEADER_KEY: &str = "vp-leader";

/// Largest message either side accepts, bytes. Bounded so that an authenticated peer cannot exhaust memory.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Port on which a coordinator serves agents, peers and operators: whoever has a certificate of the cluster.
pub const COORDINATOR_PORT: u16 = 7400;

/// Port on which a coordinator serves instances that have none yet.
pub const ENROLMENT_PORT: u16 = 7401;
