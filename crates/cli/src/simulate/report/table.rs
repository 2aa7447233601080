//! The figures of a case as an HTML table.

use std::fmt::Write;

use outrank_core::Summary;
use outrank_sim::Metrics;

use super::svg::{escape, swatch};
use crate::output::{maybe, number};
use crate::simulate::cases::{CaseRuns, mean, ratio};
use crate::simulate::run::Run;

/// Ratios beyond these are marked as worse and as better.
const WORSE: f64 = 1.02;
const BETTER: f64 = 0.98;

/// A latency and its name.
type Latency = (&'static str, fn(&Metrics) -> Option<Summary>);

const LATENCIES: [Latency; 3] =
    [("s/token", |m| m.s_per_token), ("TTFT (s)", |m| m.ttft_s), ("E2E (s)", |m| m.e2e_s)];

/// A figure of a run and its name.
type Figure = (&'static str, fn(&Run) -> Option<f64>);

/// Of these, those that the runs have are shown.
const FIGURES: [Figure; 6] = [
    ("tokens/s", |run| Some(run.tokens_per_s)),
    ("preemptions", |run| Some(run.preemptions as f64)),
    ("goodput (1/s)", |run| run.goodput_per_s),
    ("within SLO", |run| run.within_slo),
    ("first answers (s)", |run| run.first_answers_s),
    ("answered in time", |run| run.answered_within.map(|n| n as f64)),
];

/// The table of a case.
pub(super) fn html(case: &CaseRuns<'_>) -> String {
    let figures: Vec<Figure> = FIGURES
        .into_iter()
        .filter(|(_, figure)| case.first().iter().any(|run| figure(run).is_some()))
        .collect();
    let mut html = String::from(
        "<div class=\"wide\" tabindex=\"0\"><table><thead><tr><th rowspan=\"2\" scope=\"col\">policy</th>",
    );
    for (name, _) in LATENCIES {
        let _ = write!(html, "<th colspan=\"4\" scope=\"colgroup\">{name}</th>");
    }
    for (name, _) in &figures {
        let _ = write!(html, "<th rowspan=\"2\" scope=\"col\">{name}</th>");
    }
    html.push_str("</tr><tr>");
    for _ in LATENCIES {
        for name in ["mean", "ratio", "p99", "ratio"] {
            let _ = write!(html, "<th scope=\"col\">{name}</th>");
        }
    }
    html.push_str("</tr></thead><tbody>\n");
    for (index, (policy, runs)) in case.policies.iter().enumerate() {
        let _ = write!(html, "<tr><th scope=\"row\">{}{}</th>", swatch(index), escape(policy));
        for (_, latency) in LATENCIES {
            for pick in [|s: Summary| s.mean, |s: Summary| s.p99] {
                let figure = |run: &Run| latency(&run.metrics).map(pick);
                let _ = write!(html, "<td>{}</td>", maybe(mean(runs, figure)));
                html.push_str(&ratio_cell(index, ratio(runs, case.first(), figure)));
            }
        }
        for (_, figure) in &figures {
            let _ = write!(html, "<td>{}</td>", mean(runs, figure).map_or_else(|| "-".into(), count));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// [`number`], with nothing behind a zero.
fn count(value: f64) -> String {
    if value == 0.0 { "0".into() } else { number(value) }
}

/// A ratio of latencies, marked in colour and by a sign where it is no tie.
fn ratio_cell(index: usize, ratio: Option<f64>) -> String {
    match ratio {
        // The first policy, to itself.
        Some(_) if index == 0 => "<td class=\"ratio\">1</td>".into(),
        None => "<td class=\"ratio\">-</td>".into(),
        Some(ratio) if ratio > WORSE => {
            format!(
                "<td class=\"ratio worse\">{ratio:.3}<span role=\"img\" aria-label=\"worse\">▲</span></td>"
            )
        }
        Some(ratio) if ratio < BETTER => {
            format!(
                "<td class=\"ratio better\">{ratio:.3}<span role=\"img\" aria-label=\"better\">▽</span></td>"
            )
        }
        Some(ratio) => format!("<td class=\"ratio\">{ratio:.3}</td>"),
    }
}
