//! Retraining from journals through the binary: what passes the gate is written, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Output;

use common::{fails, file, json, run, stderr};
use outrank_ranker::Example;
use outrank_ranker::features::{Scratch, VERSION};
use serde_json::{Value, json};

/// A line of a gateway's journal about a request of the given kind, which only this traffic knows. `turned` turns the order round.
fn line(index: usize, turned: bool, outcome: &str) -> Value {
    let long = (index * 7).is_multiple_of(3);
    let text = format!("Item {index}: {} it, please.", ["zindle", "glorp"][usize::from(long)]);
    let tokens = 20 + 300 * u32::from(long != turned) + (index as u32 * 13) % 17;
    let packed = Example::new(&mut Scratch::new(), &text, tokens, false).pack().unwrap();
    json!({"prompt": "", "arrival_s": 1.7e9 + index as f64, "prompt_tokens": 9, "output_tokens": tokens, "truncated": false,
        "model": "m", "class": "default", "outcome": outcome, "e2e_s": 1.0, "request_id": format!("r{index}"),
        "features": packed})
}

fn text(lines: impl Iterator<Item = Value>) -> String {
    lines.map(|line| format!("{line}\n")).collect()
}

fn journal(count: usize) -> String {
    text((0..count).map(|index| line(index, false, "completed")))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run with `--json` that prints a result and ends with code 1.
fn refused(dir: &Path, args: &[&str]) -> Value {
    let output: Output = run(dir, &[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_orders_the_newest_requests_better_is_written_and_the_same_again_is_not() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "j.jsonl", &journal(300));
    let args = ["train", "--from-journal", "j.jsonl", "--out", "r.outrank"];
    let report = json(dir.path(), &args);
    let gate = &report["gate"];
    let pair = |key: &str| (gate[key][0].as_f64().unwrap(), gate[key][1].as_f64().unwrap());
    let ((old, new), (slow, fast)) = (pair("tau_b"), pair("s_per_token"));
    assert!(
        gate["passed"] == true && gate["against"] == "shipped" && gate["arrivals"] == "journal",
        "{gate}"
    );
    // Two kinds of request, a third of them long: no ranker that knows only the kind comes beyond 0.444.
    assert!(new > old + 0.3 && new > 0.4 && fast < slow, "{gate}");
    assert_eq!(
        (&gate["requests"], &gate["finished"], &report["learned_rows"]),
        (&60.into(), &60.into(), &240.into())
    );
    let written = std::fs::read(dir.path().join("r.outrank")).unwrap();
    // The ranker at --out is now the one to be better than, and what is learned again is equal to it.
    let report = refused(dir.path(), &args);
    assert!(report["gate"]["passed"] == false && report["gate"]["against"] == "r.outrank", "{report}");
    assert_eq!(report["out"], Value::Null);
    assert_eq!(std::fs::read(dir.path().join("r.outrank")).unwrap(), written);
    let report = json(dir.path(), &["train", "--from-journal", "j.jsonl", "--against", "shipped"]);
    assert!(report["gate"]["passed"] == true && report["out"] == Value::Null);
    assert_eq!(names(dir.path()), ["j.jsonl", "r.outrank"], "nothing else is left behind");
}

#[test]
fn what_the_newest_requests_speak_against_is_not_written_and_the_reason_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let turned = text((0..300).map(|index| line(index, index >= 240, "completed")));
    file(dir.path(), "j.jsonl", &turned);
    let args = ["train", "--from-journal", "j.jsonl", "--out", "r.outrank"];
    let gate = &refused(dir.path(), &args)["gate"];
    assert_eq!(gate["why"], json!(["it does not order better", "latency is no lower"]));
    assert!(gate["tau_b"][1].as_f64().unwrap() < -0.3, "{gate}");
    let output = run(dir.path(), &args);
    let said = stderr(&output) + &String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("gate not passed: it does not order better and latency is no lower"), "{said}");
    assert_eq!(names(dir.path()), ["j.jsonl"]);
    file(dir.path(), "r.outrank", "not a ranker");
    let (code, said) = fails(dir.path(), &args);
    assert!(code == 1 && said.contains("--against"), "{said}");
    assert_eq!(std::fs::read_to_string(dir.path().join("r.outrank")).unwrap(), "not a ranker");
}

#[test]
fn rotated_and_compressed_files_are_one_journal_in_the_order_of_arrival() {
    let dir = tempfile::tempdir().unwrap();
    let lines = journal(300);
    file(dir.path(), "whole.jsonl", &lines);
    let (older, newer) = lines.split_at(lines.match_indices('\n').nth(149).unwrap().0 + 1);
    file(dir.path(), "j.jsonl", newer);
    let gzip = std::fs::File::create(dir.path().join("j.jsonl.1")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(gzip, flate2::Compression::fast());
    gzip.write_all(older.as_bytes()).unwrap();
    gzip.finish().unwrap();
    let gate =
        |files: &[&str]| json(dir.path(), &[&["train", "--from-journal"], files].concat())["gate"].clone();
    assert_eq!(gate(&["j.jsonl", "j.jsonl.1"]), gate(&["whole.jsonl"]));
}

#[test]
fn requests_without_arrivals_are_judged_by_a_burst() {
    let dir = tempfile::tempdir().unwrap();
    let bare = text((0..300).map(|index| {
        let mut line = line(index, false, "completed");
        line.as_object_mut().unwrap().remove("arrival_s");
        line
    }));
    file(dir.path(), "j.jsonl", &bare);
    let gate =
        json(dir.path(), &["train", "--from-journal", "j.jsonl", "--profile", "cpu-smollm2"])["gate"].clone();
    assert_eq!((&gate["arrivals"], &gate["profile"]), (&"burst".into(), &"cpu-smollm2".into()));
}

#[test]
fn failed_requests_are_left_out_and_those_that_clients_left_are_censored() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = |index: usize| ["completed", "completed", "completed", "cancelled", "failed"][index % 5];
    file(dir.path(), "j.jsonl", &text((0..500).map(|index| line(index, false, outcome(index)))));
    let report = json(dir.path(), &["train", "--from-journal", "j.jsonl", "--against", "shipped"]);
    let lines = &report["lines"];
    assert_eq!(
        (&lines["finished"], &lines["censored"], &lines["failed"]),
        (&300.into(), &100.into(), &100.into())
    );
    assert_eq!((&report["gate"]["requests"], &report["gate"]["finished"]), (&80.into(), &60.into()));
}

#[test]
fn a_journal_that_cannot_be_judged_by_is_refused_with_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "short.jsonl", &journal(100));
    let other = journal(300).replacen(&format!("\"features\":\"{VERSION}:"), "\"features\":\"1:", 1);
    file(dir.path(), "other.jsonl", &other);
    file(dir.path(), "good.jsonl", &journal(300));
    for (args, code, words) in [
        (&["--from-journal", "short.jsonl"][..], 1, "20 finished answers to judge by, and 50 are needed"),
        (&["--from-journal", "other.jsonl"], 1, "other.jsonl:1: features of version 1"),
        (&["--trace", "good.jsonl"], 2, "--from-journal"),
        (&["--from-journal", "good.jsonl", "--profile", "h99"], 1, "h200-llama3-8b"),
        (&["--from-journal", "good.jsonl", "--all"], 2, "--all"),
        (&["--trace", "good.jsonl", "--against", "shipped"], 2, "--from-journal"),
    ] {
        let (found, said) = fails(dir.path(), &[&["train", "--out", "r.outrank"][..], args].concat());
        assert!(found == code && said.contains(words), "{args:?}: {found} {said}");
    }
    assert_eq!(names(dir.path()), ["good.jsonl", "other.jsonl", "short.jsonl"]);
}
