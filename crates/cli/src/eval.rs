//! `outrank eval`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use outrank_ranker::trace::held_out;
use outrank_ranker::{EvalReport, TraceRecord, evaluate};
use serde::Serialize;

use crate::files;
use crate::output::{Output, Table, maybe, number};

/// Measure how well a ranker orders the requests of traces
///
/// tau-b is Kendall's rank correlation between predicted and true lengths: 1 is the perfect order, 0 chance. Pairs is the
/// share of pairs of requests put in the right order. Calibration error is how far predicted lengths are from true
/// ones on average over ten groups (0.1 is 10 %), within 80 % the share of answers whose length lies in the interval
/// that is said to hold 80 % of them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank eval --trace log.jsonl.gz --held-out --ranker my.outrank\n  \
    outrank eval --trace a.jsonl --trace b.jsonl --json        the ranker inside the program, as JSON")]
pub(crate) struct EvalArgs {
    /// Trace to measure on; repeatable
    #[arg(long = "trace", value_name = "FILE", required = true)]
    traces: Vec<PathBuf>,
    /// Ranker to measure [default: the one inside the program]
    #[arg(long, env = "OUTRANK_RANKER", value_name = "FILE")]
    ranker: Option<PathBuf>,
    /// Measure only on held-out prompts, those that `train` without --all did not learn from
    #[arg(long)]
    held_out: bool,
}

#[derive(Serialize)]
struct Report {
    files: Vec<EvalReport>,
    /// Mean over the files where it is defined.
    mean_tau_b: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &EvalArgs, output: &Output) -> Result<()> {
    let ranker = files::ranker(args.ranker.as_deref())?;
    let mut reports = Vec::new();
    for path in &args.traces {
        let records = files::trace(path)?;
        let chosen: Vec<&TraceRecord> =
            records.iter().filter(|record| !args.held_out || held_out(record)).collect();
        if chosen.is_empty() {
            bail!(
                "{}: none of its {} prompts is held out; leave --held-out away",
                path.display(),
                records.len()
            );
        }
        reports.push(evaluate(&files::name(path), &ranker, &chosen));
    }
    let defined: Vec<f64> = reports.iter().filter_map(|report| report.tau_b).collect();
    let mean_tau_b = (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64);
    let text = table(&reports, mean_tau_b);
    output.result(&Report { files: reports, mean_tau_b }, &text)
}

fn table(reports: &[EvalReport], mean_tau_b: Option<f64>) -> String {
    let mut table =
        Table::new(["file", "requests", "tau-b", "pairs", "calib. error", "within 80 %", "us/prompt"]);
    let three = |value: Option<f64>| value.map_or_else(|| maybe(None), |value| format!("{value:.3}"));
    for report in reports {
        table.row([
            report.file.clone(),
            report.requests.to_string(),
            three(report.tau_b),
            three(report.pairwise_accuracy),
            three(Some(report.calibration_error)),
            three(Some(report.interval_80_coverage)),
            number(report.us_per_prompt),
        ]);
    }
    if reports.len() > 1 {
        table.row(["mean".into(), String::new(), three(mean_tau_b)]);
    }
    table.render()
}
