//! `outrank`: LLM serving in the order of a learned rank. The help texts are the documentation.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments of flags are help texts: `[default: 8]` is no link"
)]

mod args;
mod arrivals;
mod bench;
mod error;
mod eval;
mod explain;
mod files;
mod gateway;
mod host;
mod http;
mod memory;
mod output;
mod progress;
mod serve;
mod settings;
mod simulate;
mod trace;
mod train;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::output::Output;
use crate::settings::FileSettings;

fn main() -> ExitCode {
    memory::give_back();
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error::is_usage(&error) { 2 } else { 1 })
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let output = Output::new(cli.json);
    let path = cli.config.as_deref();
    let file = || FileSettings::load(path);
    match cli.command {
        Command::Serve(command) => serve::run(*command, file()?, path, &output),
        Command::Check(command) => gateway::check(*command, file()?, &output),
        Command::Train(command) => train::run(&command, &output),
        Command::Eval(command) => eval::run(&command, &output),
        Command::Bench(command) => bench::run(*command, file()?, &output),
        Command::Simulate(command) => simulate::run(*command, file()?, &output),
        Command::Trace(command) => trace::run(command.command, file, &output),
        Command::Explain(command) => explain::run(&command, file()?, &output),
    }
}
