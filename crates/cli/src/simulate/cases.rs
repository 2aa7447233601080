//! Runs, grouped by what their policies have in common: the case.

use crate::output::plural;
use crate::simulate::run::Run;

/// The runs of one case: the same requests, seed by seed, under every policy.
#[derive(Debug, Clone)]
pub(crate) struct CaseRuns<'a> {
    pub(crate) profile: &'a str,
    pub(crate) arrivals: &'a str,
    pub(crate) load: Option<f64>,
    /// Every policy with its runs, one a seed, in the order of the command line.
    pub(crate) policies: Vec<(&'a str, Vec<&'a Run>)>,
}

/// The cases of `runs`, in their order.
pub(crate) fn by_case(runs: &[Run]) -> Vec<CaseRuns<'_>> {
    let mut cases: Vec<CaseRuns<'_>> = Vec::new();
    for run in runs {
        let facts = &run.facts;
        let at = cases.iter().position(|case| {
            case.profile == facts.profile && case.arrivals == facts.arrivals && case.load == facts.load
        });
        let at = at.unwrap_or_else(|| {
            cases.push(CaseRuns {
                profile: &facts.profile,
                arrivals: &facts.arrivals,
                load: facts.load,
                policies: Vec::new(),
            });
            cases.len() - 1
        });
        let policies = &mut cases[at].policies;
        match policies.iter_mut().find(|(policy, _)| *policy == facts.policy) {
            Some((_, runs)) => runs.push(run),
            None => policies.push((&facts.policy, vec![run])),
        }
    }
    cases
}

impl<'a> CaseRuns<'a> {
    /// Profile, arrivals and load.
    pub(crate) fn name(&self) -> String {
        // `load:0.8` says it already.
        let load = self.load.filter(|_| !self.arrivals.starts_with("load:"));
        let load = load.map(|load| format!(" at {load} of capacity")).unwrap_or_default();
        format!("{}, {}{load}", self.profile, self.arrivals)
    }

    /// How many requests and seeds, and how well the order was predicted.
    pub(crate) fn size(&self) -> String {
        let first = self.first();
        let tau_b = mean(first, |run| run.tau_b).map(|tau_b| format!(", tau-b {tau_b:.3}"));
        format!(
            "{}, mean of {}{}",
            plural(first.first().map_or(0, |run| run.requests), "request"),
            plural(first.len(), "seed"),
            tau_b.unwrap_or_default()
        )
    }

    /// The policy that the others are compared with.
    pub(crate) fn baseline(&self) -> &'a str {
        self.policies.first().map_or("", |(policy, _)| policy)
    }

    /// The runs of [`Self::baseline`].
    pub(crate) fn first(&self) -> &[&'a Run] {
        self.policies.first().map_or(&[], |(_, runs)| runs)
    }
}

/// Mean over the seeds, of those that have the figure.
pub(crate) fn mean(runs: &[&Run], figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    mean_of(runs.iter().filter_map(|run| figure(run)))
}

/// Mean over the seeds of the ratio to the first policy on the same seed.
pub(crate) fn ratio(runs: &[&Run], first: &[&Run], figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let pairs = runs.iter().zip(first);
    let ratios = pairs.filter_map(|(here, there)| Some(figure(here)? / figure(there)?));
    mean_of(ratios.filter(|ratio| ratio.is_finite()))
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0, 0.0), |(n, sum), value| (n + 1, sum + value));
    (n > 0).then(|| sum / f64::from(n))
}
