//! `gwload`: loads a gateway, and says how long answers took and what it cost.
//!
//! `closed` keeps a number of connections busy: the most that a gateway serves, or streams for as long as one likes. `open`
//! sends at a fixed rate whether or not answers come back; latency counts from when a request should have been sent, so a
//! gateway that stalls cannot hide it. Prints one JSON object.

mod args;
mod client;
mod closed;
mod events;
mod open;
mod tally;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::Value;

use args::{Cli, Command};

/// Open files that thousands of streams need.
const OPEN_FILES: u64 = 65_536;

fn main() -> Result<()> {
    let cli = Cli::parse();
    // Fails only where the hard limit is lower; then fewer streams fit.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("async runtime")?;
    let report = runtime.block_on(async {
        match cli.command {
            Command::Closed(args) => closed::run(args).await,
            Command::Open(args) => open::run(args).await,
        }
    })?;
    print(&report);
    // Streams that still run end with the process.
    runtime.shutdown_background();
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is the result")]
fn print(report: &Value) {
    println!("{report}");
}
