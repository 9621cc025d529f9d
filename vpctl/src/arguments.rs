//! The words of the command line: commands, options, their help. Nothing is done here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER: &str = "\
Where the cluster is: --coordinators, --certificate and --region-name, else
VP_COORDINATORS, VP_CERTIFICATE, AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3,
VP_UPLOADS_BUCKET, VP_RESULTS_BUCKET and AWS_*, else the local region `dev`.
Exit codes: 0 well or healthy, 1 failed or unreachable, 2 degraded,
3 no tolerance left, 4 quorum lost, 64 wrong usage.";
/// Heading of the options that every command has.
const EVERYWHERE: &str = "Everywhere";

/// Looks after a vp cluster: what it does, why, and what happens when a machine dies.
#[derive(Debug, Parser)]
#[command(name = "vpctl", version, after_help = AFTER, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(flatten)]
    pub place: PlaceArguments,
    /// Answer as table, wide, json or yaml
    #[arg(short = 'o', long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table, hide_possible_values = true, help_heading = EVERYWHERE)]
    pub format: Format,
    /// Tell on standard error what the libraries do
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the cluster is, as far as flags say.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaceArguments {
    /// Coordinators' addresses, with commas (port 7400 unless given)
    #[arg(long, global = true, value_delimiter = ',', value_name = "HOST:PORT", help_heading = EVERYWHERE)]
    pub coordinators: Vec<String>,
    /// Read any coordinator's copy, say how old it is
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub stale: bool,
    /// Name of a local region [default: dev]
    #[arg(long, global = true, value_name = "NAME", help_heading = EVERYWHERE)]
    pub region_name: Option<String>,
    /// Folder of your certificate [default: the region's admin]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub certificate: Option<PathBuf>,
    /// State folder of a local region
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub state: Option<PathBuf>,
}

impl PlaceArguments {
    /// The flags as a shell would take them again; empty when none was given.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if !self.coordinators.is_empty() {
            words.push(format!("--coordinators {}", quoted(&self.coordinators.join(","))));
        }
        words.extend(self.certificate.iter().map(|folder| format!("--certificate {}", quoted(&folder.display().to_string()))));
        words.extend(self.region_name.iter().map(|name| format!("--region-name {}", quoted(name))));
        words.extend(self.state.iter().map(|state| format!("--state {}", quoted(&state.display().to_string()))));
        words.join(" ")
    }
}

/// A value as a shell takes it, whatever is in it.
pub fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people with wide screens
    Wide,
    /// For programs; its keys are described in vpctl/README.md
    Json,
    /// The same as JSON, as YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The cluster on one screen; the exit code says how it is
    Status {
        /// Show it again and again until Ctrl-C
        #[arg(short, long)]
        watch: bool,
    },
    /// Instances: what they are, how they are, what they carry
    Nodes,
    /// Services and their slots: who holds what, in which generation
    Roles,
    /// What happened
    Events {
        /// Go on with what happens from now
        #[arg(short, long)]
        follow: bool,
        /// Only events after this revision
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        after: u64,
    },
    /// What the coordinator is about to do, and what it waits for
    Plan,
    /// Why a slot is where it is, and what it waits for
    Explain {
        /// Role and index, e.g. kafka-2
        #[arg(value_name = "SLOT")]
        slot: String,
    },
    /// Move everything off an instance before it is taken away
    Drain(DrainArguments),
    /// Give an instance nothing new; what it carries stays
    Cordon {
        /// Instance id (a beginning that is unique will do) or address
        #[arg(value_name = "NODE")]
        node: String,
        /// Let it take slots again
        #[arg(long)]
        undo: bool,
    },
    /// Move one slot to another instance
    Move(MoveArguments),
    /// Want more or fewer slots of a role, within its min and max
    Scale {
        /// Role, e.g. zookeeper
        #[arg(value_name = "ROLE")]
        role: String,
        /// How many
        #[arg(value_name = "COUNT")]
        wanted: u32,
    },
    /// Want what a file says
    Apply {
        /// The spec (YAML), as for `vpctl dev up --spec`
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// The brake on silence: closed when too much falls silent together
    Brake {
        #[command(subcommand)]
        command: BrakeCommand,
    },
    /// Say that a lost instance which EC2 has forgotten is gone
    ///
    /// An admin's word in the place of EC2's: what it held moves. See docs/runbooks/lost-quorum.md
    Gone {
        /// Instance id, in full. If it still runs after all, its roles run twice: look before you say so
        #[arg(value_name = "INSTANCE")]
        instance: String,
        /// Who says so, for the record [default: $USER]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
    /// Coordinators: which there are, one more, one less
    Coordinators {
        #[command(subcommand)]
        command: CoordinatorsCommand,
    },
    /// The cluster's state in a file, for the day on which most coordinators are lost
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Upload videos to be processed
    Submit(SubmitArguments),
    /// Jobs: videos that were uploaded, and what became of them
    Jobs {
        #[command(subcommand)]
        command: JobsCommand,
    },
    /// Kill an instance on purpose and measure how the cluster heals
    Drill(DrillArguments),
    /// A region of its own on this machine
    Dev {
        #[command(subcommand)]
        command: DevCommand,
    },
    /// Completion for a shell: vpctl completion bash > …
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum CoordinatorsCommand {
    /// Who there is, as what
    List,
    /// Want more of them: two at a time, their number stays odd
    Add {
        /// Number, address, zone and Auto Scaling Group of each
        #[arg(required = true, value_name = "ID=ADDRESS,ZONE,GROUP")]
        wanted: Vec<String>,
    },
    /// Want fewer of them: two at a time
    Remove {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u32>,
    },
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write the state as of now into a file
    Save {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what a file holds, and whether it is whole
    Inspect {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Found the cluster anew on a file: only when no coordinator can lead any more (docs/runbooks/lost-quorum.md)
    Restore {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The cluster's name, typed out: everything after the snapshot is given up
        #[arg(long, value_name = "CLUSTER")]
        confirm: String,
        /// Restore even though no coordinator answers: they are known to be gone, not merely out of reach from here
        #[arg(long)]
        all_gone: bool,
    },
}

/// Which node, and whether to wait.
#[derive(Debug, Args)]
pub struct DrainArguments {
    /// Instance id (a beginning that is unique will do) or address
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Take the drain back
    #[arg(long)]
    pub undo: bool,
    /// Wait until nothing is left on it
    #[arg(short, long, conflicts_with = "undo")]
    pub wait: bool,
    /// Give up waiting after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
}

/// Which slot, and where to.
#[derive(Debug, Args)]
pub struct MoveArguments {
    /// Role and index, e.g. kafka-2
    #[arg(value_name = "SLOT")]
    pub slot: String,
    /// Instance to move it to: id, its beginning, or address [default: the best one]
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Leave its volume behind; the others of its role must have the data
    #[arg(long)]
    pub empty_disk: bool,
    /// Take the wish back
    #[arg(long, conflicts_with_all = ["to", "empty_disk"])]
    pub undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum BrakeCommand {
    /// Whether it is closed, who is silent, and what was released
    Show,
    /// Say that the instances silent now are really gone: they are given up and replaced
    Release {
        /// Who says so, for the record [default: $USER]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct SubmitArguments {
    /// Video files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Recipe to process them with
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub recipe: String,
    /// Wait for the results
    #[arg(short, long)]
    pub wait: bool,
    /// Download the results into this folder (of several files: a folder each)
    #[arg(long, value_name = "DIR", requires = "wait")]
    pub output: Option<PathBuf>,
    /// Give up waiting after so many seconds (the jobs go on)
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub timeout: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// The newest jobs
    List {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: usize,
    },
    /// One job in full
    Show {
        /// Job id (a beginning that is unique will do)
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Download a finished job's results and verify them
    Fetch {
        /// Job id (a beginning that is unique will do)
        #[arg(value_name = "JOB")]
        job: String,
        /// Folder to write to
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
    },
    /// Ask for a job to be given up
    Cancel {
        /// Job id (a beginning that is unique will do)
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Submit a finished job's video again, as a new job
    Retry {
        /// Job id (a beginning that is unique will do)
        #[arg(value_name = "JOB")]
        job: String,
        /// Wait for the results
        #[arg(short, long)]
        wait: bool,
    },
}

#[derive(Debug, Args)]
pub struct DrillArguments {
    /// Instance to kill: id, its beginning, or address [default: the one with most slots]
    #[arg(value_name = "NODE", conflicts_with_all = ["role", "coordinator"])]
    pub node: Option<String>,
    /// Kill an instance that holds a slot of this role
    #[arg(long, value_name = "ROLE", conflicts_with = "coordinator")]
    pub role: Option<String>,
    /// Kill the instance of this coordinator
    #[arg(long, value_name = "ID")]
    pub coordinator: Option<u64>,
    /// Kill it with nobody told (SIGKILL from outside; only in a local region)
    #[arg(long)]
    pub silent: bool,
    /// Do it although no tolerance is left
    #[arg(long)]
    pub force: bool,
    /// Stop measuring after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub timeout: u64,
}

#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Bring the region up, or repair it
    Up {
        /// N of 127.N.0.0/16 [default: the first free from 20]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(20..=254))]
        network: Option<u8>,
        /// Instances in the nodes group
        #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
        nodes: u32,
        /// EC2 instance type
        #[arg(long, value_name = "TYPE", default_value = "t3.small")]
        instance_type: String,
        /// Lease, milliseconds
        #[arg(long, value_name = "MS", default_value_t = 4000)]
        lease_ms: u64,
        /// File with the wanted spec (YAML) instead of the default one
        #[arg(long, value_name = "FILE")]
        spec: Option<PathBuf>,
        /// Do not wait until the cluster is healthy
        #[arg(long)]
        no_wait: bool,
        /// Give up waiting for health after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 240)]
        timeout: u64,
    },
    /// Take the region away: processes, mounts, folder
    Down {
        /// Leave the state folder (logs, objects, disks)
        #[arg(long)]
        keep: bool,
    },
    /// Services and instances of the region
    Status,
    /// The exports with which other programs reach it: eval "$(vpctl dev env)"
    Env,
    /// Logs of services, instances and slots; without a name: which there are
    Logs {
        /// A service (keeper), an instance id, or a slot (kafka-1)
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Go on with what is written from now
        #[arg(short, long)]
        follow: bool,
        /// Lines from the end
        #[arg(short = 'n', long, default_value_t = 40)]
        lines: usize,
    },
}
