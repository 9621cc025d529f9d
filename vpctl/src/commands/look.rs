//! `status`, `nodes`, `roles`: the cluster as it is now. The exit code of `status` says how it is.

use std::time::Duration;

use vp_proto::v1::ClusterStatus;

use crate::arguments::Format;
use crate::cluster::Cluster;
use crate::failure::{EXIT_FAILED, Failure};
use crate::terminal::Screen;
use crate::view::{self, model};

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// One look.
pub async fn status(cluster: &Cluster, screen: &Screen, format: Format) -> Result<u8, Failure> {
    let raw = cluster.status().await?;
    let code = model::health_code(raw.health());
    view::show(screen, format, &model::Status::from(raw), |s| view::status::screen(s, screen, format == Format::Wide))?;
    Ok(code)
}

/// Looks again and again until Ctrl-C; ends with the code of the last look.
pub async fn watch(cluster: &Cluster, screen: &Screen, format: Format) -> Result<u8, Failure> {
    let mut code = EXIT_FAILED;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return Ok(code),
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            _ = &mut stop => return Ok(code),
            answer = cluster.status() => answer,
        };
        code = answer.as_ref().map_or(EXIT_FAILED, |raw| model::health_code(raw.health()));
        show_again(answer, screen, format)?;
    }
}

fn show_again(answer: Result<ClusterStatus, Failure>, screen: &Screen, format: Format) -> Result<(), Failure> {
    if matches!(format, Format::Json | Format::Yaml) {
        // A line an answer, so that a program can read the stream; a miss is told beside it.
        match answer {
            Ok(raw) => screen.data(&view::json_line(&model::Status::from(raw))?),
            Err(failure) => screen.complain(&failure),
        }
        return Ok(());
    }
    let text = match answer {
        Ok(raw) => view::status::screen(&model::Status::from(raw), screen, format == Format::Wide),
        Err(failure) => format!("{failure}\n"),
    };
    screen.redraw(&text);
    Ok(())
}

/// The nodes.
pub async fn nodes(cluster: &Cluster, screen: &Screen, format: Format) -> Result<u8, Failure> {
    let status = model::Status::from(cluster.status().await?);
    view::show(screen, format, &status.nodes, |nodes| match nodes.is_empty() {
        true => "no node has joined yet\n".to_owned(),
        false => view::status::nodes(nodes, screen, format == Format::Wide),
    })?;
    Ok(0)
}

/// The services and their slots.
pub async fn roles(cluster: &Cluster, screen: &Screen, format: Format) -> Result<u8, Failure> {
    let status = model::Status::from(cluster.status().await?);
    let answer = model::Roles { services: status.services, slots: status.slots };
    view::show(screen, format, &answer, |roles| {
        format!("{}\n{}", view::status::services(&roles.services, screen), view::status::slots(&roles.slots, screen, format == Format::Wide))
    })?;
    Ok(0)
}
