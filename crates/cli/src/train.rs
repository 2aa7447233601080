//! `outrank train`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use outrank_ranker::{Objective, Ranker, TraceFile, TrainConfig, TrainReport};
use serde::Serialize;

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
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank train --trace log.jsonl.gz --out my.outrank\n  \
    outrank train --trace a.jsonl --trace b.jsonl --all --out my.outrank    learn from everything, once it is good\n  \
    outrank serve --ranker my.outrank")]
pub(crate) struct TrainArgs {
    /// Trace to learn from; repeatable
    #[arg(long = "trace", value_name = "FILE", required = true)]
    traces: Vec<PathBuf>,
    /// Ranker file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Learn from the held-out fifth as well; nothing is then left to judge by
    #[arg(long)]
    all: bool,
    /// Seed of lists and ties; the same seed and traces give the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Ranker to start from, which makes up for a small trace: `shipped`, `none`, or a file [default: shipped, unless it
    /// learned from one of these traces]
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
    let files = args.files()?;
    let config = TrainConfig {
        all: args.all,
        seed: args.seed,
        objective: args.objective.into(),
        licence: args.licence.clone(),
        prior: args.prior(&files)?,
        command: args.command(),
        ..TrainConfig::default()
    };
    let progress = Progress::new("train", 1);
    let (ranker, report) = outrank_ranker::train(&config, &files, &mut |step| {
        let tau_b = step.tau_b.map(|tau_b| format!(", tau-b {tau_b:.3}")).unwrap_or_default();
        progress.message(format!("{}{tau_b}", step.stage));
        progress.set(step.done, step.of);
    })?;
    drop(progress);
    ranker.save(&args.out)?;
    let out = args.out.display().to_string();
    let text = text(&out, &report);
    output.result(&Report { out, report: &report }, &text)
}

impl TrainArgs {
    fn files(&self) -> Result<Vec<TraceFile>> {
        let lists = [
            ("--trace-licence", self.trace_licence.len()),
            ("--trace-family", self.trace_family.len()),
            ("--trace-weight", self.trace_weight.len()),
        ];
        for (flag, count) in lists {
            if count != 0 && count != self.traces.len() {
                let traces = plural(self.traces.len(), "trace");
                return Err(crate::error::usage(format!(
                    "{flag} is given {count} times for {traces}: give one each"
                )));
            }
        }
        if let Some(weight) = self.trace_weight.iter().find(|weight| !(weight.is_finite() && **weight > 0.0))
        {
            return Err(crate::error::usage(format!("--trace-weight {weight}: must be a positive number")));
        }
        files::check_out(&self.out)?;
        let mut files = Vec::new();
        for (index, path) in self.traces.iter().enumerate() {
            let mut file = TraceFile::new(files::name(path), files::trace(path)?);
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
    format!(
        "{out}: learned from {}, {held_out} (cross-validation within what it learned from: {:.3})",
        plural(report.learned_rows, "request"),
        report.validation_tau_b
    )
}
