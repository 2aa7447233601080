//! `outrank bench` against a server that is not real.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{FakeServer, FakeState, fails, file, json, trace};
use serde_json::Value;

/// A server that is not real, and a trace to send to it.
struct Target {
    dir: tempfile::TempDir,
    server: FakeServer,
    trace: String,
}

impl Target {
    /// Two milliseconds a token.
    fn new(state: FakeState, trace: &str) -> Self {
        Self::with_token_time(Duration::from_millis(2), state, trace)
    }

    fn with_token_time(token_time: Duration, state: FakeState, trace: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trace = file(dir.path(), "t.jsonl", trace);
        Self { dir, server: FakeServer::start(FakeState { token_time, ..state }), trace }
    }

    /// `bench` with these flags, and nothing but its requests.
    fn args<'a>(&'a self, flags: &[&'a str]) -> Vec<&'a str> {
        let args = ["bench", "--url", &self.server.url, "--trace", &self.trace, "--warm-up", "0"];
        [&args[..], flags].concat()
    }

    /// The result of `bench` with these flags.
    fn bench(&self, flags: &[&str]) -> Value {
        json(self.dir.path(), &self.args(flags))
    }

    fn most_in_flight(&self) -> usize {
        self.server.state.most_in_flight.load(Ordering::SeqCst)
    }

    fn hints(&self) -> usize {
        self.server.state.hints.load(Ordering::SeqCst)
    }

    /// A field of every request, in the order in which they came.
    fn asked(&self, field: &str) -> Vec<Value> {
        self.server
            .state
            .bodies
            .lock()
            .unwrap()
            .iter()
            .map(|body| body.pointer(field).unwrap().clone())
            .collect()
    }
}

#[test]
fn a_burst_is_sent_at_once_and_measured_by_the_contract() {
    let target = Target::new(FakeState::default(), &trace(40));
    let result = target.bench(&["--arrivals", "burst:30"]);
    let run = &result["runs"][0];
    assert_eq!(
        (&run["requests"], &run["failed"], &run["arrivals"]),
        (&30.into(), &0.into(), &"burst:30".into())
    );
    assert_eq!(run["as_recorded"], 1.0, "recorded lengths are replayed");
    assert!(target.most_in_flight() > 20, "nobody waits for an answer before sending");
    assert_eq!(target.hints(), 0, "a foreign server gets no extension");
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
    let state = FakeState { refuses: Some("number 3"), cuts: Some("number 5"), ..FakeState::default() };
    let target = Target::new(state, &trace(10));
    let out = target.dir.path().join("result.json");
    let args = target.args(&["--arrivals", "burst:10", "--out", out.to_str().unwrap()]);
    let output = common::run(target.dir.path(), &args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("2 of 10 requests FAILED"), "{text}");
    assert!(text.contains("HTTP 400: this prompt is too long") && text.contains("broke off"), "{text}");
    let result: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert_eq!((&result["runs"][0]["failed"], &result["runs"][0]["requests"]), (&2.into(), &10.into()));
}

#[test]
fn arrivals_do_not_wait_for_answers_and_repeat_with_their_seed() {
    let target = Target::with_token_time(Duration::from_millis(20), FakeState::default(), &trace(50));
    let arrivals = ["--arrivals", "poisson:40", "--duration-s", "0.5", "--lengths", "free", "--seed", "3"];
    let (first, again) = (target.bench(&arrivals), target.bench(&arrivals));
    assert_eq!(first["runs"][0]["requests"], again["runs"][0]["requests"]);
    assert_eq!(first["runs"][0]["output_tokens"], again["runs"][0]["output_tokens"]);
    assert!(target.most_in_flight() >= 3);
}

#[test]
fn each_repeat_has_a_seed_of_its_own_for_sampling_too() {
    let target = Target::new(FakeState::default(), &trace(20));
    let result = target.bench(&["--arrivals", "burst:2", "--seed", "5", "--repeats", "3"]);
    let seeds: Vec<&Value> = result["runs"].as_array().unwrap().iter().map(|run| &run["seed"]).collect();
    assert_eq!(seeds, [5, 6, 7]);
    assert_eq!(target.asked("/seed"), [5, 5, 6, 6, 7, 7]);
}

#[test]
fn a_trace_is_replayed_in_its_own_order_and_rhythm() {
    let line = |prompt: &str, arrival_s: f64| {
        format!("{{\"prompt\": \"{prompt}\", \"output_tokens\": 1, \"arrival_s\": {arrival_s}}}\n")
    };
    // A log is written when answers end, not when requests come.
    let log = line("c", 1000.6) + &line("a", 1000.0) + &line("d", 1001.2) + &line("b", 1000.3);
    let target = Target::new(FakeState::default(), &log);
    let result = target.bench(&["--arrivals", "trace", "--rate", "10"]);
    assert_eq!(target.asked("/messages/0/content"), ["a", "b", "c", "d"]);
    let run = &result["runs"][0];
    assert_eq!((&run["arrivals"], &run["requests"], &run["failed"]), (&"trace".into(), &4.into(), &0.into()));
    // Three gaps at ten a second instead of 1.2 s.
    let span_s = 4.0 / run["offered_per_s"].as_f64().unwrap();
    assert!((span_s - 0.3).abs() < 1e-6 && run["duration_s"].as_f64() >= Some(0.3), "{run}");
    assert_eq!(target.bench(&["--arrivals", "trace", "--duration-s", "0.4"])["runs"][0]["requests"], 2);
    assert_eq!(
        target.bench(&["--arrivals", "trace", "--requests", "3", "--rate", "50"])["runs"][0]["requests"],
        3
    );
}

#[test]
fn a_record_without_arrival_is_named_with_file_and_line() {
    let lines = "{\"prompt\": \"a\", \"output_tokens\": 1, \"arrival_s\": 3}\n\n{\"prompt\": \"b\", \"output_tokens\": 1}\n";
    let target = Target::new(FakeState::default(), lines);
    let (code, text) = fails(target.dir.path(), &target.args(&["--arrivals", "trace"]));
    assert!(code == 1 && text.contains("t.jsonl:3: has no `arrival_s`"), "{code} {text}");
    assert_eq!(target.server.state.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn one_at_a_time_means_one_at_a_time() {
    let target = Target::new(FakeState::default(), &trace(8));
    assert_eq!(target.bench(&["--arrivals", "serial:8"])["runs"][0]["requests"], 8);
    assert_eq!(target.most_in_flight(), 1);
}

#[test]
fn only_held_out_prompts_are_sent_when_asked_and_hints_only_when_asked() {
    let target = Target::new(FakeState::default(), &trace(60));
    let result = target.bench(&["--arrivals", "burst:5", "--held-out", "--outrank-hints"]);
    assert_eq!(result["runs"][0]["failed"], 0);
    assert_eq!(target.hints(), 5);
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
        (&["--policies", "fcfs,lottery", "--arrivals", "burst:1"], "no policy is called \"lottery\""),
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
    let args = ["bench", "--url", "http://127.0.0.1:9", "--trace", &trace, "--arrivals", "burst:1"];
    let (code, text) = fails(dir.path(), &args);
    assert!(code == 1 && text.contains("127.0.0.1:9") && text.to_lowercase().contains("refused"), "{text}");
}
