//! `outrank trace collect` against a server that is not real.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::sync::atomic::Ordering;

use common::{FakeServer, FakeState, fails, file, json};

const PROMPTS: &str = "{\"prompt\": \"one\", \"source\": \"s\"}\n{\"prompt\": \"one two\"}\n{\"prompt\": \"one two three\"}\n\
                       {\"prompt\": \"a b c d e f\"}\n";

#[test]
fn lengths_samples_and_limits_are_recorded_in_the_order_of_the_input() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let prompts = file(dir.path(), "p.jsonl", PROMPTS);
    let args = [
        "trace",
        "collect",
        &prompts,
        "--url",
        &server.url,
        "--out",
        "t.jsonl",
        "--samples",
        "2",
        "--max-tokens",
        "3",
    ];
    let report = json(dir.path(), &args);
    assert_eq!((&report["sampled"], &report["truncated"]), (&8.into(), &4.into()));
    let text = std::fs::read_to_string(dir.path().join("t.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["output_tokens"], serde_json::json!([1, 1]));
    assert_eq!((&lines[0]["model"], &lines[0]["source"]), (&"fake".into(), &"s".into()));
    assert_eq!(lines[3]["truncated"], serde_json::json!([true, true]));
    assert!(!dir.path().join("t.jsonl.journal").exists());
}

#[test]
fn an_interrupted_collection_goes_on_and_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = file(dir.path(), "p.jsonl", PROMPTS);
    let whole = FakeServer::start(FakeState::default());
    let collect = |url: &str, out: &str| {
        let args = ["trace", "collect", &prompts, "--url", url, "--out", out, "--concurrency", "1"];
        common::outrank(dir.path(), &args)
    };
    assert!(collect(&whole.url, "whole.jsonl").status().unwrap().success());
    // The journal of a run that got half way, its last line torn.
    let half = FakeServer::start(FakeState { breaks_after: Some(2), ..FakeState::default() });
    let mut child = collect(&half.url, "t.jsonl").spawn().unwrap();
    while half.state.requests.load(Ordering::SeqCst) < 3 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let journal = dir.path().join("t.jsonl.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.extend_from_slice(b"{\"request\": 3, \"sam");
    std::fs::write(&journal, bytes).unwrap();
    assert!(!dir.path().join("t.jsonl").exists(), "half a trace is no trace");
    let before = whole.state.requests.load(Ordering::SeqCst);
    assert!(collect(&whole.url, "t.jsonl").status().unwrap().success());
    assert_eq!(
        whole.state.requests.load(Ordering::SeqCst) - before,
        2,
        "what was answered is not asked again"
    );
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("t.jsonl"), read("whole.jsonl"));
}

#[test]
fn a_journal_of_other_settings_is_not_mixed_in() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let prompts = file(dir.path(), "p.jsonl", PROMPTS);
    file(dir.path(), "t.jsonl.journal", "{\"other\": 1}\n");
    let (code, text) =
        fails(dir.path(), &["trace", "collect", &prompts, "--url", &server.url, "--out", "t.jsonl"]);
    assert!(code == 1 && text.contains("t.jsonl.journal"), "{text}");
}

#[test]
fn a_refused_prompt_fails_the_collection_unless_it_may_be_left_out() {
    let server = FakeServer::start(FakeState { refuses: Some("three"), ..FakeState::default() });
    let dir = tempfile::tempdir().unwrap();
    let prompts = file(dir.path(), "p.jsonl", PROMPTS);
    let args = ["trace", "collect", &prompts, "--url", &server.url, "--out", "t.jsonl"];
    let (code, text) = fails(dir.path(), &args);
    assert!(code == 1 && text.contains("p.jsonl:3: HTTP 400") && text.contains("--skip-failed"), "{text}");
    let report = json(dir.path(), &[&args[..], &["--skip-failed"]].concat());
    assert_eq!(
        (&report["requests"], &report["resumed"], &report["skipped"]),
        (&3.into(), &3.into(), &1.into())
    );
}

#[test]
fn an_existing_trace_is_not_overwritten_unasked() {
    let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let prompts = file(dir.path(), "p.jsonl", PROMPTS);
    file(dir.path(), "t.jsonl", "precious");
    let (code, text) =
        fails(dir.path(), &["trace", "collect", &prompts, "--url", &server.url, "--out", "t.jsonl"]);
    assert!(code == 1 && text.contains("--force"), "{text}");
    assert_eq!(std::fs::read_to_string(dir.path().join("t.jsonl")).unwrap(), "precious");
}
