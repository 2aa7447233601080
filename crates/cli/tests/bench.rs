//! `outrank bench` against a server that is not real.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{FakeServer, FakeState, fails, file, json, trace};

fn fake(state: FakeState) -> FakeServer {
    FakeServer::start(FakeState { token_time: Duration::from_millis(2), ..state })
}

#[test]
fn a_burst_is_sent_at_once_and_measured_by_the_contract() {
    let (dir, server) = (tempfile::tempdir().unwrap(), fake(FakeState::default()));
    let trace = file(dir.path(), "t.jsonl", &trace(40));
    let result = json(
        dir.path(),
        &["bench", "--url", &server.url, "--trace", &trace, "--arrivals", "burst:30", "--warm-up", "0"],
    );
    let run = &result["runs"][0];
    assert_eq!(
        (&run["requests"], &run["failed"], &run["arrivals"]),
        (&30.into(), &0.into(), &"burst:30".into())
    );
    assert_eq!(run["as_recorded"], 1.0, "recorded lengths are replayed");
    assert!(
        server.state.most_in_flight.load(Ordering::SeqCst) > 20,
        "nobody waits for an answer before sending"
    );
    assert_eq!(server.state.hints.load(Ordering::SeqCst), 0, "a foreign server gets no extension");
    for metric in ["s_per_token", "ttft_s", "e2e_s", "tpot_s", "max_waiting_s", "itl_s"] {
        for figure in ["mean", "p50", "p90", "p99", "max"] {
            assert!(run["metrics"][metric][figure].as_f64().unwrap() >= 0.0, "{metric} {figure}");
        }
    }
    let metrics = &run["metrics"];
    assert!(
        metrics["tpot_s"]["mean"].as_f64().unwrap() >= 0.002
            && metrics["ttft_s"]["max"].as_f64() < metrics["e2e_s"]["max"].as_f64()
    );
}

#[test]
fn failures_are_counted_and_shown_and_the_rest_is_measured() {
    let server =
        fake(FakeState { refuses: Some("number 3"), cuts: Some("number 5"), ..FakeState::default() });
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(10));
    let out = dir.path().join("result.json");
    let args = [
        "bench",
        "--url",
        &server.url,
        "--trace",
        &trace,
        "--arrivals",
        "burst:10",
        "--out",
        out.to_str().unwrap(),
    ];
    let output = common::run(dir.path(), &args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("2 of 10 requests FAILED"), "{text}");
    assert!(text.contains("HTTP 400: this prompt is too long") && text.contains("broke off"), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert_eq!((&result["runs"][0]["failed"], &result["runs"][0]["requests"]), (&2.into(), &10.into()));
}

#[test]
fn arrivals_do_not_wait_for_answers_and_repeat_with_their_seed() {
    let server =
        FakeServer::start(FakeState { token_time: Duration::from_millis(20), ..FakeState::default() });
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(50));
    let run = |seed: &str| {
        let args = ["--arrivals", "poisson:40", "--duration-s", "0.5", "--lengths", "free", "--seed", seed];
        json(dir.path(), &[&["bench", "--url", &server.url, "--trace", &trace][..], &args[..]].concat())
    };
    let (first, again) = (run("3"), run("3"));
    assert_eq!(first["runs"][0]["requests"], again["runs"][0]["requests"]);
    assert_eq!(first["runs"][0]["output_tokens"], again["runs"][0]["output_tokens"]);
    assert!(server.state.most_in_flight.load(Ordering::SeqCst) >= 3);
}

#[test]
fn one_at_a_time_means_one_at_a_time() {
    let (dir, server) = (tempfile::tempdir().unwrap(), fake(FakeState::default()));
    let trace = file(dir.path(), "t.jsonl", &trace(8));
    let args = ["bench", "--url", &server.url, "--trace", &trace, "--arrivals", "serial:8", "--warm-up", "0"];
    assert_eq!(json(dir.path(), &args)["runs"][0]["requests"], 8);
    assert_eq!(server.state.most_in_flight.load(Ordering::SeqCst), 1);
}

#[test]
fn only_held_out_prompts_are_sent_when_asked_and_hints_only_when_asked() {
    let (dir, server) = (tempfile::tempdir().unwrap(), fake(FakeState::default()));
    let trace = file(dir.path(), "t.jsonl", &trace(60));
    let args = [
        "bench",
        "--url",
        &server.url,
        "--trace",
        &trace,
        "--arrivals",
        "burst:5",
        "--held-out",
        "--outrank-hints",
    ];
    assert_eq!(json(dir.path(), &args)["runs"][0]["failed"], 0);
    assert!(server.state.hints.load(Ordering::SeqCst) >= 5);
}

#[test]
fn flags_that_would_be_ignored_are_refused_as_usage() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(5));
    let cases: [(&[&str], &str); 8] = [
        (&["--url", "http://x", "--policies", "fcfs", "--arrivals", "burst:1"], "cannot be used with"),
        (&["--arrivals", "burst:1"], "--url"),
        (&["--url", "x", "--arrivals", "burst:1"], "expected http://"),
        (&["--url", "http://x", "--arrivals", "load:0.5"], "load: needs --policies"),
        (&["--url", "http://x", "--arrivals", "burst:1", "--rate", "3"], "--rate scales csv:"),
        (&["--url", "http://x", "--arrivals", "burst:1", "--duration-s", "3"], "--duration-s means nothing"),
        (&["--policies", "fcfs,sjf", "--arrivals", "burst:1"], "no policy is called \"sjf\""),
        (&["--policies", "fcfs,fcfs", "--arrivals", "burst:1"], "names fcfs twice"),
    ];
    for (args, expected) in cases {
        let (code, text) = fails(dir.path(), &[&["bench", "--trace", &trace][..], args].concat());
        assert!(code == 2 && text.contains(expected), "{args:?}: {code} {text}");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(5));
    let (code, text) = fails(
        dir.path(),
        &["bench", "--url", "http://127.0.0.1:9", "--trace", &trace, "--arrivals", "burst:1"],
    );
    assert!(code == 1 && text.contains("127.0.0.1:9") && text.to_lowercase().contains("refused"), "{text}");
}
