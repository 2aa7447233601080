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
