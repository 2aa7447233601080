//! `outrank trace`.

mod check;
mod collect;
mod count;
mod duplicates;
mod fit_profile;
mod journal;
mod sampler;
mod score;
mod split;
mod stats;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::output::Output;
use crate::settings::FileSettings;

/// Check, count, split, score, convert and collect traces
///
/// A trace is a file of JSON lines, plain or gzip (a name in .gz is written as gzip), one request each:
///
///   prompt          string; or messages, a list of {role, content}
///   output_tokens   tokens of the answer; or a list, one entry for each sample of the same prompt
///   truncated       true (or a list) where the answer hit the limit: its length is a lower bound
///   prompt_tokens   tokens of the prompt
///   arrival_s       arrival in seconds
///   model, source, tenant, class    strings
///   score           predicted length in tokens, by whatever ranker
///   features        in the journal of a gateway: hashed features, which stand for the prompt (`outrank train --from-journal`)
///
/// Unknown keys are kept. {"prompt", "generated"}, the format of the paper's authors, is read as well;
/// its tokens have to be counted first (`convert`).
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    pub(crate) command: TraceCommand,
}

/// The subcommands; each says what it does where its flags are.
#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    Validate(check::ValidateArgs),
    Stats(stats::StatsArgs),
    Count(count::CountArgs),
    Convert(count::ConvertArgs),
    Split(split::SplitArgs),
    Score(score::ScoreArgs),
    Collect(Box<collect::CollectArgs>),
    FitProfile(fit_profile::FitProfileArgs),
}

/// Runs the command; `file` reads the settings file, for those that need it.
pub(crate) fn run(
    command: TraceCommand,
    file: impl Fn() -> Result<FileSettings>,
    output: &Output,
) -> Result<()> {
    match command {
        TraceCommand::Validate(args) => check::run(&args, output),
        TraceCommand::Stats(args) => stats::run(&args, output),
        TraceCommand::Count(args) => count::count(&args, file()?, output),
        TraceCommand::Convert(args) => count::convert(&args, file()?, output),
        TraceCommand::Split(args) => split::run(&args, output),
        TraceCommand::Score(args) => score::run(&args, output),
        TraceCommand::FitProfile(args) => fit_profile::run(&args, output),
        TraceCommand::Collect(args) => collect::run(*args, file()?, output),
    }
}
