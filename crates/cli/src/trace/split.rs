//! `outrank trace split`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::{Lengths, held_out, read_trace, write_trace};
use serde::Serialize;

use crate::error::usage;
use crate::files::check_out;
use crate::output::Output;
use crate::trace::duplicates::{NearPair, near_pairs, shingles};

/// Pairs quoted, at most.
const MAX_QUOTED: usize = 10;
/// Characters quoted of a prompt.
const QUOTED_CHARS: usize = 70;

/// Split by prompt into a part to learn from and a held-out part
///
/// One prompt in five is held out: the SHA-256 of its first 200 characters, lower-cased and with white space folded, is
/// divisible by five. The same rule is built into `train`, `eval --held-out` and `bench --held-out`. Equal prompts fall on
/// the same side; near-duplicates (Jaccard similarity of their three-word shingles above the threshold) may not, and are
/// reported.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    outrank trace split log.jsonl.gz --train train.jsonl.gz --held-out held-out.jsonl.gz --drop-near-duplicates")]
pub(crate) struct SplitArgs {
    /// Trace to split
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// Where to write the part to learn from
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    train: Option<PathBuf>,
    /// Where to write the held-out part
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    held_out: Option<PathBuf>,
    /// Write nothing; exit with 1 if there are near-duplicates across the split
    #[arg(long, conflicts_with_all = ["train", "held_out", "drop_near_duplicates"])]
    check: bool,
    /// Leave near-duplicates of held-out prompts out of the part to learn from
    #[arg(long)]
    drop_near_duplicates: bool,
    /// Similarity above which two prompts are near-duplicates, 0 to 1
    #[arg(long, value_name = "JACCARD", default_value_t = 0.6)]
    threshold: f64,
}

#[derive(Serialize)]
struct Report {
    train: usize,
    held_out: usize,
    /// Prompts of the part to learn from that are near-duplicates of a held-out one.
    near_duplicates: usize,
    dropped: usize,
    /// The first of them.
    pairs: Vec<Quote>,
}

#[derive(Serialize)]
struct Quote {
    train: String,
    held_out: String,
    similarity: f64,
}

/// Runs the command.
pub(crate) fn run(args: &SplitArgs, output: &Output) -> Result<()> {
    if !(args.threshold > 0.0 && args.threshold <= 1.0) {
        return Err(usage(format!("--threshold {}: must be above 0 and at most 1", args.threshold)));
    }
    let outputs = [&args.train, &args.held_out];
    if outputs.iter().any(|out| out.as_ref() == Some(&args.input))
        || (args.train.is_some() && args.train == args.held_out)
    {
        return Err(usage("--train, --held-out and the input must be three different files"));
    }
    for out in outputs.into_iter().flatten() {
        check_out(out)?;
    }
    let records = read_trace(&args.input, Lengths::Optional)?;
    let (test, mut train): (Vec<TraceRecord>, Vec<TraceRecord>) = records.into_iter().partition(held_out);
    let sets =
        |records: &[TraceRecord]| records.iter().map(|record| shingles(&record.text())).collect::<Vec<_>>();
    let pairs = near_pairs(&sets(&train), &sets(&test), args.threshold);
    let quotes = pairs.iter().take(MAX_QUOTED).map(|pair| quote(pair, &train, &test)).collect();
    let mut report = Report {
        train: train.len(),
        held_out: test.len(),
        near_duplicates: pairs.len(),
        dropped: 0,
        pairs: quotes,
    };
    if args.drop_near_duplicates {
        let near: BTreeSet<usize> = pairs.iter().map(|pair| pair.first).collect();
        let mut position = 0..;
        train.retain(|_| position.next().is_some_and(|position| !near.contains(&position)));
        report.dropped = near.len();
        report.train = train.len();
    }
    if let (Some(train_path), Some(test_path)) = (&args.train, &args.held_out) {
        write_trace(train_path, &train)?;
        write_trace(test_path, &test)?;
    }
    output.result(&report, &report.text())?;
    if args.check && report.near_duplicates > 0 {
        bail!("{} near-duplicates across the split", report.near_duplicates);
    }
    Ok(())
}

fn quote(pair: &NearPair, train: &[TraceRecord], test: &[TraceRecord]) -> Quote {
    let start = |record: &TraceRecord| record.text().chars().take(QUOTED_CHARS).collect();
    Quote {
        train: start(&train[pair.first]),
        held_out: start(&test[pair.second]),
        similarity: pair.similarity,
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{} to learn from, {} held out", self.train, self.held_out);
        match (self.near_duplicates, self.dropped) {
            (0, _) => text.push_str("; no near-duplicates across the split\n"),
            (found, 0) => text.push_str(&format!(
                "; {found} near-duplicates across the split (--drop-near-duplicates drops them):\n"
            )),
            (_, dropped) => {
                text.push_str(&format!("; {dropped} near-duplicates of held-out prompts dropped:\n"));
            }
        }
        for pair in &self.pairs {
            text.push_str(&format!(
                "  {:.2}  {:?}\n        {:?}\n",
                pair.similarity, pair.train, pair.held_out
            ));
        }
        text
    }
}
