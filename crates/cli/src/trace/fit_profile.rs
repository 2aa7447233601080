//! `outrank trace fit-profile`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use outrank_core::StepSample;
use outrank_ranker::trace::write_whole;
use outrank_sim::{Fit, Profile, Residuals, fit};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::output::{Output, Table};

/// Fit the step costs of an engine to a log of its steps, for `outrank simulate`
///
/// A log has one JSON object a line: prefill_tokens, decodes, context_tokens, took_s; `--step-log` of serve and bench
/// writes it. Lines with "idle": true are left out. Seats, memory and limits are those of the profile named by --base.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    outrank bench ... --step-log steps.jsonl\n  \
    outrank trace fit-profile --log steps.jsonl --base cpu-smollm2 --name mine --out mine.toml")]
pub(crate) struct FitProfileArgs {
    /// Step log, plain or gzip; repeatable
    #[arg(long = "log", value_name = "FILE", required = true)]
    logs: Vec<PathBuf>,
    /// Profile whose seats, memory and limits are kept: a name or a TOML file
    #[arg(long, value_name = "NAME")]
    base: String,
    /// Name of the new profile
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Where the log comes from, for the file [default: the names of the logs]
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// Profile to write, TOML
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report {
    out: String,
    #[serde(flatten)]
    fit: Fit,
}

/// A line of a log.
#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    sample: StepSample,
    /// Whether the engine had been idle before the step, so that its time says nothing about it.
    #[serde(default)]
    idle: bool,
}

/// Runs the command.
pub(crate) fn run(args: &FitProfileArgs, output: &Output) -> Result<()> {
    let base = Profile::load(&args.base)?;
    let mut samples = Vec::new();
    for path in &args.logs {
        let text = files::text(path)?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: not a step", path.display(), index + 1))?;
            if !line.idle {
                samples.push(line.sample);
            }
        }
    }
    let fit = fit(&samples)?;
    let names: Vec<String> = args.logs.iter().map(|path| files::name(path)).collect();
    let logs = args.source.clone().unwrap_or_else(|| format!("Fitted to {}", names.join(", ")));
    let source = format!("{logs}. {}", words(&fit.residuals));
    let profile = Profile { name: args.name.clone(), source, step: fit.cost.clone(), ..base };
    let text = toml::to_string(&profile).context("writing the profile")?;
    write_whole(&args.out, text.as_bytes())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = args.out.display().to_string();
    let table = table(&fit);
    output.result(&Report { out, fit }, &table)
}

fn words(it: &Residuals) -> String {
    format!(
        "{} steps; relative error of a step: median {:.1} %, 90th percentile {:.1} %; of 16 in a row: {:.1} %, {:.1} %; of all \
         together {:+.1} %.",
        it.steps,
        100.0 * it.relative_p50,
        100.0 * it.relative_p90,
        100.0 * it.block_p50,
        100.0 * it.block_p90,
        100.0 * (it.total - 1.0)
    )
}

fn table(fit: &Fit) -> String {
    let mut table = Table::new(["residuals", "steps", "median", "p90", "16 steps", "p90", "total"]);
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let rows = [
        ("all", Some(fit.residuals)),
        ("decode only", fit.decode_residuals),
        ("with prefill", fit.prefill_residuals),
    ];
    for (name, residuals) in rows {
        let Some(it) = residuals else { continue };
        table.row([
            name.to_owned(),
            it.steps.to_string(),
            percent(it.relative_p50),
            percent(it.relative_p90),
            percent(it.block_p50),
            percent(it.block_p90),
            format!("{:+.1} %", 100.0 * (it.total - 1.0)),
        ]);
    }
    table.render()
}
