//! `outrank train --from-journal`: learning from what a gateway served.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outrank_ranker::{Example, HeldOut, Ranker, TrainConfig, TrainReport};
use outrank_sim::Profile;
use serde::Serialize;

use super::gate::{Gate, judge};
use super::rows::{Lines, Row, read};
use super::{TrainArgs, with_progress};
use crate::files;
use crate::output::{Output, plural};

/// Newest part that is not learned from.
const HELD_OUT_SHARE: f64 = 0.2;

/// Fewest finished answers in that part.
const MIN_JUDGED: usize = 50;

/// Engine that latency is simulated on, unless said otherwise.
const DEFAULT_PROFILE: &str = "h200-llama3-8b";

#[derive(Serialize)]
struct Report<'a> {
    /// Where the ranker is; null where none was written.
    out: Option<String>,
    gate: &'a Gate,
    lines: &'a Lines,
    #[serde(flatten)]
    report: &'a TrainReport,
}

/// Learns, judges, and writes what passes.
pub(super) fn run(args: &TrainArgs, output: &Output) -> Result<()> {
    let (against, current) = args.current()?;
    let prior = args.prior(&[])?;
    let profile = Profile::load(args.profile.as_deref().unwrap_or(DEFAULT_PROFILE))?;
    let (rows, lines) = read(&args.from_journal)?;
    let held_out = (rows.len() as f64 * HELD_OUT_SHARE).ceil() as usize;
    let (learned, judged) = rows.split_at(rows.len() - held_out);
    check_enough(judged, &lines)?;
    let groups = groups(learned);
    let groups: Vec<&[Arc<Example>]> = groups.iter().map(Vec::as_slice).collect();
    let config = TrainConfig { all: true, prior, ..args.config() };
    let (candidate, mut report) =
        with_progress(|progress| outrank_ranker::train::learn(&config, &groups, progress))?;
    let gate = judge(judged, against, [&current, &candidate], profile)?;
    let unseen = HeldOut { requests: gate.finished, tau_b: gate.tau_b[1] };
    report.held_out = Some(unseen);
    let out = args.out.as_deref().filter(|_| gate.passed);
    if let Some(out) = out {
        candidate.with_held_out(unseen).save(out)?;
    }
    let out = out.map(|out| out.display().to_string());
    let text = text(out.as_deref(), &gate, &lines, &report);
    output.result(&Report { out, gate: &gate, lines: &lines, report: &report }, &text)?;
    if gate.passed { Ok(()) } else { bail!("the gate is not passed, and nothing was written") }
}

impl TrainArgs {
    /// The ranker to be better than, and its name.
    fn current(&self) -> Result<(String, Ranker)> {
        let path = match self.against.as_deref() {
            Some("shipped") => None,
            Some(path) => Some(Path::new(path)),
            None => self.out.as_deref().filter(|out| out.exists()),
        };
        let Some(path) = path else { return Ok(("shipped".into(), Ranker::shipped().clone())) };
        let ranker = Ranker::load(path)
            .context("the ranker to be better than cannot be read; --against names another")?;
        Ok((files::name(path), ranker))
    }
}

fn check_enough(judged: &[Row], lines: &Lines) -> Result<()> {
    let finished = judged.iter().filter(|row| !row.example.censored).count();
    if finished >= MIN_JUDGED {
        return Ok(());
    }
    bail!(
        "the newest fifth has {} to judge by, and {MIN_JUDGED} are needed: gather about {} in all (there are {}; {} were read, \
         {} of them left out)",
        plural(finished, "finished answer"),
        (MIN_JUDGED as f64 / HELD_OUT_SHARE) as usize,
        lines.finished + lines.censored,
        plural(lines.read, "line"),
        lines.failed + lines.not_one_answer + lines.without_features
    )
}

/// A group for each model. Censored answers shorter than most of the finished ones of their model say nothing.
fn groups(rows: &[Row]) -> Vec<Vec<Arc<Example>>> {
    let mut models: BTreeMap<&str, Vec<&Arc<Example>>> = BTreeMap::new();
    for row in rows {
        models.entry(&row.model).or_default().push(&row.example);
    }
    let group = |examples: Vec<&Arc<Example>>| {
        // A model of which nothing has ended is not known at all.
        let median = Example::median_tokens(examples.iter().map(AsRef::as_ref)).unwrap_or(u32::MAX);
        let telling = |example: &&Arc<Example>| !example.censored || example.tokens >= median;
        examples.into_iter().filter(telling).cloned().collect::<Vec<_>>()
    };
    models.into_values().map(group).filter(|group| !group.is_empty()).collect()
}

fn text(out: Option<&str>, gate: &Gate, lines: &Lines, report: &TrainReport) -> String {
    let mut text = format!(
        "learned from {} of {} ({} that ended by themselves, {} cut short)\n{}",
        plural(report.learned_rows, "request"),
        plural(lines.read, "line"),
        lines.finished,
        lines.censored,
        gate.text()
    );
    match out {
        Some(out) => text.push_str(&format!("\n{out}: written")),
        None if gate.passed => text.push_str("\nnothing is written without --out"),
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use outrank_ranker::features::Scratch;

    use super::*;

    #[test]
    fn an_answer_cut_short_of_the_usual_of_its_model_says_nothing() {
        let row = |model: &str, tokens: u32, censored: bool| Row {
            arrival_s: None,
            prompt_tokens: 1,
            model: model.into(),
            example: Arc::new(Example::new(&mut Scratch::new(), "x", tokens, censored)),
        };
        let rows = [
            row("a", 10, false),
            row("a", 5, true),
            row("a", 20, true),
            row("b", 900, true),
            row("c", 3, false),
            row("c", 5, true),
        ];
        let found = groups(&rows);
        let found: Vec<Vec<u32>> =
            found.iter().map(|group| group.iter().map(|it| it.tokens).collect()).collect();
        assert_eq!(found, [vec![10, 20], vec![3, 5]]);
    }
}
