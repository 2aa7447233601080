//! `outrank eval`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use outrank_ranker::adapt::{Adapter, adapt};
use outrank_ranker::trace::held_out;
use outrank_ranker::{EvalReport, Ranker, TraceRecord, evaluate};
use serde::Serialize;

use crate::files;
use crate::output::{Output, Table, maybe, number};
use crate::progress::Progress;

/// Measure how well a ranker orders the requests of traces
///
/// tau-b is Kendall's rank correlation between predicted and true lengths: 1 is the perfect order, 0 chance. Pairs is the
/// share of pairs of requests put in the right order. Calibration error is how far predicted lengths are from true
/// ones on average over ten groups (0.1 is 10 %), within 80 % the share of answers whose length lies in the interval
/// that is said to hold 80 % of them.
///
/// us/prompt is the mean time to score a prompt on one thread, in microseconds, as the clock took it; us p50 and us p99 are the
/// median and the 99th percentile over prompts of the fastest of three timings each, which a busy machine disturbs little.
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
    /// Measure how the ranker adapts: it hears the answers of the other prompts, as in `serve`, and is measured on the
    /// held-out ones after 0, 100, 300, 1000, ... of them
    #[arg(long)]
    adaptation: bool,
    /// Seed of the order in which the answers come
    #[arg(long, value_name = "N", default_value_t = 1, requires = "adaptation")]
    seed: u64,
}

#[derive(Serialize)]
struct Report {
    files: Vec<EvalReport>,
    /// Mean over the files where it is defined.
    mean_tau_b: Option<f64>,
    /// With --adaptation, a curve for each file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adaptation: Vec<Curve>,
}

/// How a ranker adapts to one trace.
#[derive(Serialize)]
struct Curve {
    file: String,
    /// Tau-b on held-out prompts, and the answers heard until then.
    points: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    observed: usize,
    tau_b: Option<f64>,
    /// Median over requests of |ln predicted - ln true|.
    median_abs_ln_error: f64,
}

/// Runs the command.
pub(crate) fn run(args: &EvalArgs, output: &Output) -> Result<()> {
    let ranker = files::ranker(args.ranker.as_deref())?;
    let mut reports = Vec::new();
    let mut curves = Vec::new();
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
        if args.adaptation {
            curves.push(curve(&files::name(path), &ranker, &records, args.seed));
        }
    }
    let defined: Vec<f64> = reports.iter().filter_map(|report| report.tau_b).collect();
    let mean_tau_b = (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64);
    let text = table(&reports, mean_tau_b) + &curve_table(&curves);
    output.result(&Report { files: reports, mean_tau_b, adaptation: curves }, &text)
}

/// Answers after which the ranker is measured; then after all.
const CHECKPOINTS: [usize; 6] = [0, 100, 300, 1000, 3000, 10_000];

/// Lets the ranker hear the answers of all prompts that are not held out, in a random order.
fn curve(file: &str, ranker: &Ranker, records: &[TraceRecord], seed: u64) -> Curve {
    let (test, mut heard): (Vec<_>, Vec<_>) = records.iter().partition(|record| held_out(record));
    fastrand::Rng::with_seed(seed).shuffle(&mut heard);
    let progress = Progress::new(format!("adapting to {file}"), heard.len());
    let (mut adapter, mut current) = (Adapter::default(), ranker.clone());
    let mut points = Vec::new();
    for observed in 0..=heard.len() {
        if CHECKPOINTS.contains(&observed) || observed == heard.len() {
            let report = evaluate(file, &current, &test);
            let (tau_b, median_abs_ln_error) = (report.tau_b, report.median_abs_ln_error);
            points.push(Point { observed, tau_b, median_abs_ln_error });
        }
        let Some(record) = heard.get(observed) else { break };
        if let Some(tokens) = record.length_tokens() {
            adapter.observe(&record.request_text(), tokens.round() as u32, record.is_censored());
        }
        if let Some(examples) = adapter.due() {
            current = adapt(ranker, &examples).map_or(current, |adapted| adapted.ranker);
        }
        progress.step();
    }
    Curve { file: file.to_owned(), points }
}

fn curve_table(curves: &[Curve]) -> String {
    if curves.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["file", "answers heard", "tau-b", "median |ln error|"]);
    for curve in curves {
        for point in &curve.points {
            table.row([
                curve.file.clone(),
                point.observed.to_string(),
                point.tau_b.map_or_else(|| maybe(None), |tau_b| format!("{tau_b:.3}")),
                format!("{:.3}", point.median_abs_ln_error),
            ]);
        }
    }
    format!("\n{}", table.render())
}

fn table(reports: &[EvalReport], mean_tau_b: Option<f64>) -> String {
    let mut table = Table::new([
        "file",
        "requests",
        "tau-b",
        "pairs",
        "calib. error",
        "within 80 %",
        "us/prompt",
        "us p50",
        "us p99",
    ]);
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
            number(report.us_p50),
            number(report.us_p99),
        ]);
    }
    if reports.len() > 1 {
        table.row(["mean".into(), String::new(), three(mean_tau_b)]);
    }
    table.render()
}
