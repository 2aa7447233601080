//! Latency against load, where the same traffic came at several loads.

use outrank_core::Summary;

use super::charts::Titled;
use super::scale::Scale;
use super::svg::{Axis, Chart, Line};
use crate::simulate::cases::CaseRuns;
use crate::simulate::run::Run;

/// The cases of one profile and kind of arrivals that differ by load, lightest first.
pub(super) struct Loads<'a> {
    /// Profile and arrivals.
    pub(super) name: String,
    cases: Vec<(f64, &'a CaseRuns<'a>)>,
}

/// Every profile and kind of arrivals with at least two loads.
pub(super) fn of_cases<'a>(cases: &'a [CaseRuns<'a>]) -> Vec<Loads<'a>> {
    let mut groups: Vec<Loads<'a>> = Vec::new();
    for case in cases {
        let Some(load) = case.load else { continue };
        // `load:0.8` and `load:1.1` are the same kind.
        let arrivals = if case.arrivals.starts_with("load:") { "Poisson arrivals" } else { case.arrivals };
        let name = format!("{}, {arrivals}", case.profile);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.cases.push((load, case)),
            None => groups.push(Loads { name, cases: vec![(load, case)] }),
        }
    }
    groups.retain(|group| group.cases.len() > 1);
    for group in &mut groups {
        group.cases.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    groups
}

impl Loads<'_> {
    /// The charts.
    pub(super) fn charts(&self) -> Vec<Titled> {
        vec![
            self.chart("mean E2E latency per output token (s)", "Mean s/token against load", |run| {
                run.metrics.s_per_token.map(|Summary { mean, .. }| mean)
            }),
            self.chart("p99 of the time to first token (s)", "p99 of TTFT against load", |run| {
                run.metrics.ttft_s.map(|Summary { p99, .. }| p99)
            }),
        ]
    }

    /// The policies, in the order of the lines.
    pub(super) fn policies(&self) -> impl Iterator<Item = &str> {
        self.cases.first().into_iter().flat_map(|(_, case)| &case.policies).map(|(policy, _)| *policy)
    }

    fn chart(&self, unit: &str, title: &'static str, figure: fn(&Run) -> Option<f64>) -> Titled {
        let lines: Vec<Line> = self.policies().map(|policy| self.line(policy, figure)).collect();
        let ends = lines.iter().flat_map(|line| &line.ranges).flat_map(|&(low, high)| [low, high]);
        let y = Axis::new(unit, Scale::log(ends));
        let loads = || self.cases.iter().map(|&(load, _)| load);
        let mut x = Axis::new("load (fraction of capacity)", Scale::around(loads()));
        x.ticks = loads().map(|load| (load, load.to_string())).collect();
        (title, Chart { about: format!("{title}: {}", self.name), x, y, lines })
    }

    /// The mean over the seeds at each load, from the smallest to the largest of them.
    fn line(&self, policy: &str, figure: fn(&Run) -> Option<f64>) -> Line {
        let mut line = Line { name: policy.to_owned(), points: Vec::new(), ranges: Vec::new() };
        for (load, case) in &self.cases {
            let runs = case.policies.iter().filter(|(name, _)| *name == policy).flat_map(|(_, runs)| runs);
            let values: Vec<f64> = runs.filter_map(|run| figure(run)).filter(|it| it.is_finite()).collect();
            if !values.is_empty() {
                line.points.push((*load, values.iter().sum::<f64>() / values.len() as f64));
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                line.ranges.push((low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)));
            }
        }
        line
    }
}
