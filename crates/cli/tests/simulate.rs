//! `outrank simulate` through the binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use common::{fails, file, json, trace};

#[test]
fn a_report_is_the_same_page_for_the_same_command_and_is_refused_before_the_work_where_it_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(60));
    let run = |report: &str| {
        let command = ["simulate", "--trace", &trace, "--arrivals", "load:0.8", "--arrivals", "load:1.2"];
        let more = ["--duration-s", "5", "--policies", "fcfs,outrank", "--seeds", "2", "--report"];
        [&command[..], &more, &[report]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let pages = ["a.html", "b.html"].map(|name| {
        let args = run(name);
        json(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
        std::fs::read_to_string(dir.path().join(name)).unwrap()
    });
    assert_eq!(pages[0], pages[1]);
    assert!(pages[0].contains("t.jsonl") && pages[0].contains("Latency against load"));
    assert!(!pages[0].contains(dir.path().to_str().unwrap()), "a page names no folder of the machine");
    let args = run(".");
    let (code, text) = fails(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(code == 2 && text.contains("is a folder"), "{text}");
}

#[test]
fn a_ranker_that_turns_round_is_left_alone_until_it_turns_back_and_every_arrival_is_told_when_it_will_end() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(400));
    json(dir.path(), &["train", "--trace", &trace, "--out", "r.outrank", "--prior", "none"]);
    let simulate = |scores: &str| {
        let command = [
            "simulate",
            "--trace",
            &trace,
            "--ranker",
            "r.outrank",
            "--arrivals",
            "load:1.0",
            "--seats",
            "8",
        ];
        let more =
            ["--duration-s", "1200", "--policies", "outrank", "--profile", "cpu-smollm2", "--scores", scores];
        json(dir.path(), &[&command[..], &more].concat())["runs"][0].clone()
    };
    let steady = simulate("ranker");
    assert_eq!(steady["trust_changes"].as_array().unwrap().len(), 0, "{steady}");
    assert!(steady["metrics"]["eta_error_s"]["p50"].as_f64().unwrap() > 0.0);
    let drifting = simulate("flipped:400:800");
    let changes = drifting["trust_changes"].as_array().unwrap();
    let at =
        |index: usize| (changes[index]["at_s"].as_f64().unwrap(), changes[index]["trust"].as_str().unwrap());
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(
        at(0).0 > 400.0 && at(0).1 == "distrusted" && at(1).0 > 800.0 && at(1).1 == "trusted",
        "{changes:?}"
    );
    let (code, text) = fails(
        dir.path(),
        &[
            "simulate",
            "--trace",
            &trace,
            "--arrivals",
            "burst:9",
            "--policies",
            "fcfs",
            "--scores",
            "flipped:9:3",
        ],
    );
    assert!(code == 2 && text.contains("FROM below TO"), "{text}");
}

#[test]
fn a_journal_is_replayed_with_its_own_arrivals_and_predictions() {
    let dir = tempfile::tempdir().unwrap();
    let line = |nth: usize| {
        let tokens = if nth.is_multiple_of(3) { 900 } else { 12 };
        let mut line = serde_json::json!({
            "prompt": "", "arrival_s": 1.8e9 + nth as f64 * 0.001, "prompt_tokens": 20, "output_tokens": tokens,
            "truncated": false, "model": "m", "class": "default", "outcome": "completed", "e2e_s": 1.0,
        });
        // One that was not scored.
        if nth > 0 {
            line["score"] = tokens.into();
            line["spread"] = 0.3.into();
        }
        format!("{line}\n")
    };
    let journal = file(dir.path(), "j.jsonl", &(0..300).map(line).collect::<String>());
    let run = [
        "simulate",
        "--from-journal",
        &journal,
        "--policies",
        "fcfs,outrank",
        "--profile",
        "h200-llama3-8b",
        "--seats",
        "4",
    ];
    let report = json(dir.path(), &run);
    let runs = report["runs"].as_array().unwrap();
    let mean = |nth: usize| runs[nth]["metrics"]["s_per_token"]["mean"].as_f64().unwrap();
    assert_eq!(runs[0]["requests"], 300);
    assert!(mean(1) < 0.7 * mean(0), "short answers first: {} against {}", mean(1), mean(0));
    let (code, text) = fails(
        dir.path(),
        &["simulate", "--from-journal", &journal, "--policies", "fcfs", "--arrivals", "burst:3"],
    );
    assert!(code == 2 && text.contains("--arrivals"), "{text}");
}

#[test]
fn a_ranker_learns_during_a_run_from_who_ended_and_from_who_runs() {
    let dir = tempfile::tempdir().unwrap();
    let trace = file(dir.path(), "t.jsonl", &trace(400));
    let simulate = |more: &[&str]| {
        let command = ["simulate", "--trace", &trace, "--arrivals", "load:1.2", "--seats", "8"];
        let policy = ["--duration-s", "60", "--policies", "outrank", "--profile", "cpu-smollm2"];
        [&command[..], &policy, more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let means = [&[][..], &["--learn", "ended"], &["--learn", "running"]].map(|more| {
        let args = simulate(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let [once, again] = [0, 1].map(|_| json(dir.path(), &args)["runs"][0]["metrics"].clone());
        assert_eq!(once, again, "a run is a function of its inputs");
        once["s_per_token"]["mean"].as_f64().unwrap()
    });
    assert!(
        means[1] < means[0] && means[2] < means[0],
        "what the trace's own model answers is learned: {means:?}"
    );
    let args = simulate(&["--learn", "ended", "--scores", "none"]);
    let (code, text) = fails(dir.path(), &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(code == 2 && text.contains("--learn"), "{text}");
}
