//! `outrank trace validate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use outrank_ranker::TraceError;
use outrank_ranker::trace::{Lengths, TraceReader, approximate_tokens};
use serde::Serialize;

use crate::output::{Output, plural};

/// List every bad line of traces; exits with 1 if there is any
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outrank trace validate log.jsonl.gz\n  outrank trace validate --prompts-only prompts.jsonl"
)]
pub(crate) struct ValidateArgs {
    /// Traces to check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Accept records without lengths, as `collect` does
    #[arg(long)]
    prompts_only: bool,
    /// Bad lines to list, at most; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

#[derive(Serialize)]
struct Report {
    requests: usize,
    bad_lines: usize,
    /// `file:line: problem`, up to the limit.
    problems: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &ValidateArgs, output: &Output) -> Result<()> {
    let lengths = if args.prompts_only { Lengths::Optional } else { Lengths::Count(&approximate_tokens) };
    let mut report = Report { requests: 0, bad_lines: 0, problems: Vec::new() };
    for path in &args.files {
        let before = report.requests + report.bad_lines;
        for record in TraceReader::open(path, lengths)? {
            match record {
                Ok(_) => report.requests += 1,
                Err(error @ TraceError::Line { .. }) => report.bad(&error, args.limit),
                Err(error) => return Err(error.into()),
            }
        }
        if report.requests + report.bad_lines == before {
            report.bad(&TraceError::Empty { path: path.clone() }, args.limit);
        }
    }
    let listed = report.problems.join("\n");
    let more = report.bad_lines - report.problems.len();
    let more = if more > 0 { format!("\n... and {more} more") } else { String::new() };
    let (requests, bad) = (plural(report.requests, "good request"), plural(report.bad_lines, "bad line"));
    let text = format!("{listed}{more}\n{requests}, {bad} in {}", plural(args.files.len(), "file"));
    output.result(&report, text.trim_start())?;
    if report.bad_lines > 0 {
        bail!("{bad}");
    }
    Ok(())
}

impl Report {
    fn bad(&mut self, error: &TraceError, limit: usize) {
        self.bad_lines += 1;
        if self.problems.len() < limit {
            self.problems.push(error.to_string());
        }
    }
}
