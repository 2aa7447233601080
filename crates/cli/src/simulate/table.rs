//! The results for people: every policy beside the first, case by case.

use outrank_core::Summary;
use outrank_sim::Metrics;

use crate::output::{Table, maybe, number};
use crate::simulate::cases::{CaseRuns, by_case, mean, ratio};
use crate::simulate::run::Run;

/// The whole report.
pub(crate) fn render(runs: &[Run]) -> String {
    by_case(runs).iter().map(case).collect()
}

fn case(case: &CaseRuns<'_>) -> String {
    let mut table = Table::new([
        "", "s/token", "ratio", "p99", "TTFT", "ratio", "p99", "ratio", "E2E", "ratio", "p99", "ratio",
        "tokens/s", "preempt.",
    ]);
    for (policy, runs) in &case.policies {
        table.row(row(policy, runs, case.first()));
    }
    let heading = format!("{}: {}; ratios to {}", case.name(), case.size(), case.baseline());
    format!("\n{heading}\n\n{}", table.render())
}

fn row(policy: &str, runs: &[&Run], first: &[&Run]) -> Vec<String> {
    let mut cells = vec![policy.to_owned()];
    let mut metric = |of: fn(&Metrics) -> Option<Summary>, p99_ratio: bool| {
        let middle = |run: &Run| of(&run.metrics).map(|s| s.mean);
        let p99 = |run: &Run| of(&run.metrics).map(|s| s.p99);
        let ratio_text = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
        cells.extend([
            maybe(mean(runs, middle)),
            ratio_text(ratio(runs, first, middle)),
            maybe(mean(runs, p99)),
        ]);
        if p99_ratio {
            cells.push(ratio_text(ratio(runs, first, p99)));
        }
    };
    metric(|m| m.s_per_token, false);
    metric(|m| m.ttft_s, true);
    metric(|m| m.e2e_s, true);
    cells.push(maybe(mean(runs, |run| Some(run.tokens_per_s))));
    cells.push(mean(runs, |run| Some(run.preemptions as f64)).map_or_else(|| "-".into(), number));
    cells
}
