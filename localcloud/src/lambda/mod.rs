//! Lambda for the local region: S3 events invoke real `lambda_runtime` programs by Lambda's own rules.

pub mod config;

/// Runs the service until it is told to stop.
///
/// # Errors
/// When the configuration cannot be read or the address cannot be bound.
pub async fn run(config: std::path::PathBuf) -> anyhow::Result<()> {
    anyhow::bail!("lambda service: not built yet ({})", config.display())
}
