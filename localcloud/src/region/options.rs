//! What a person may choose about a local region, and the defaults.

use std::path::{Path, PathBuf};

/// How a region is to be brought up. [`UpOptions::new`] gives the default region.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Name of the region and cluster: lowercase letters, digits, hyphens.
    pub name: String,
    /// State folder.
    pub state: PathBuf,
    /// N of 127.N.0.0/16, 20 to 254; the recorded one, else the first free when absent.
    pub network: Option<u8>,
    /// Instances in the nodes group, over three zones.
    pub nodes: u32,
    /// EC2 instance type of nodes and coordinators.
    pub instance_type: String,
    /// Lease in milliseconds.
    pub lease_ms: u64,
    /// YAML of the wanted `spec` (contracts §2) instead of the default one.
    pub spec_yaml: Option<String>,
    /// Folder of the fetched components (contracts §8).
    pub components: PathBuf,
    /// Folder of the built programs.
    pub programs: PathBuf,
    /// Folder of the roles that the image carries.
    pub roles: PathBuf,
    /// Folder of the streaming job that the image carries.
    pub stream: PathBuf,
    /// Folder of the recipes that the Lambda functions read.
    pub recipes: PathBuf,
    /// Folder of the image's sources: holds `boot`.
    pub image: PathBuf,
    /// Folder of the control API's launcher.
    pub launcher: PathBuf,
    /// Coordinators and their groups are made (false: a region without a cluster, for tests of the region itself).
    pub coordinators: bool,
    /// Lambda service and functions are started.
    pub lambda: bool,
}

impl UpOptions {
    /// The default region: 3 coordinators, 5 t3.small over three zones, lease 4 s; programs beside the running executable, sources one folder up.
    pub fn new(name: &str, state: PathBuf) -> Self {
        let programs = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)).unwrap_or_else(|| PathBuf::from("bin"));
        let house = programs.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        Self {
            name: name.to_owned(),
            state,
            network: None,
            nodes: 5,
            instance_type: "t3.small".to_owned(),
            lease_ms: 4000,
            spec_yaml: None,
            components: default_components(),
            roles: house.join("roles"),
            stream: house.join("pipeline/stream"),
            recipes: house.join("pipeline/recipes"),
            image: house.join("ami"),
            launcher: house.join("localcloud/aws"),
            programs,
            coordinators: true,
            lambda: true,
        }
    }
}

/// How a region is to be taken away.
#[derive(Debug, Clone, Default)]
pub struct DownOptions {
    /// Leave the state folder (logs, objects, disks) where it is.
    pub keep: bool,
    /// Whose folder it has to be; None: any region's.
    pub name: Option<String>,
}

/// `$XDG_STATE_HOME/vp/NAME`, else `~/.local/state/vp/NAME`.
pub fn state_of(name: &str) -> PathBuf {
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from(".vp-state"));
    base.join("vp").join(name)
}

/// `$VP_COMPONENTS`, else `${VP_CACHE:-$HOME/.cache/vp}/components`.
fn default_components() -> PathBuf {
    if let Some(components) = std::env::var_os("VP_COMPONENTS").filter(|v| !v.is_empty()) {
        return PathBuf::from(components);
    }
    let cache = std::env::var_os("VP_CACHE")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/vp")))
        .unwrap_or_else(|| PathBuf::from(".cache/vp"));
    cache.join("components")
}

/// The control API's address in network N; a region is one such network.
pub fn network_of(number: u8) -> String {
    format!("127.{number}.0.2")
}
