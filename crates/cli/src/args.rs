//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::eval::EvalArgs;
use crate::explain::ExplainArgs;
use crate::serve::ServeArgs;
use crate::simulate::SimulateArgs;
use crate::trace::TraceArgs;
use crate::train::TrainArgs;

/// LLM serving in the order of a learned rank: short answers first, nobody starves.
///
/// An OpenAI-compatible server with an embedded engine (`serve`), the tools that train and judge its ranker (`train`,
/// `eval`, `trace`), a simulator that tells what each policy would give (`simulate`), and a load generator that shows it (`bench`).
///
/// Settings come from flags, then from OUTRANK_* variables, then from outrank.toml; the first that is set wins.
#[derive(Debug, Parser)]
#[command(
    name = "outrank",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Examples:\n  \
        outrank serve                                       the default model on 127.0.0.1:8000\n  \
        outrank train --trace log.jsonl --out my.outrank    learn the order of your own traffic\n  \
        outrank bench --policies fcfs,outrank --trace log.jsonl --arrivals burst:100\n\n\
        Exit codes: 0 success, 1 failure, 2 wrong usage or settings."
)]
pub(crate) struct Cli {
    /// Settings file; by default ./outrank.toml, if there is one
    ///
    /// Tables [serve], [gateway], [[tenants]], [engine], [policy] and [ranker]; keys are named like the flags, with `_` for `-`. An unknown
    /// key is an error.
    #[arg(long, global = true, env = "OUTRANK_CONFIG", value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,

    /// Print one JSON object on stdout; text for people goes to stderr
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands; each says what it does where its flags are.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(Box<ServeArgs>),
    /// Check the settings of `serve`, and whether its upstreams answer, without serving
    Check(Box<ServeArgs>),
    Train(TrainArgs),
    Eval(EvalArgs),
    Simulate(Box<SimulateArgs>),
    Bench(Box<BenchArgs>),
    Trace(TraceArgs),
    Explain(ExplainArgs),
}

/// Reads a finite number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(format!("expected a positive number, found {text:?}")),
    }
}

/// Reads a finite number of at least 0.
pub(crate) fn not_negative(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("expected a number of at least 0, found {text:?}")),
    }
}
