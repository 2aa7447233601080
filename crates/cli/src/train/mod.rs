//! `outrank train`.

mod gate;
mod journal;
mod rows;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use outrank_ranker::{Objective, Ranker, TraceFile, TrainConfig, TrainReport};
use serde::Serialize;

use crate::error::usage;
use crate::files;
use crate::output::{Output, note, plural};
use crate::progress::Progress;

/// Train a ranker on a trace of prompts and answer lengths
///
/// Learns to order requests by the length of their answers (ListMLE over hashed words and cheap facts about the prompt),
/// and to predict that length in tokens with a spread. A fifth of the prompts, chosen by a hash of their text, is held
/// out: the ranker never learns from them, and its tau-b on them is reported.
///
/// A trace is a file of JSON lines, plain or gzip, with at least {"prompt": "...", "output_tokens": 123} each;
/// `outrank trace --help` says more.
///
/// With --from-journal it learns from what a gateway served (`outrank serve --upstream URL --journal FILE`), from the features or
/// the prompts that the journal keeps: the newest 20,000 requests. Of answers that their client left or a limit cut off, it learns
/// that they would have been longer; failed requests, those that asked for several answers, and those with ignore_eos are left out.
/// What it learned must pass a gate before it replaces the ranker in use: the newest fifth of the requests, with at least 50
/// finished answers, is not learned from, and on it the new ranker must order better (tau-b of the finished ones) and give a lower
/// mean latency (s/token, simulated under the policy outrank on --profile, with as many seats as one request in eight, and the
/// journal's arrivals at 1.5 of capacity, or all at once where those do not queue). Otherwise nothing is written, and the exit code
/// is 1. The ranker that was judged is the one that is written: it does not learn from that fifth afterwards.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank train --trace log.jsonl.gz --out my.outrank\n  \
    outrank train --trace a.jsonl --trace b.jsonl --all --out my.outrank    learn from everything, once it is good\n  \
    outrank train --from-journal j.jsonl j.jsonl.1 --out my.outrank         a better ranker than the one in my.outrank, or none\n  \
    outrank serve --ranker my.outrank                                       reads it again on SIGHUP, as a gateway")]
pub(crate) struct TrainArgs {
    /// Trace to learn from; repeatable
    #[arg(long = "trace", value_name = "FILE", required_unless_present = "from_journal")]
    traces: Vec<PathBuf>,
    /// Journal of a gateway to learn from, plain or gzip; several, for the files before it (FILE.1 and so on), in any order
    #[arg(long, value_name = "FILE", num_args = 1..,
          conflicts_with_all = ["traces", "all", "trace_licence", "trace_family", "trace_weight"])]
    from_journal: Vec<PathBuf>,
    /// Ranker file to write; with --from-journal it may be left away to see what the gate says
    #[arg(long, value_name = "FILE", required_unless_present = "from_journal")]
    out: Option<PathBuf>,
    /// With --from-journal, the ranker to be better than: `shipped`, or a file [default: the file of --out if there is one, otherwise
    /// the shipped one]
    #[arg(long, value_name = "RANKER", requires = "from_journal")]
    against: Option<String>,
    /// With --from-journal, the engine that latency is simulated on: cpu-smollm2, h200-llama3-8b, a100-40g-llama3-8b, or a TOML file
    /// [default: h200-llama3-8b]
    #[arg(long, value_name = "NAME", requires = "from_journal")]
    profile: Option<String>,
    /// Learn from the held-out fifth as well; nothing is then left to judge by
    #[arg(long)]
    all: bool,
    /// Seed of lists and ties; the same seed and traces give the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Ranker to mix in, which makes up for a small trace, as far as cross-validation leaves it plausible: `shipped`, `none`, or a
    /// file [default: shipped, unless it learned from one of these traces]
    #[arg(long, value_name = "RANKER")]
    prior: Option<String>,
    /// What training makes smaller: listmle (the paper's; the likelihood of whole orders), pairwise (a margin between pairs), or
    /// regression (squared errors of the logarithm of lengths)
    #[arg(long, value_name = "NAME", default_value = "listmle")]
    objective: ObjectiveName,
    /// Licence to write into the ranker file
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    licence: String,
    /// Licence of each trace, in order, for the ranker file
    #[arg(long, value_name = "TEXT")]
    trace_licence: Vec<String>,
    /// Family of each trace, in order: traces of one kind of traffic, which share prompts or users. With several families,
    /// what is chosen (how far to trust words, how wide the predictions are) is judged on families left out, so that the
    /// ranker suits traffic of a kind that it has never seen; without, on prompts left out
    #[arg(long, value_name = "NAME")]
    trace_family: Vec<String>,
    /// Weight of each trace's rows, in order [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    trace_weight: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ObjectiveName {
    Listmle,
    Pairwise,
    Regression,
}

impl From<ObjectiveName> for Objective {
    fn from(name: ObjectiveName) -> Self {
        match name {
            ObjectiveName::Listmle => Self::ListMle,
            ObjectiveName::Pairwise => Self::Pairwise,
            ObjectiveName::Regression => Self::Regression,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    /// Where the ranker is.
    out: String,
    #[serde(flatten)]
    report: &'a TrainReport,
}

/// Runs the command.
pub(crate) fn run(args: &TrainArgs, output: &Output) -> Result<()> {
    if let Some(out) = &args.out {
        files::check_out(out)?;
    }
    if !args.from_journal.is_empty() {
        return journal::run(args, output);
    }
    let out = args.out.as_ref().ok_or_else(|| usage("--out names the ranker file to write"))?;
    let files = args.files()?;
    let config = TrainConfig { all: args.all, prior: args.prior(&files)?, ..args.config() };
    let (ranker, report) = with_progress(|progress| outrank_ranker::train(&config, &files, progress))?;
    ranker.save(out)?;
    let out = out.display().to_string();
    let text = text(&out, &report);
    output.result(&Report { out, report: &report }, &text)
}

/// Does work that says where it stands.
fn with_progress<T>(work: impl FnOnce(&mut dyn FnMut(outrank_ranker::Progress)) -> T) -> T {
    let progress = Progress::new("train", 1);
    work(&mut |step| {
        let tau_b = step.tau_b.map(|tau_b| format!(", tau-b {tau_b:.3}")).unwrap_or_default();
        progress.message(format!("{}{tau_b}", step.stage));
        progress.set(step.done, step.of);
    })
}

impl TrainArgs {
    /// The settings that traces and journals have in common.
    fn config(&self) -> TrainConfig {
        TrainConfig {
            seed: self.seed,
            objective: self.objective.into(),
            licence: self.licence.clone(),
            command: self.command(),
            ..TrainConfig::default()
        }
    }

    fn files(&self) -> Result<Vec<TraceFile>> {
        let lists = [
            ("--trace-licence", self.trace_licence.len()),
            ("--trace-family", self.trace_family.len()),
            ("--trace-weight", self.trace_weight.len()),
        ];
        for (flag, count) in lists {
            if count != 0 && count != self.traces.len() {
                let traces = plural(self.traces.len(), "trace");
                return Err(usage(format!("{flag} is given {count} times for {traces}: give one each")));
            }
        }
        if let Some(weight) = self.trace_weight.iter().find(|weight| !(weight.is_finite() && **weight > 0.0))
        {
            return Err(usage(format!("--trace-weight {weight}: must be a positive number")));
        }
        let mut files = Vec::new();
        for (index, path) in self.traces.iter().enumerate() {
            let records = files::trace(path)?;
            if records.iter().any(|record| record.extra.contains_key("features") && record.text().is_empty())
            {
                let path = path.display();
                return Err(usage(format!(
                    "{path} is a journal without prompts: give it with --from-journal"
                )));
            }
            let mut file = TraceFile::new(files::name(path), records);
            file.licence = self.trace_licence.get(index).cloned();
            file.family = self.trace_family.get(index).cloned();
            file.weight = self.trace_weight.get(index).copied().unwrap_or(1.0);
            files.push(file);
        }
        Ok(files)
    }

    /// The ranker to start from. By itself the shipped one is not taken where it has seen the trace: it would flatter the
    /// held-out figure.
    fn prior(&self, files: &[TraceFile]) -> Result<Option<Ranker>> {
        let shipped = Ranker::shipped();
        match self.prior.as_deref() {
            Some("none") => Ok(None),
            Some("shipped") => Ok(Some(shipped.clone())),
            Some(path) => Ok(Some(Ranker::load(Path::new(path))?)),
            None => {
                let seen = |file: &&TraceFile| {
                    let name = file.name.split('.').next().unwrap_or_default();
                    shipped.card().sources.iter().any(|source| source.name == name)
                };
                let Some(file) = files.iter().find(seen) else { return Ok(Some(shipped.clone())) };
                note(&format!("the shipped ranker learned from {}: training starts from nothing", file.name));
                Ok(None)
            }
        }
    }

    /// The command for the ranker file: names without folders, so that the same data gives the same bytes anywhere.
    fn command(&self) -> String {
        let mut command = "outrank train".to_owned();
        for path in &self.traces {
            command.push_str(&format!(" --trace {}", files::name(path)));
        }
        for path in &self.from_journal {
            command.push_str(&format!(" --from-journal {}", files::name(path)));
        }
        for licence in &self.trace_licence {
            command.push_str(&format!(" --trace-licence '{licence}'"));
        }
        for family in &self.trace_family {
            command.push_str(&format!(" --trace-family '{family}'"));
        }
        for weight in &self.trace_weight {
            command.push_str(&format!(" --trace-weight {weight}"));
        }
        if let Some(prior) = &self.prior {
            command.push_str(&format!(" --prior {}", files::name(Path::new(prior))));
        }
        if self.objective != ObjectiveName::Listmle {
            command.push_str(&format!(" --objective {:?}", self.objective).to_lowercase());
        }
        command.push_str(if self.all { " --all" } else { "" });
        format!("{command} --seed {} --licence '{}'", self.seed, self.licence)
    }
}

fn text(out: &str, report: &TrainReport) -> String {
    let held_out = report.held_out.map_or_else(
        || "nothing held out".into(),
        |held_out| format!("tau-b {:.3} on {} held-out requests", held_out.tau_b, held_out.requests),
    );
    let prior = report
        .prior_share
        .map_or_else(String::new, |share| format!("; {:.0} % of its order is the prior's", 100.0 * share));
    format!(
        "{out}: learned from {}, {held_out} (cross-validation within what it learned from: {:.3}){prior}",
        plural(report.learned_rows, "request"),
        report.validation_tau_b
    )
}
