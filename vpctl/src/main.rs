//! `vpctl`, the operator's command: reads the words, runs one conversation, ends with its exit code.
//! All judgement about the cluster is the coordinators'; this program asks, shows and measures.

#![allow(clippy::large_futures, reason = "the lint guards the memory of daemons; this is one short-lived task")]

mod arguments;
mod cluster;
mod commands;
mod failure;
mod place;
mod terminal;
mod view;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::failure::EXIT_USAGE;
use crate::terminal::Screen;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers; anything else is wrong usage, whatever clap's own code is.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    log_to_stderr(arguments.verbose);
    let screen = Screen::detect(&arguments.place);
    match commands::run(arguments, &screen).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            screen.complain(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Warnings of the libraries stay silent unless asked for: an error is told once, by `complain`.
fn log_to_stderr(verbose: bool) {
    let filter = if verbose { "info" } else { "off" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VP_LOG").unwrap_or_else(|_| filter.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
