//! Where the cluster is: flags, then the environment, then the record of a local region. Opens nothing on the network.

use std::net::SocketAddr;
use std::path::PathBuf;

use vp_cloud::Session;
use vp_cloud::autoscaling::Groups;
use vp_cloud::ec2::Compute;
use vp_cloud::s3::ObjectStore;
use vp_localcloud::region::{Region, RegionError, state_of};
use vp_proto::COORDINATOR_PORT;
use vp_trust::{Credentials, Rank};

use crate::arguments::PlaceArguments;
use crate::failure::Failure;

/// What is known of the cluster's place; each part is asked for only by commands that need it.
#[derive(Debug)]
pub struct Place {
    flags: PlaceArguments,
    region: Result<Region, RegionError>,
}

/// The pipeline's store and buckets.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub store: ObjectStore,
    pub uploads: String,
    pub results: String,
}

impl Place {
    /// Reads flags and, if there is one, the local region's record.
    pub fn find(flags: &PlaceArguments) -> Self {
        Self { region: Region::open(&state_folder(flags)), flags: flags.clone() }
    }

    /// The local region, when that is where the cluster is.
    pub fn region(&self) -> Result<&Region, Failure> {
        self.region.as_ref().map_err(|error| match error {
            RegionError::Absent(path) => Failure::Nowhere { reason: format!("no local region in {}", path.display()) },
            other => Failure::Malformed { what: "the region's record".to_owned(), reason: other.to_string() },
        })
    }

    /// A flag that names a local region outweighs the environment.
    fn region_is_named(&self) -> bool {
        self.flags.region_name.is_some() || self.flags.state.is_some()
    }

    /// The coordinators' addresses, `host:port`.
    pub fn coordinators(&self) -> Result<Vec<String>, Failure> {
        if !self.flags.coordinators.is_empty() {
            return self.flags.coordinators.iter().map(|a| with_port(a)).collect();
        }
        if !self.region_is_named()
            && let Some(list) = variable("VP_COORDINATORS")
        {
            return list.split(',').map(str::trim).filter(|a| !a.is_empty()).map(with_port).collect();
        }
        self.region()?.record().coordinators.iter().map(|a| with_port(a)).collect()
    }

    /// What the person proves itself with: the folder that was named, else the local region's admin.
    pub fn certificate(&self) -> Result<Credentials, Failure> {
        if let Some(folder) = &self.flags.certificate {
            return certificate(folder);
        }
        if !self.region_is_named()
            && let Some(folder) = variable("VP_CERTIFICATE")
        {
            return certificate(folder.as_ref()).map_err(|error| match (variable("VP_STATE"), &self.region) {
                (Some(state), Err(RegionError::Absent(_))) => {
                    Failure::Nowhere { reason: format!("the region in {state} was taken down, and this shell still has its exports (VP_STATE and others)") }
                }
                _ => error,
            });
        }
        let none = |_| Failure::NoCertificate { reason: "none is named, and there is no local region".to_owned() };
        let region = self.region.as_ref().map_err(none)?;
        let folder = region.operator(Rank::Admin);
        if !folder.exists() {
            let what = format!("the region in {} is not up yet: its certificates are still to be made", region.state().display());
            return Err(Failure::NotNow { what, next: "`vpctl dev up` goes on from where it stopped".to_owned() });
        }
        certificate(&folder)
    }

    async fn session(&self) -> Result<Session, Failure> {
        let names = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "VP_UPLOADS_BUCKET", "VP_RESULTS_BUCKET"];
        if !self.region_is_named() && names.iter().any(|name| variable(name).is_some()) {
            if let Ok(region) = &self.region
                && variable("VP_STATE").is_some()
            {
                exported_by(variable("AWS_ACCESS_KEY_ID").as_deref(), &region.record().access_key_id)?;
            }
            return Ok(Session::from_environment().await);
        }
        Ok(Session::load(self.region()?.record().endpoints()).await)
    }

    /// EC2 and Auto Scaling.
    pub async fn cloud(&self) -> Result<(Compute, Groups), Failure> {
        let session = self.session().await?;
        Ok((Compute::new(session.shared()), Groups::new(session.shared())))
    }

    /// The store with its two buckets.
    pub async fn pipeline(&self) -> Result<Pipeline, Failure> {
        let uploads = self.bucket("VP_UPLOADS_BUCKET", "uploads")?;
        let results = self.bucket("VP_RESULTS_BUCKET", "results")?;
        Ok(Pipeline { store: ObjectStore::new(&self.session().await?), uploads, results })
    }

    /// The store with the bucket in which the coordinators keep their claims.
    pub async fn cluster_bucket(&self) -> Result<(ObjectStore, String), Failure> {
        let bucket = self.bucket("VP_CLUSTER_BUCKET", "cluster")?;
        Ok((ObjectStore::new(&self.session().await?), bucket))
    }

    fn bucket(&self, name: &str, role: &str) -> Result<String, Failure> {
        if !self.region_is_named()
            && let Some(bucket) = variable(name)
        {
            return Ok(bucket);
        }
        let missing = || Failure::Nowhere { reason: format!("{name} is not set and there is no local region") };
        let region = self.region.as_ref().map_err(|_| missing())?;
        region.record().buckets.get(role).cloned().ok_or_else(missing)
    }
}

/// Exports outlive their region: one that was taken down and is up again has other keys, and S3 answers the old ones that nothing exists.
fn exported_by(key: Option<&str>, regions: &str) -> Result<(), Failure> {
    if key.is_none_or(|key| key == regions) {
        return Ok(());
    }
    let what = "this shell has the exports of a region that was taken down since".to_owned();
    Err(Failure::NotNow { what, next: "take the new ones: eval \"$(vpctl dev env)\"".to_owned() })
}

/// The certificate in a folder.
pub fn certificate(folder: &std::path::Path) -> Result<Credentials, Failure> {
    Credentials::load(folder).map_err(|error| Failure::NoCertificate { reason: crate::failure::chain(&error) })
}

/// Name and state folder of the local region that flags mean.
pub fn region_name(flags: &PlaceArguments) -> String {
    flags.region_name.clone().unwrap_or_else(|| "dev".to_owned())
}

/// State folder of the local region that flags mean: a name that was given outweighs `VP_STATE`, which may be another region's (`vpctl dev env` sets it).
pub fn state_folder(flags: &PlaceArguments) -> PathBuf {
    let told = || variable("VP_STATE").filter(|_| flags.region_name.is_none()).map(PathBuf::from);
    flags.state.clone().or_else(told).unwrap_or_else(|| state_of(&region_name(flags)))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `host`, `host:port`, `ip`, `ip:port` or `[v6]:port`, with the coordinators' port when none is given.
fn with_port(address: &str) -> Result<String, Failure> {
    let address = address.trim();
    let wrong = |why: &str| Err(Failure::Usage(format!("coordinator address {address:?}: {why}")));
    if address.parse::<SocketAddr>().is_ok() {
        return Ok(address.to_owned());
    }
    match address.rsplit_once(':') {
        None if address.is_empty() => wrong("it is empty"),
        _ if address.contains('/') => wrong("HOST or HOST:PORT is allowed, without a scheme"),
        None => Ok(format!("{address}:{COORDINATOR_PORT}")),
        Some((host, _)) if host.is_empty() || host.contains(':') => wrong("HOST or HOST:PORT is allowed"),
        Some((_, port)) if port.parse::<u16>().is_err() => wrong("the port is a number from 1 to 65535"),
        Some(_) => Ok(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_coordinators_port() {
        assert_eq!(with_port("127.38.1.10").expect("an address"), "127.38.1.10:7400");
        assert_eq!(with_port(" db1:99 ").expect("an address"), "db1:99");
    }

    #[test]
    fn exports_of_a_region_that_was_taken_down_are_told_from_those_of_the_one_that_is_up() {
        assert!(exported_by(Some("key-2"), "key-2").is_ok() && exported_by(None, "key-2").is_ok());
        let told = exported_by(Some("key-1"), "key-2").expect_err("of another region").to_string();
        assert!(told.contains("taken down"), "{told}");
    }

    #[test]
    fn an_address_that_cannot_be_one_is_wrong_usage() {
        for wrong in ["", "http://127.0.0.1:7400", "host:port", ":7400"] {
            assert_eq!(with_port(wrong).expect_err(wrong).exit_code(), 64, "{wrong}");
        }
    }
}
