//! The conversations, one file each; here only which words start which.

mod coordinators;
mod dev;
mod dev_logs;
mod drain;
mod drill;
mod events;
mod explain;
mod healing;
mod healing_text;
mod jobs;
mod look;
mod orders;
mod results;
mod snapshot;
mod submit;
mod watch_job;

use clap::CommandFactory;

use crate::arguments::{Arguments, Command};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::place::Place;
use crate::terminal::Screen;

/// Runs the command; the number is the exit code of an answer.
pub async fn run(arguments: Arguments, screen: &Screen) -> Result<u8, Failure> {
    let Arguments { place: flags, format, command, .. } = arguments;
    let place = Place::find(&flags);
    let cluster = || -> Result<Cluster, Failure> { Ok(Cluster::new(place.coordinators()?, &place.certificate()?)?.stale(flags.stale)) };
    match command {
        Command::Status { watch: false } => look::status(&cluster()?, screen, format).await,
        Command::Status { watch: true } => look::watch(&cluster()?, screen, format).await,
        Command::Nodes => look::nodes(&cluster()?, screen, format).await,
        Command::Roles => look::roles(&cluster()?, screen, format).await,
        Command::Events { follow, after } => events::events(&cluster()?, screen, format, follow, after).await,
        Command::Plan => explain::plan(&cluster()?, screen, format).await,
        Command::Explain { slot } => explain::explain(&cluster()?, screen, format, &slot).await,
        Command::Drain(words) => drain::drain(&cluster()?, screen, format, words).await,
        Command::Cordon { node, undo } => orders::cordon(&cluster()?, screen, format, &node, undo).await,
        Command::Move(words) => orders::move_slot(&cluster()?, screen, format, words).await,
        Command::Scale { role, wanted } => orders::scale(&cluster()?, screen, format, &role, wanted).await,
        Command::Apply { file } => orders::apply(&cluster()?, screen, format, &file).await,
        Command::Brake { command } => orders::brake(&cluster()?, screen, format, command).await,
        Command::Gone { instance, by } => orders::gone(&cluster()?, screen, format, &instance, by).await,
        Command::Coordinators { command } => coordinators::coordinators(&cluster()?, screen, format, command).await,
        Command::Snapshot { command } => snapshot::snapshot(&place, cluster, screen, format, command).await,
        Command::Submit(words) => submit::submit(&place.pipeline().await?, screen, format, words).await,
        Command::Jobs { command } => jobs::jobs(&place.pipeline().await?, screen, format, command).await,
        Command::Drill(words) => drill::drill(&place, &cluster()?, screen, format, words).await,
        Command::Dev { command } => dev::dev(&flags, screen, format, command).await,
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vpctl", &mut text);
            screen.text(&String::from_utf8_lossy(&text));
            Ok(0)
        }
    }
}
