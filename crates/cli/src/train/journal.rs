//! `outrank train --from-journal`: learning from what a gateway served.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outrank_ranker::features::Scratch;
use outrank_ranker::{Example, HeldOut, PackedError, Ranker, TraceRecord, TrainConfig, TrainReport};
use outrank_sim::Profile;
use serde::Serialize;
use serde_json::Value;

use super::gate::{Gate, judge};
use super::{TrainArgs, with_progress};
use crate::files::{self, Place};
use crate::output::{Output, plural};

/// Newest requests that are learned from and judged by, at most: about two minutes' work on two cores.
const MAX_ROWS: usize = 20_000;

/// Newest part that is not learned from.
const HELD_OUT_SHARE: f64 = 0.2;

/// Fewest finished answers in that part.
const MIN_JUDGED: usize = 50;

/// Engine that latency is simulated on, unless said otherwise.
const DEFAULT_PROFILE: &str = "h200-llama3-8b";

/// A request of the journal.
pub(super) struct Row {
    /// Seconds of the Unix epoch, where known.
    pub(super) arrival_s: Option<f64>,
    pub(super) prompt_tokens: u32,
    pub(super) model: String,
    /// Features and length; censored where the client left or a limit cut it off.
    pub(super) example: Arc<Example>,
}

/// Lines of the journal, and what became of them.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Lines {
    read: usize,
    /// Requests to learn from or to judge by: answers that ended by themselves ...
    finished: usize,
    /// ... and answers whose client left or that a limit cut off.
    censored: usize,
    /// Left out because they failed.
    failed: usize,
    /// Left out because they asked for several answers, or for one that goes on to its limit.
    not_one_answer: usize,
    /// Left out because the journal keeps neither their features nor their prompt.
    without_features: usize,
    /// Left out because there are enough newer ones.
    too_old: usize,
    /// Not readable.
    torn: usize,
}

/// What a line is good for.
enum Use {
    Learn(Row),
    Failed,
    NotOneAnswer,
    WithoutFeatures,
}

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

/// The newest requests of journals, oldest first: by their arrival, or as the lines stand where one has none.
fn read(paths: &[std::path::PathBuf]) -> Result<(Vec<Row>, Lines)> {
    let mut scratch = Scratch::new();
    let (mut rows, mut lines) = (Vec::new(), Lines::default());
    for path in paths {
        lines.torn += files::journal(path, |place, record| {
            lines.read += 1;
            match row(&mut scratch, place, record)? {
                Use::Learn(row) => rows.push(row),
                Use::Failed => lines.failed += 1,
                Use::NotOneAnswer => lines.not_one_answer += 1,
                Use::WithoutFeatures => lines.without_features += 1,
            }
            if rows.len() >= 2 * MAX_ROWS {
                lines.too_old += keep_newest(&mut rows);
            }
            Ok(())
        })?;
    }
    lines.too_old += keep_newest(&mut rows);
    lines.censored = rows.iter().filter(|row| row.example.censored).count();
    lines.finished = rows.len() - lines.censored;
    if rows.is_empty() && lines.without_features > 0 {
        bail!(
            "none of {} says what was asked: run the gateway with features in its journal (--journal-features) or prompts \
             (--journal-prompts)",
            plural(lines.read, "line")
        );
    }
    Ok((rows, lines))
}

/// Sorts, and drops the oldest beyond [`MAX_ROWS`]; returns how many.
fn keep_newest(rows: &mut Vec<Row>) -> usize {
    if rows.iter().all(|row| row.arrival_s.is_some()) {
        rows.sort_by(|a, b| a.arrival_s.unwrap_or(0.0).total_cmp(&b.arrival_s.unwrap_or(0.0)));
    }
    let too_many = rows.len().saturating_sub(MAX_ROWS);
    rows.drain(..too_many);
    too_many
}

fn row(scratch: &mut Scratch, place: Place<'_>, record: TraceRecord) -> Result<Use> {
    let cancelled = match record.extra.get("outcome").and_then(Value::as_str) {
        None | Some("completed") => false,
        Some("cancelled") => true,
        Some(_) => return Ok(Use::Failed),
    };
    let asked = |key: &str| record.extra.get(key);
    let several = asked("n").and_then(Value::as_u64).is_some_and(|n| n > 1);
    let tokens = record.length_tokens().map_or(0, |tokens| tokens.round() as u32);
    if several || asked("ignore_eos").and_then(Value::as_bool) == Some(true) || tokens == 0 {
        return Ok(Use::NotOneAnswer);
    }
    let censored = cancelled || record.is_censored();
    let has_prompt = !record.text().is_empty();
    let from_prompt = |scratch: &mut Scratch| Example::new(scratch, &record.request_text(), tokens, censored);
    let example = match asked("features") {
        None | Some(Value::Null) if !has_prompt => return Ok(Use::WithoutFeatures),
        None | Some(Value::Null) => from_prompt(scratch),
        Some(Value::String(packed)) => match Example::unpack(packed, tokens, censored) {
            Ok(example) => example,
            Err(PackedError::Version { .. }) if has_prompt => from_prompt(scratch),
            Err(error) => return Err(error).with_context(|| place.to_string()),
        },
        Some(_) => bail!("{place}: `features` must be a string"),
    };
    Ok(Use::Learn(Row {
        arrival_s: record.arrival_s,
        prompt_tokens: record.prompt_tokens.unwrap_or(1).max(1),
        model: record.model.unwrap_or_default(),
        example: Arc::new(example),
    }))
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
        let finished = examples.iter().filter(|example| !example.censored);
        let mut lengths: Vec<u32> = finished.map(|example| example.tokens).collect();
        lengths.sort_unstable();
        // A model of which nothing has ended is not known at all.
        let median = lengths.get(lengths.len() / 2).copied().unwrap_or(u32::MAX);
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
    use serde_json::json;

    use super::*;

    fn read_lines(lines: &[Value]) -> Result<(Vec<Row>, Lines)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        read(&[path])
    }

    fn line(tokens: u32, outcome: &str) -> Value {
        let packed = Example::new(&mut Scratch::new(), "Hi", tokens, false).pack().unwrap();
        json!({"prompt": "", "output_tokens": tokens, "truncated": false, "model": "m", "outcome": outcome,
            "features": packed})
    }

    fn with(mut line: Value, key: &str, value: impl Into<Value>) -> Value {
        line[key] = value.into();
        line
    }

    #[test]
    fn answers_that_were_cut_short_are_censored_and_those_that_say_nothing_are_left_out() {
        let mut without = line(7, "completed");
        without.as_object_mut().unwrap().remove("features");
        let (rows, lines) = read_lines(&[
            line(5, "completed"),
            line(6, "cancelled"),
            with(line(7, "completed"), "truncated", true),
            line(8, "failed"),
            with(line(9, "completed"), "n", 2),
            with(line(9, "completed"), "ignore_eos", true),
            without,
        ])
        .unwrap();
        let learned: Vec<_> = rows.iter().map(|row| (row.example.tokens, row.example.censored)).collect();
        assert_eq!(learned, [(5, false), (6, true), (7, true)]);
        let expected = Lines {
            read: 7,
            finished: 1,
            censored: 2,
            failed: 1,
            not_one_answer: 2,
            without_features: 1,
            ..Lines::default()
        };
        assert_eq!(lines, expected);
    }

    #[test]
    fn features_of_another_version_are_refused_unless_the_prompt_is_there() {
        let old = with(line(5, "completed"), "features", "1:AAAA");
        let error = format!("{:#}", read_lines(&[line(4, "completed"), old.clone()]).err().unwrap());
        assert!(error.contains("j.jsonl:2") && error.contains("version 1"), "{error}");
        let (rows, _) = read_lines(&[with(old, "prompt", "Hi")]).unwrap();
        assert_eq!(*rows[0].example, Example::new(&mut Scratch::new(), "Hi", 5, false));
        let damaged = with(line(5, "completed"), "features", "2:AAAA");
        assert!(read_lines(&[damaged]).is_err());
    }

    #[test]
    fn a_journal_without_anything_to_learn_from_says_what_to_switch_on() {
        let bare = json!({"prompt": "", "output_tokens": 5});
        let error = read_lines(&[bare]).err().unwrap().to_string();
        assert!(error.contains("--journal-features"), "{error}");
    }

    #[test]
    fn a_torn_line_is_skipped_and_a_file_of_them_is_no_journal() {
        let good = line(5, "completed").to_string();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        std::fs::write(&path, format!("{good}\n{good}\n{{\"prompt\": \"\", \"outp")).unwrap();
        let (rows, lines) = read(std::slice::from_ref(&path)).unwrap();
        assert_eq!((rows.len(), lines.torn), (2, 1));
        std::fs::write(&path, "no\njournal\nat all\n").unwrap();
        assert!(read(&[path]).is_err());
    }

    #[test]
    fn rotated_files_are_put_in_the_order_of_arrival_and_the_newest_are_kept() {
        let mut rows: Vec<Row> = (0..MAX_ROWS + 5)
            .map(|n| Row {
                arrival_s: Some(((n * 7919) % (MAX_ROWS + 5)) as f64),
                prompt_tokens: 1,
                model: String::new(),
                example: Arc::new(Example::new(&mut Scratch::new(), "", 1, false)),
            })
            .collect();
        assert_eq!(keep_newest(&mut rows), 5);
        assert!(rows.is_sorted_by_key(|row| row.arrival_s) && rows[0].arrival_s == Some(5.0));
    }

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
