//! Settings from the function's environment, validated once.

use std::path::PathBuf;

/// What the function needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bucket of job records and results.
    pub results_bucket: String,
    /// Bucket in which the coordinators publish the brokers.
    pub cluster_bucket: String,
    /// Folder of the recipes.
    pub recipes: PathBuf,
    /// Segments over this size travel as a reference, bytes.
    pub reference_bytes: u64,
    /// Replicas of the topic when it must be made (3).
    pub topic_replication: i32,
}

fn needed(name: &str) -> Result<String, String> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| format!("environment variable {name} is not set"))
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().map_err(|_| format!("{name}={text:?} is not a number of the wanted size")),
    }
}

impl Settings {
    /// Reads `VP_RESULTS_BUCKET`, `VP_CLUSTER_BUCKET`, `VP_RECIPES`, and if set `VP_REFERENCE_BYTES`,
    /// `VP_TOPIC_REPLICATION`.
    ///
    /// # Errors
    /// A sentence naming the variable that is missing or wrong.
    pub fn from_environment() -> Result<Self, String> {
        let recipes = PathBuf::from(needed("VP_RECIPES")?);
        if !recipes.is_dir() {
            return Err(format!("VP_RECIPES={} is not a folder", recipes.display()));
        }
        Ok(Self {
            results_bucket: needed("VP_RESULTS_BUCKET")?,
            cluster_bucket: needed("VP_CLUSTER_BUCKET")?,
            recipes,
            reference_bytes: number("VP_REFERENCE_BYTES", 32 << 20)?,
            topic_replication: number("VP_TOPIC_REPLICATION", 3)?,
        })
    }
}
