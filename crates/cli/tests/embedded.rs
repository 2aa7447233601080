//! The binary with the real model: it serves, drains, compares policies and collects.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{file, json, model, outrank, trace};

/// A small and quick engine: other tests may have the cores.
const SMALL: [&str; 6] = ["--seats", "4", "--context", "512", "--threads", "1"];

fn serve(dir: &Path, extra: &[&str]) -> Child {
    let model = model();
    let args = [&["serve", "--json", "--model", model.to_str().unwrap()][..], &SMALL, extra].concat();
    outrank(dir, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The URL and the model name of a server, once it is ready.
fn ready(server: &mut Child) -> (String, String) {
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).expect("a ready line");
    (ready["url"].as_str().unwrap().into(), ready["model"].as_str().unwrap().into())
}

#[test]
fn a_server_answers_refuses_a_taken_port_and_leaves_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), &["--port", "0"]);
    let (url, _) = ready(&mut server);
    let prompts = file(dir.path(), "p.jsonl", "{\"prompt\": \"What is the capital of France?\"}\n");
    let args = [
        "trace",
        "collect",
        &prompts,
        "--url",
        &url,
        "--out",
        "t.jsonl",
        "--temperature",
        "0",
        "--max-tokens",
        "8",
    ];
    let report = json(dir.path(), &args);
    assert_eq!(report["sampled"], 1);

    let port = url.rsplit(':').next().unwrap();
    let mut second = serve(dir.path(), &["--port", port]);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    let mut text = String::new();
    second.stderr.unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("in use") && text.matches("error").count() == 1, "said once: {text}");

    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(server.wait().unwrap().code(), Some(0), "a drained server ends in success");
}

#[test]
fn policies_are_compared_on_the_same_requests_and_nobody_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (model, trace) = (model(), file(dir.path(), "t.jsonl", &trace(12)));
    let policies = "fcfs,ltr,outrank,oracle-sjf,oracle-srtf";
    let args = [
        "bench",
        "--policies",
        policies,
        "--trace",
        &trace,
        "--arrivals",
        "burst:12",
        "--warm-up",
        "2",
        "--no-ranker",
        "--step-log",
        "steps.jsonl",
    ];
    let result = json(dir.path(), &[&args[..], &["--model", model.to_str().unwrap()], &SMALL].concat());
    let runs = result["runs"].as_array().unwrap();
    assert_eq!(
        runs.iter().map(|run| run["policy"].as_str().unwrap()).collect::<Vec<_>>().join(","),
        policies
    );
    for run in runs {
        assert_eq!((&run["failed"], &run["as_recorded"]), (&0.into(), &1.0.into()), "{run}");
        assert_eq!(run["output_tokens"], runs[0]["output_tokens"]);
    }
    let steps = std::fs::read_to_string(dir.path().join("steps.jsonl")).unwrap();
    let mut logged: Vec<String> = steps
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|step| step["policy"].as_str().unwrap().to_owned())
        .collect();
    logged.dedup();
    assert_eq!(logged.join(","), policies, "the steps of all engines, one after the other");
}

#[test]
fn load_is_relative_to_the_measured_capacity_and_one_at_a_time_alternates() {
    let dir = tempfile::tempdir().unwrap();
    let (model, trace) = (model(), file(dir.path(), "t.jsonl", &trace(30)));
    let bench = |extra: &[&str]| {
        let args =
            ["bench", "--trace", &trace, "--model", model.to_str().unwrap(), "--warm-up", "2", "--no-ranker"];
        json(dir.path(), &[&args[..], &SMALL, extra].concat())
    };
    let result = bench(&["--policies", "fcfs", "--arrivals", "load:0.5", "--requests", "6"]);
    let capacity = result["capacity_per_s"].as_f64().unwrap();
    assert!(
        capacity > 0.0 && result["runs"][0]["load"] == 0.5 && result["runs"][0]["failed"] == 0,
        "{result}"
    );
    let result = bench(&["--policies", "fcfs,outrank", "--arrivals", "serial:3"]);
    assert!(
        result["runs"].as_array().unwrap().iter().all(|run| run["requests"] == 3 && run["failed"] == 0),
        "{result}"
    );
}

#[test]
fn tokens_are_counted_by_the_models_own_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let input =
        file(dir.path(), "t.jsonl", "{\"prompt\": \"Hello world\", \"generated\": \"Hello world\"}\n");
    let args = ["trace", "count", &input, "--out", "c.jsonl", "--tokenizer", model.to_str().unwrap()];
    assert_eq!(json(dir.path(), &args)["counted_answers"], 1);
    let record = std::fs::read_to_string(dir.path().join("c.jsonl")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!((&record["prompt_tokens"], &record["output_tokens"]), (&2.into(), &2.into()));
    assert_eq!(record["generated"], "Hello world", "count keeps the text");
}
