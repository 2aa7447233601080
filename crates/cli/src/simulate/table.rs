//! The results for people: every policy beside the first, case by case.

use std::collections::BTreeMap;

use outrank_core::Summary;
use outrank_sim::Metrics;

use crate::output::{Table, maybe, number, plural};
use crate::simulate::run::Run;

/// A case: profile, arrivals, load as text.
type CaseName = (String, String, String);

/// The whole report.
pub(crate) fn render(runs: &[Run]) -> String {
    let mut cases: Vec<(CaseName, Vec<&Run>)> = Vec::new();
    for run in runs {
        let load = run.facts.load.map(|load| format!("{load}")).unwrap_or_default();
        let name = (run.facts.profile.clone(), run.facts.arrivals.clone(), load);
        match cases.iter_mut().find(|(other, _)| *other == name) {
            Some((_, runs)) => runs.push(run),
            None => cases.push((name, vec![run])),
        }
    }
    cases.iter().map(|(name, runs)| case(name, runs)).collect()
}

fn case(name: &CaseName, runs: &[&Run]) -> String {
    let mut policies: Vec<&str> = Vec::new();
    for run in runs {
        if !policies.contains(&run.facts.policy.as_str()) {
            policies.push(&run.facts.policy);
        }
    }
    let by_policy: BTreeMap<&str, Vec<&Run>> = policies
        .iter()
        .map(|&policy| (policy, runs.iter().copied().filter(|run| run.facts.policy == policy).collect()))
        .collect();
    let first = &by_policy[policies[0]];
    let tau_b = mean(first, |run| run.tau_b).map(|tau_b| format!(", tau-b {tau_b:.3}")).unwrap_or_default();
    let load = if name.2.is_empty() { String::new() } else { format!(" at {} of capacity", name.2) };
    let mut text = format!(
        "\n{}, {}{load}: {}, mean of {}{tau_b}; ratios to {}\n\n",
        name.0,
        name.1,
        plural(first[0].requests, "request"),
        plural(first.len(), "seed"),
        policies[0],
    );
    let mut table = Table::new([
        "", "s/token", "ratio", "p99", "TTFT", "ratio", "p99", "ratio", "E2E", "ratio", "p99", "ratio",
        "tokens/s", "preempt.",
    ]);
    for policy in &policies {
        table.row(row(policy, &by_policy[policy], first));
    }
    text.push_str(&table.render());
    text
}

fn row(policy: &str, runs: &[&Run], first: &[&Run]) -> Vec<String> {
    let figure = |pick: &dyn Fn(&Metrics) -> Option<f64>| mean(runs, |run| pick(&run.metrics));
    let ratio = |pick: &dyn Fn(&Metrics) -> Option<f64>| ratio(runs, first, pick);
    let mut cells = vec![policy.to_owned()];
    let mut metric = |of: fn(&Metrics) -> Option<Summary>, p99_ratio: bool| {
        let (mean, p99) = (|m: &Metrics| of(m).map(|s| s.mean), |m: &Metrics| of(m).map(|s| s.p99));
        cells.extend([maybe(figure(&mean)), ratio(&mean), maybe(figure(&p99))]);
        if p99_ratio {
            cells.push(ratio(&p99));
        }
    };
    metric(|m| m.s_per_token, false);
    metric(|m| m.ttft_s, true);
    metric(|m| m.e2e_s, true);
    cells.push(maybe(mean(runs, |run| Some(run.tokens_per_s))));
    cells.push(mean(runs, |run| Some(run.preemptions as f64)).map_or_else(|| "-".into(), number));
    cells
}

fn mean(runs: &[&Run], figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = runs.iter().filter_map(|run| figure(run)).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Mean over the seeds of the ratio to the first policy on the same seed.
fn ratio(runs: &[&Run], first: &[&Run], pick: &dyn Fn(&Metrics) -> Option<f64>) -> String {
    let pairs = runs.iter().zip(first);
    let ratios: Vec<f64> = pairs
        .filter_map(|(here, there)| Some(pick(&here.metrics)? / pick(&there.metrics)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    if ratios.is_empty() {
        return "-".into();
    }
    format!("{:.3}", ratios.iter().sum::<f64>() / ratios.len() as f64)
}
