//! `outrank trace score`: predictions into a trace, so that they can be compared with anybody else's.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use outrank_ranker::features::Scratch;
use outrank_ranker::trace::{Lengths, TraceWriter, held_out};
use outrank_ranker::train::{ClassRanker, ClassScheme, MAX_CLASSES};
use outrank_ranker::{Ranker, TraceFile, TrainConfig, kendall_tau_b};
use serde::Serialize;

use crate::error::usage;
use crate::files;
use crate::output::{Output, maybe, plural};

/// Write predicted lengths into a trace as `score`, in tokens
///
/// `outrank simulate --scores trace` then serves by them, beside what any other ranker wrote. With --classes the predictions
/// are those of the paper's baseline instead: a classifier over classes of length on the same features, learned from the
/// prompts of the trace that are not held out; all requests of a class get its median length.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    outrank trace score log.jsonl.gz --out scored.jsonl.gz --held-out --classes percentile:10\n  \
    outrank simulate --trace scored.jsonl.gz --scores trace --arrivals burst:2000 --policies fcfs,outrank")]
pub(crate) struct ScoreArgs {
    /// Trace to read
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// Trace to write; a name in .gz is compressed
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write only held-out prompts
    #[arg(long)]
    held_out: bool,
    /// Ranker to score with [default: the one inside the program]
    #[arg(long, value_name = "FILE", conflicts_with = "classes")]
    ranker: Option<PathBuf>,
    /// width:TOKENS (classes of equal width) or percentile:N (N classes of equally many requests)
    #[arg(long, value_name = "SCHEME")]
    classes: Option<Scheme>,
}

#[derive(Debug, Clone, Copy)]
struct Scheme(ClassScheme);

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let scheme = match text.split_once(':') {
            Some(("width", tokens)) => tokens.parse().ok().filter(|&n| n >= 1).map(ClassScheme::Width),
            Some(("percentile", n)) => {
                n.parse().ok().filter(|n| (2..=MAX_CLASSES).contains(n)).map(ClassScheme::Percentile)
            }
            _ => None,
        };
        scheme.map(Self).ok_or_else(|| {
            format!("expected width:TOKENS or percentile:N with N from 2 to {MAX_CLASSES}, found {text:?}")
        })
    }
}

#[derive(Serialize)]
struct Report {
    out: String,
    requests: usize,
    /// Between scores and lengths, where there are lengths.
    tau_b: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &ScoreArgs, output: &Output) -> Result<()> {
    if args.input == args.out {
        return Err(usage("--out names the input; write to another file"));
    }
    files::check_out(&args.out)?;
    let lengths = if args.classes.is_some() { Lengths::Required } else { Lengths::Optional };
    let records = files::placed(&args.input, lengths)?.into_iter().map(|(_, record)| record).collect();
    let trace = TraceFile::new(files::name(&args.input), records);
    let mut predict = predictor(args, &trace)?;
    let mut writer = TraceWriter::create(&args.out)?;
    let (mut scores, mut lengths, mut requests) = (Vec::new(), Vec::new(), 0);
    for mut record in trace.records.into_iter().filter(|record| !args.held_out || held_out(record)) {
        let score = predict(&record.request_text());
        record.score = Some(score);
        if let Some(tokens) = record.length_tokens() {
            scores.push(score);
            lengths.push(tokens);
        }
        writer.write(&record)?;
        requests += 1;
    }
    if requests == 0 {
        bail!("{}: none of its prompts is held out; leave --held-out away", args.input.display());
    }
    writer.finish()?;
    let tau_b = kendall_tau_b(&scores, &lengths);
    let out = args.out.display().to_string();
    let shown = tau_b.map_or_else(|| maybe(None), |tau_b| format!("{tau_b:.3}"));
    let text = format!("{out}: {} scored, tau-b with their lengths {shown}", plural(requests, "request"));
    output.result(&Report { out, requests, tau_b }, &text)
}

/// Prompt -> predicted tokens.
type Predictor = Box<dyn FnMut(&str) -> f64>;

fn predictor(args: &ScoreArgs, trace: &TraceFile) -> Result<Predictor> {
    let Some(Scheme(scheme)) = args.classes else {
        let ranker: Ranker = files::ranker(args.ranker.as_deref())?;
        return Ok(Box::new(move |text| f64::from(ranker.score(text).median_tokens())));
    };
    let classes = ClassRanker::train(&TrainConfig::default(), std::slice::from_ref(trace), scheme)?;
    let mut scratch = Scratch::new();
    Ok(Box::new(move |text| classes.tokens(&mut scratch, text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_read_and_senseless_ones_refused() {
        assert!(matches!("width:100".parse(), Ok(Scheme(ClassScheme::Width(100)))));
        assert!(matches!("percentile:10".parse(), Ok(Scheme(ClassScheme::Percentile(10)))));
        for text in ["width:0", "percentile:1", "percentile:9999", "100", "width:x"] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
    }
}
