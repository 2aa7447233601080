//! Traces, training, judging and settings through the binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{fails, file, json, outrank, run, stderr, trace};

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_bad_line_is_listed_with_file_and_line_and_ends_in_failure() {
    let dir = tempfile::tempdir().unwrap();
    let text = "{\"prompt\": \"a\", \"output_tokens\": 3}\n{\"prompt\": 7, \"output_tokens\": 3}\nnonsense\n";
    let trace = file(dir.path(), "bad.jsonl", text);
    let output = run(dir.path(), &["trace", "validate", &trace, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["requests"], &report["bad_lines"]), (&1.into(), &2.into()));
    assert!(report["problems"][0].as_str().unwrap().contains("bad.jsonl:2: `prompt` must be a string"));
    assert!(report["problems"][1].as_str().unwrap().contains("bad.jsonl:3: not valid JSON"));
    assert!(
        run(dir.path(), &["trace", "validate", &file(dir.path(), "good.jsonl", &common::trace(3))])
            .status
            .success()
    );
}

#[test]
fn training_stops_at_a_bad_line_and_leaves_the_ranker_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", "{\"prompt\": \"a\", \"output_tokens\": -3}\n");
    file(dir.path(), "r.outrank", "precious");
    let (code, text) = fails(dir.path(), &["train", "--trace", &trace, "--out", "r.outrank"]);
    assert!(code == 1 && text.contains("t.jsonl:1") && text.contains("output_tokens"), "{text}");
    assert_eq!(std::fs::read_to_string(dir.path().join("r.outrank")).unwrap(), "precious");
}

#[test]
fn a_trained_ranker_is_judged_on_what_it_did_not_see_and_the_same_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(400));
    let report = json(dir.path(), &["train", "--trace", &trace, "--out", "a.outrank", "--seed", "5"]);
    let held_out = &report["held_out"];
    assert!(
        held_out["tau_b"].as_f64().unwrap() > 0.5 && held_out["requests"].as_u64().unwrap() > 40,
        "{report}"
    );
    json(dir.path(), &["train", "--trace", &trace, "--out", "b.outrank", "--seed", "5"]);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("a.outrank"), read("b.outrank"));
    let eval = json(dir.path(), &["eval", "--trace", &trace, "--held-out", "--ranker", "a.outrank"]);
    assert_eq!(eval["files"][0]["requests"], held_out["requests"]);
    assert_eq!(eval["mean_tau_b"], held_out["tau_b"]);
    let explained =
        json(dir.path(), &["explain", "--ranker", "a.outrank", "--prompt", "very very very long story"]);
    assert!(explained["predicted_tokens"].as_f64().unwrap() > 1.0);
    assert!(
        explained["words"][0]["word"] == "very" && explained["words"][0]["factor"].as_f64() > Some(1.0),
        "{explained}"
    );
}

#[test]
fn a_corrupt_ranker_is_refused_wherever_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(30));
    let ranker = file(dir.path(), "r.outrank", "OUTRANKR and then rubbish");
    for args in [
        &["eval", "--trace", &trace, "--ranker", &ranker][..],
        &["explain", "--prompt", "x", "--ranker", &ranker],
        &["serve", "--ranker", &ranker, "--port", "0"],
        &["bench", "--policies", "fcfs", "--trace", &trace, "--arrivals", "burst:1", "--ranker", &ranker],
    ] {
        let (code, text) = fails(dir.path(), args);
        assert!(code == 1 && text.contains("r.outrank"), "{args:?}: {text}");
    }
}

#[test]
fn a_split_is_by_prompt_and_drops_near_duplicates_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: usize, end: &str| {
        format!(
            "{{\"prompt\": \"Tell me all that you know about the river number {n} please{end}\", \"output_tokens\": 5}}\n"
        )
    };
    let text: String = (0..60).flat_map(|n| [line(n, ""), line(n, "!"), line(n, " now")]).collect();
    let trace = file(dir.path(), "t.jsonl", &text);
    let args = ["trace", "split", &trace, "--train", "a.jsonl", "--held-out", "b.jsonl"];
    let kept = json(dir.path(), &args);
    assert_eq!(lines(&dir.path().join("a.jsonl")).len() + lines(&dir.path().join("b.jsonl")).len(), 180);
    assert!(kept["near_duplicates"].as_u64().unwrap() > 10 && kept["dropped"] == 0, "{kept}");
    let dropped = json(dir.path(), &[&args[..], &["--drop-near-duplicates"]].concat());
    assert_eq!(dropped["dropped"], kept["near_duplicates"]);
    assert_eq!(dropped["held_out"], kept["held_out"], "what is tested on stays the same");
    assert_eq!(fails(dir.path(), &["trace", "split", &trace, "--check"]).0, 1);
    assert_eq!(fails(dir.path(), &["trace", "split", &trace]).0, 2);
}

#[test]
fn scores_are_written_into_a_trace_and_classes_tie_what_a_ranker_tells_apart() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(400));
    let scored = |args: &[&str]| {
        let all = [&["trace", "score", &trace, "--out", "s.jsonl", "--held-out"], args].concat();
        let report = json(dir.path(), &all);
        let scores: std::collections::BTreeSet<String> = lines(&dir.path().join("s.jsonl"))
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["score"].to_string())
            .collect();
        (report["tau_b"].as_f64().unwrap(), scores.len())
    };
    json(dir.path(), &["train", "--trace", &trace, "--out", "r.outrank", "--prior", "none"]);
    let (ranked, _) = scored(&["--ranker", "r.outrank"]);
    let (classed, values) = scored(&["--classes", "percentile:3"]);
    assert!(ranked > 0.5 && classed > 0.3 && values <= 3, "{ranked} {classed} {values}");
    assert_eq!(fails(dir.path(), &["trace", "score", &trace, "--out", &trace]).0, 2);
    assert_eq!(fails(dir.path(), &["trace", "score", &trace, "--out", "x", "--classes", "width:0"]).0, 2);
}

#[test]
fn a_trace_that_comes_through_a_pipe_can_be_scored_by_classes() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(400));
    let mut cat = Command::new("cat").arg(&trace).stdout(Stdio::piped()).spawn().unwrap();
    let args = ["trace", "score", "/dev/stdin", "--out", "s.jsonl", "--classes", "percentile:3"];
    let scored = outrank(dir.path(), &args).stdin(cat.stdout.take().unwrap()).output().unwrap();
    assert!(scored.status.success(), "{}", stderr(&scored));
    assert!(cat.wait().unwrap().success());
    assert_eq!(lines(&dir.path().join("s.jsonl")).len(), 400);
}

#[test]
fn families_are_left_out_one_at_a_time_and_must_be_given_for_every_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (file(dir.path(), "a.jsonl", &trace(120)), file(dir.path(), "b.jsonl", &trace(90)));
    let train = ["train", "--trace", &a, "--trace", &b, "--all", "--prior", "none", "--out", "r.outrank"];
    json(dir.path(), &[&train[..], &["--trace-family", "x", "--trace-family", "y"]].concat());
    let apart = std::fs::read(dir.path().join("r.outrank")).unwrap();
    json(dir.path(), &[&train[..], &["--trace-family", "x", "--trace-family", "x"]].concat());
    assert_ne!(apart, std::fs::read(dir.path().join("r.outrank")).unwrap());
    assert_eq!(fails(dir.path(), &[&train[..], &["--trace-family", "x"]].concat()).0, 2);
}

#[test]
fn the_papers_format_becomes_a_trace_without_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let paper = file(dir.path(), "p.jsonl", "{\"prompt\": \"a b\", \"generated\": \"one two three four\"}\n");
    let args = ["trace", "convert", &paper, "--out", "t.jsonl", "--approximate"];
    assert_eq!(json(dir.path(), &args)["counted_answers"], 1);
    let record: serde_json::Value = serde_json::from_str(&lines(&dir.path().join("t.jsonl"))[0]).unwrap();
    assert!(
        record["output_tokens"].as_u64() >= Some(4)
            && record["generated"].is_null()
            && record["prompt_tokens"] == 2
    );
    let none = "{\"prompt\": \"a\", \"output_tokens\": 3}\n\n{\"prompt\": \"a b\"}\n";
    let none = file(dir.path(), "n.jsonl", none);
    let (code, text) = fails(dir.path(), &["trace", "convert", &none, "--out", "x.jsonl", "--approximate"]);
    assert!(
        code == 1 && text.contains("n.jsonl:3: has neither") && !dir.path().join("x.jsonl").exists(),
        "{text}"
    );
}

#[test]
fn counts_that_are_there_are_kept_unless_they_are_to_be_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let text = "{\"prompt\": \"a b\", \"prompt_tokens\": 70}\n{\"prompt\": \"a b c\"}\n";
    let input = file(dir.path(), "t.jsonl", text);
    let prompt_tokens = |extra: &[&str], counted: u64| {
        let args = ["trace", "count", &input, "--out", "c.jsonl", "--approximate"];
        let report = json(dir.path(), &[&args[..], extra].concat());
        assert_eq!(report["counted_prompts"], counted, "{report}");
        let lines = lines(&dir.path().join("c.jsonl"));
        let records = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.map(|record| record["prompt_tokens"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(prompt_tokens(&[], 1), [70, 3]);
    assert_eq!(prompt_tokens(&["--overwrite"], 2), [2, 3]);
}

#[test]
fn a_trace_without_requests_is_an_error_to_count_and_to_convert() {
    let dir = tempfile::tempdir().unwrap();
    let empty = file(dir.path(), "e.jsonl", "\n\n");
    for command in ["count", "convert"] {
        let args = ["trace", command, &empty, "--out", "x.jsonl", "--approximate"];
        let (code, text) = fails(dir.path(), &args);
        assert!(code == 1 && text.contains("e.jsonl: the trace has no request"), "{command}: {text}");
        assert!(!dir.path().join("x.jsonl").exists(), "{command}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    // Not even the input is read: it is rubbish, and no word is said about it.
    let input = file(dir.path(), "t.jsonl", "rubbish");
    for args in [
        &["train", "--trace", &input, "--out", "no/r.outrank"][..],
        &["bench", "--policies", "fcfs", "--trace", &input, "--arrivals", "burst:1", "--out", "no/r.json"],
        &["trace", "count", &input, "--out", "no/t.jsonl"],
        &["trace", "convert", &input, "--out", "no/t.jsonl"],
        &["trace", "collect", &input, "--out", "no/t.jsonl"],
        &["trace", "split", &input, "--train", "a.jsonl", "--held-out", "no/t.jsonl"],
    ] {
        let (code, text) = fails(dir.path(), args);
        assert!(code == 1 && text.contains("there is no folder no"), "{args:?}: {code} {text}");
    }
    let (code, text) = fails(dir.path(), &["train", "--trace", &input, "--out", "."]);
    assert!(code == 2 && text.contains("is a folder"), "{code} {text}");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["t.jsonl"], "asking leaves nothing behind");
}

#[test]
fn settings_under_which_nothing_could_run_are_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(3));
    let bench = ["bench", "--policies", "fcfs", "--trace", &trace, "--arrivals", "burst:1"];
    let collect = ["trace", "collect", &trace, "--out", "c.jsonl", "--replace"];
    let serve = ["serve", "--no-ranker"];
    let cases: [(&[&str], &[&str], &str); 9] = [
        (&serve, &["--seats", "0"], "seats"),
        (&bench, &["--seats", "0"], "seats"),
        (&collect, &["--seats", "0"], "seats"),
        (&serve, &["--context", "1"], "context_tokens"),
        (&serve, &["--kv-blocks", "3"], "kv_blocks = 3"),
        (&bench, &["--step-tokens", "4"], "step_tokens = 4"),
        (&serve, &["--default-max-tokens", "0"], "default_max_tokens"),
        (&serve, &["--model-name", ""], "model_name is empty"),
        (&serve, &["--shadow", "--policy", "ltr"], "--shadow can compare"),
    ];
    for (command, extra, expected) in cases {
        let (code, text) = fails(dir.path(), &[command, extra].concat());
        assert!(code == 2 && text.contains(expected), "{command:?} {extra:?}: {code} {text}");
    }
    for (settings, expected) in [
        ("[serve]\npolicy = \"lottery\"\n", "no policy is called \"lottery\""),
        ("[serve]\nmodel_name = \"\"\n", "model_name is empty"),
        ("[engine]\nseats = 0\n", "seats"),
    ] {
        file(dir.path(), "outrank.toml", settings);
        let (code, text) = fails(dir.path(), &serve);
        assert!(code == 2 && text.contains(expected), "{settings}: {code} {text}");
    }
}

#[test]
fn an_unknown_key_of_the_settings_file_is_named_and_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "outrank.toml", "[engine]\nseatz = 4\n");
    let (code, text) = fails(dir.path(), &["serve"]);
    assert!(code == 2 && text.contains("outrank.toml") && text.contains("seatz"), "{code} {text}");
    file(dir.path(), "outrank.toml", "[policy]\nshort_share = \"far\"\n");
    let (code, text) = fails(dir.path(), &["serve"]);
    assert!(code == 2 && text.contains("short_share"), "{code} {text}");
    file(dir.path(), "outrank.toml", "[policy]\nshort_share = -1.0\n");
    let (code, text) = fails(dir.path(), &["serve", "--no-ranker"]);
    assert!(code == 2 && text.contains("short_share = -1"), "{code} {text}");
}

#[test]
fn a_bad_variable_is_wrong_usage_and_a_flag_wins_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = common::outrank(dir.path(), &["serve"]).env("OUTRANK_PORT", "eighty").output().unwrap();
    assert!(output.status.code() == Some(2) && stderr(&output).contains("eighty"), "{}", stderr(&output));
    let output = common::outrank(dir.path(), &["serve", "--model", "flag.gguf"])
        .env("OUTRANK_MODEL", "env.gguf")
        .output();
    assert!(stderr(&output.unwrap()).contains("flag.gguf"));
}

#[test]
fn a_missing_model_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = common::outrank(dir.path(), &["serve", "--no-ranker"])
        .env("HOME", dir.path())
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("make model"), "{}", stderr(&output));
    let (code, text) = fails(dir.path(), &["serve", "--model", "absent.gguf"]);
    assert!(code == 1 && text.contains("absent.gguf"), "{text}");
    let rubbish = file(dir.path(), "rubbish.gguf", "GGUF or is it");
    assert!(fails(dir.path(), &["serve", "--model", &rubbish]).1.contains("rubbish.gguf"));
}

#[test]
fn explain_finds_a_request_whatever_is_in_its_id() {
    let (dir, server) =
        (tempfile::tempdir().unwrap(), common::FakeServer::start(common::FakeState::default()));
    let id = "team/a b?c#d%e";
    assert_eq!(json(dir.path(), &["explain", "--url", &server.url, id])["request_id"], id);
}

#[test]
fn help_documents_every_command_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let help =
        |args: &[&str]| String::from_utf8(run(dir.path(), &[args, &["--help"]].concat()).stdout).unwrap();
    let top = help(&[]);
    for command in ["serve", "train", "eval", "bench", "trace", "explain"] {
        assert!(top.contains(command));
        let text = help(&[command]);
        assert!(command == "trace" || text.contains("Example"), "{command} has no example");
        assert!(text.len() > 800, "{command} says little");
    }
    for command in ["validate", "stats", "count", "convert", "split", "score", "collect"] {
        assert!(help(&["trace", command]).contains("Usage: outrank trace"), "{command}");
    }
    assert_eq!(run(dir.path(), &[]).status.code(), Some(2));
}

#[test]
fn our_own_trace_is_valid_and_large_and_nothing_of_its_held_out_part_is_nearly_in_the_other() {
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../traces/smollm2-135m.jsonl.gz");
    let dir = tempfile::tempdir().unwrap();
    let report = json(dir.path(), &["trace", "split", trace, "--check"]);
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("train") + count("held_out") >= 1500 && count("held_out") >= 300, "{report}");
    assert_eq!(count("near_duplicates"), 0, "{report}");
}

#[test]
fn prompts_with_estimated_lengths_are_valid_and_none_is_held_out_in_our_own_trace() {
    let traces = concat!(env!("CARGO_MANIFEST_DIR"), "/../../traces/");
    let read = |name: &str| {
        let path = std::path::Path::new(traces).join(name);
        outrank_ranker::read_trace(&path, outrank_ranker::trace::Lengths::Required).unwrap()
    };
    let held_out: std::collections::BTreeSet<String> = read("smollm2-135m.jsonl.gz")
        .iter()
        .filter(|record| outrank_ranker::trace::held_out(record))
        .map(outrank_ranker::TraceRecord::text)
        .collect();
    let estimated = read("estimated-lengths.jsonl.gz");
    assert!(estimated.len() > 5000 && held_out.len() > 300);
    assert!(estimated.iter().all(|record| !held_out.contains(&record.text())));
}
