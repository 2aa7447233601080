//! The page as a whole.

use outrank_sim::{Answer, Metrics, TimelinePoint, by_length};

use super::render;
use crate::simulate::Report;
use crate::simulate::run::{Facts, Run};

/// A run of `n` requests whose latencies are `scale` times their length.
fn a_run(policy: &str, load: Option<f64>, seed: u64, n: usize, scale: f64) -> Run {
    let answer = |index: usize| {
        let e2e_s = scale * (index + 1) as f64;
        let output_tokens = index as u32 + 1;
        Answer { index, output_tokens, ttft_s: e2e_s / 2.0, e2e_s, ..Answer::default() }
    };
    let answers: Vec<Answer> = (0..n).map(answer).collect();
    let point = |at: usize| TimelinePoint { at_s: at as f64 * scale, waiting: n - at, running: at };
    Run {
        facts: Facts {
            policy: policy.into(),
            profile: "engine".into(),
            arrivals: load.map_or("burst:9".into(), |load| format!("load:{load}")),
            load,
            offered_per_s: None,
            seed,
        },
        requests: n,
        duration_s: 0.0,
        busy_s: 0.0,
        prompt_tokens: 0,
        output_tokens: 0,
        tokens_per_s: 0.0,
        requests_per_s: 0.0,
        goodput_per_s: None,
        within_slo: None,
        first_answers_s: None,
        answered_within: None,
        tau_b: Some(0.5),
        distrusted_s: 0.0,
        trust_changes: Vec::new(),
        steps: 0,
        overtakes: 0,
        promotions: 0,
        preemptions: 0,
        recomputed_tokens: 0,
        metrics: Metrics::of(&answers),
        by_length_decile: by_length(&answers, 10),
        timeline: (0..n).map(point).collect(),
        answers,
    }
}

fn page(runs: Vec<Run>) -> String {
    let report = Report { capacity_per_s: vec![("engine".into(), 2.0)], runs };
    render(&vec![("Traces", "a<b>.jsonl".into())], &report)
}

/// The charts of a page, each of which must be well-formed and without numbers that are none.
fn charts(page: &str) -> Vec<&str> {
    let svgs: Vec<&str> =
        page.split("<svg ").skip(1).map(|rest| rest.split_once("</svg>").expect("an svg ends").0).collect();
    for svg in &svgs {
        let text = format!("<svg {svg}</svg>");
        roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
    svgs.into_iter().filter(|svg| svg.contains("role=\"img\"")).collect()
}

#[test]
fn every_case_has_each_chart_once_with_every_policy() {
    let policies = ["fcfs", "outrank:steepness=3", "oracle-sjf"];
    let loads = [Some(0.5), Some(1.1), None];
    let runs = loads.iter().flat_map(|&load| {
        policies.iter().flat_map(move |policy| (1..=2).map(move |seed| a_run(policy, load, seed, 40, 0.1)))
    });
    let page = page(runs.collect());
    let charts = charts(&page);
    for case in ["engine, load:0.5", "engine, load:1.1", "engine, burst:9"] {
        let of_case: Vec<&&str> = charts.iter().filter(|svg| svg.contains(&format!(": {case}\""))).collect();
        assert_eq!(of_case.len(), 6, "{case}");
        let titles =
            ["E2E latency:", "s/token:", "TTFT:", "by length:", "Waiting requests", "Running requests"];
        for title in titles {
            assert_eq!(of_case.iter().filter(|svg| svg.contains(title)).count(), 1, "{case} {title}");
        }
    }
    assert_eq!(charts.iter().filter(|svg| svg.contains("against load: engine, Poisson")).count(), 2);
    for policy in policies {
        assert!(charts.iter().all(|svg| svg.contains(&format!("<title>{policy}</title>"))), "{policy}");
        assert_eq!(page.matches(&format!("{policy}</th>")).count(), loads.len(), "{policy}");
    }
}

#[test]
fn nothing_is_fetched_and_nothing_runs() {
    let page = page(vec![a_run("fcfs", None, 1, 9, 0.1)]);
    for word in ["http:", "https:", "<script", "<link", "@import", "url(", "src="] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn text_from_outside_is_escaped() {
    let page = page(vec![a_run("a<b>&\"c'", None, 1, 9, 0.1)]);
    charts(&page);
    assert!(page.contains("a&lt;b&gt;&amp;&quot;c&#39;</th>") && page.contains("a&lt;b&gt;.jsonl"));
    assert!(!page.contains("a<b>"));
}

#[test]
fn one_policy_one_request_and_no_latency_are_drawn_too() {
    for (n, scale) in [(1, 0.1), (1, 0.0), (9, 0.0), (0, 0.0)] {
        let loads = [Some(0.5), Some(1.1)];
        let page = page(loads.map(|load| a_run("fcfs", load, 1, n, scale)).into());
        assert_eq!(charts(&page).len(), 2 * 6 + 2, "{n} {scale}");
        assert!(!page.contains("NaN"), "{n} {scale}");
    }
}

#[test]
fn what_got_worse_has_a_sign() {
    let runs = [("fcfs", 0.1), ("slow", 0.11), ("even", 0.1), ("fast", 0.05)];
    let page = page(runs.map(|(policy, scale)| a_run(policy, None, 1, 9, scale)).into());
    let row = |policy: &str| {
        let at = page.find(&format!("{policy}</th>")).expect("a row");
        page[at..].split_once("</tr>").expect("its end").0
    };
    assert_eq!(row("slow").matches('▲').count(), 6);
    assert_eq!(row("fast").matches('▽').count(), 6);
    assert!(row("slow").contains("1.100") && !row("even").contains(['▲', '▽']));
}

#[test]
fn a_long_run_gives_a_small_page() {
    let policies = ["a", "b", "c", "d", "e", "f"];
    let runs = [0.5, 0.8, 0.95, 1.1, 1.5].into_iter();
    let runs = runs.flat_map(|load| policies.map(|policy| a_run(policy, Some(load), 1, 500, 0.1)));
    let size = page(runs.collect()).len();
    assert!(size < 2_000_000, "{size} bytes");
}
