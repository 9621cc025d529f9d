//! `coordinators`: who there is, and who else is wanted. The coordinators do the rest: learner first, one joint change, an odd number of voters.

use vp_proto::v1::WantedCoordinator;

use super::orders::tell;
use crate::arguments::{CoordinatorsCommand, Format};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::terminal::Screen;
use crate::view::{self, model};

/// Lists them, or changes who is wanted.
pub async fn coordinators(cluster: &Cluster, screen: &Screen, format: Format, command: CoordinatorsCommand) -> Result<u8, Failure> {
    let accepted = match command {
        CoordinatorsCommand::List => {
            let status = model::Status::from(cluster.status().await?);
            view::show(screen, format, &status.coordinators, |_| view::status::coordinators(&status, screen))?;
            return Ok(0);
        }
        CoordinatorsCommand::Add { wanted } => {
            let wanted: Vec<WantedCoordinator> = wanted.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
            cluster.want_coordinators(wanted, Vec::new()).await?
        }
        CoordinatorsCommand::Remove { ids } => cluster.want_coordinators(Vec::new(), ids).await?,
    };
    tell(screen, format, "coordinators", "coordinators", "coordinators wanted as of", accepted)
}

fn parse(text: &str) -> Result<WantedCoordinator, Failure> {
    let wrong = || Failure::Usage(format!("{text:?} is no coordinator: expected ID=ADDRESS,ZONE,GROUP, for example 4=10.0.1.14,us-east-1a,dev-coordinator-4"));
    let (id, rest) = text.split_once('=').ok_or_else(wrong)?;
    let [address, zone, group] = rest.split(',').collect::<Vec<_>>()[..] else { return Err(wrong()) };
    if [address, zone, group].contains(&"") {
        return Err(wrong());
    }
    let id = id.parse().map_err(|_| wrong())?;
    Ok(WantedCoordinator { id, address: address.to_owned(), zone: zone.to_owned(), group: group.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_number_address_zone_and_group() {
        let wanted = parse("4=10.0.1.14,us-east-1a,dev-coordinator-4").expect("a coordinator");
        assert_eq!((wanted.id, wanted.address.as_str(), wanted.group.as_str()), (4, "10.0.1.14", "dev-coordinator-4"));
        for wrong in ["4", "x=a,b,c", "4=a,b", "4=a,b,c,d", "4=a,,c"] {
            assert_eq!(parse(wrong).expect_err(wrong).exit_code(), 64, "{wrong}");
        }
    }
}
