//! The requests of a gateway's journal, as far as they can be learned from.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use outrank_ranker::features::Scratch;
use outrank_ranker::{Example, PackedError, TraceRecord};
use serde::Serialize;
use serde_json::Value;

use crate::files::{self, Place};
use crate::output::plural;

/// Newest requests that are learned from and judged by, at most: two to four minutes' work on two cores, and 0.6 GB.
const MAX_ROWS: usize = 20_000;

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
pub(super) struct Lines {
    pub(super) read: usize,
    /// Requests to learn from or to judge by: answers that ended by themselves ...
    pub(super) finished: usize,
    /// ... and answers whose client left or that a limit cut off.
    pub(super) censored: usize,
    /// Left out because they failed.
    pub(super) failed: usize,
    /// Left out because they asked for several answers, or for one that goes on to its limit.
    pub(super) not_one_answer: usize,
    /// Left out because the journal keeps neither their features nor their prompt.
    pub(super) without_features: usize,
    /// Left out because there are enough newer ones.
    pub(super) too_old: usize,
    /// Not readable.
    pub(super) torn: usize,
}

/// What a line is good for.
enum Use {
    Learn(Row),
    Failed,
    NotOneAnswer,
    WithoutFeatures,
}

/// The newest requests of journals, oldest first: by their arrival, or as the lines stand where one has none.
pub(super) fn read(paths: &[PathBuf]) -> Result<(Vec<Row>, Lines)> {
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
        let damaged = with(line(5, "completed"), "features", "3:AAAA");
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
}
