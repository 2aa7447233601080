//! `outrank trace stats`.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use outrank_core::Summary;
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::{Lengths, held_out, read_trace};
use serde::Serialize;

use crate::files;
use crate::output::{Output, Table, number};

/// Sources and models listed in the text, at most.
const MAX_LISTED: usize = 12;

/// Lengths, samples, sources and duplicates of traces
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Traces to describe
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Stats {
    file: String,
    requests: usize,
    /// Different prompts.
    prompts: usize,
    /// Requests in the held-out part.
    held_out: usize,
    /// Requests with a length.
    with_length: usize,
    /// Lengths in all, over the samples of all requests.
    samples: usize,
    /// Samples that hit the limit.
    truncated: usize,
    prompt_tokens: Option<Summary>,
    output_tokens: Option<Summary>,
    models: BTreeMap<String, usize>,
    sources: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct Report {
    files: Vec<Stats>,
}

/// Runs the command.
pub(crate) fn run(args: &StatsArgs, output: &Output) -> Result<()> {
    let mut stats = Vec::new();
    for path in &args.files {
        stats.push(Stats::of(files::name(path), &read_trace(path, Lengths::Optional)?));
    }
    let text: Vec<String> = stats.iter().map(Stats::text).collect();
    output.result(&Report { files: stats }, &text.join("\n"))
}

impl Stats {
    fn of(file: String, records: &[TraceRecord]) -> Self {
        let prompts: HashSet<String> = records.iter().map(TraceRecord::text).collect();
        let outputs = records.iter().flat_map(|record| record.output_tokens.iter().map(|&n| f64::from(n)));
        let names = |name: fn(&TraceRecord) -> Option<&String>| {
            let mut counts = BTreeMap::new();
            for name in records.iter().filter_map(name) {
                *counts.entry(name.clone()).or_insert(0) += 1;
            }
            counts
        };
        Self {
            file,
            requests: records.len(),
            prompts: prompts.len(),
            held_out: records.iter().filter(|record| held_out(record)).count(),
            with_length: records.iter().filter(|record| !record.output_tokens.is_empty()).count(),
            samples: records.iter().map(|record| record.output_tokens.len()).sum(),
            truncated: records.iter().flat_map(|record| &record.truncated).filter(|&&hit| hit).count(),
            prompt_tokens: Summary::of(
                records.iter().filter_map(|r| r.prompt_tokens.map(f64::from)).collect(),
            ),
            output_tokens: Summary::of(outputs.collect()),
            models: names(|record| record.model.as_ref()),
            sources: names(|record| record.source.as_ref()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}: {} requests, {} different prompts, {} held out; {} with a length ({} samples, {} at the limit)\n",
            self.file,
            self.requests,
            self.prompts,
            self.held_out,
            self.with_length,
            self.samples,
            self.truncated
        );
        let mut table = Table::new(["tokens", "mean", "p50", "p90", "p99", "max"]);
        for (name, summary) in [("prompt", self.prompt_tokens), ("answer", self.output_tokens)] {
            if let Some(s) = summary {
                table.row([name.into()].into_iter().chain([s.mean, s.p50, s.p90, s.p99, s.max].map(number)));
            }
        }
        text.push_str(&table.render());
        for (what, names) in [("models", &self.models), ("sources", &self.sources)] {
            if !names.is_empty() {
                let listed = names.iter().take(MAX_LISTED).map(|(name, count)| format!("{name} {count}"));
                let more = if names.len() > MAX_LISTED { ", ..." } else { "" };
                text.push_str(&format!("{what}: {}{more}\n", listed.collect::<Vec<_>>().join(", ")));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrank_ranker::trace::Prompt;

    #[test]
    fn samples_and_prompts_are_counted_apart() {
        let mut record = TraceRecord::new(Prompt::Text("a".into()));
        record.output_tokens = vec![1, 3];
        record.truncated = vec![false, true];
        let stats = Stats::of("t".into(), &[record.clone(), record]);
        assert_eq!((stats.requests, stats.prompts, stats.samples, stats.truncated), (2, 1, 4, 2));
        assert_eq!(stats.output_tokens.unwrap().mean, 2.0);
        assert!(stats.text().contains("4 samples, 2 at the limit"));
    }
}
