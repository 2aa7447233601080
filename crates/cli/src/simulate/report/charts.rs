//! Which charts a case has, and what they show.

use outrank_sim::{Answer, TimelinePoint, by_length};

use super::scale::Scale;
use super::svg::{Axis, Chart, Line};
use crate::simulate::cases::CaseRuns;
use crate::simulate::run::Run;

/// Points of a line of a distribution, at most.
const MAX_CDF_POINTS: usize = 300;

/// A chart with its title.
pub(super) type Titled = (&'static str, Chart);

/// The charts of one case.
pub(super) fn of_case(case: &CaseRuns<'_>) -> Vec<Titled> {
    vec![
        cdf(case, "E2E latency (s)", "Distribution of E2E latency", |it| it.e2e_s),
        cdf(case, "E2E latency per output token (s)", "Distribution of s/token", Answer::s_per_token),
        cdf(case, "time to first token (s)", "Distribution of TTFT", |it| it.ttft_s),
        deciles(case),
        timeline(case, "requests waiting", "Waiting requests over time (seed 1)", |it| it.waiting),
        timeline(case, "requests running", "Running requests over time (seed 1)", |it| it.running),
    ]
}

fn chart(case: &CaseRuns<'_>, title: &'static str, x: Axis, y: Axis, lines: Vec<Line>) -> Titled {
    (title, Chart { about: format!("{title}: {}", case.name()), x, y, lines })
}

fn lines(case: &CaseRuns<'_>, points: impl Fn(&[&Run]) -> Vec<(f64, f64)>) -> Vec<Line> {
    let finite = |runs: &[&Run]| points(runs).into_iter().filter(|(x, y)| x.is_finite() && y.is_finite());
    let line = |(policy, runs): &(&str, Vec<&Run>)| Line {
        name: (*policy).to_owned(),
        points: finite(runs).collect(),
        ranges: Vec::new(),
    };
    case.policies.iter().map(line).collect()
}

/// Every x, or with `|point| point.1` every y, of some lines.
fn all(lines: &[Line], pick: fn(&(f64, f64)) -> f64) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| &line.points).map(pick)
}

fn cdf(case: &CaseRuns<'_>, unit: &str, title: &'static str, figure: fn(&Answer) -> f64) -> Titled {
    let lines = lines(case, |runs| distribution(pooled(runs).iter().map(figure).collect()));
    let x = Axis::new(unit, Scale::log(all(&lines, |point| point.0)));
    chart(case, title, x, Axis::new("share of requests", Scale::range(0.0, 1.0)), lines)
}

fn pooled(runs: &[&Run]) -> Vec<Answer> {
    runs.iter().flat_map(|run| run.answers.iter().copied()).collect()
}

/// The share of values up to each, thinned evenly; from the smallest at 0 to the largest at 1.
fn distribution(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    let Some(&smallest) = values.first() else { return Vec::new() };
    let steps = values.len().min(MAX_CDF_POINTS - 1);
    let place = |step: usize| {
        let rank = step * values.len() / steps;
        (values[rank - 1], rank as f64 / values.len() as f64)
    };
    std::iter::once((smallest, 0.0)).chain((1..=steps).map(place)).collect()
}

fn deciles(case: &CaseRuns<'_>) -> Titled {
    let groups = by_length(&pooled(case.first()), 10);
    let lines = lines(case, |runs| {
        let groups = by_length(&pooled(runs), 10);
        let means = groups.iter().map(|group| group.e2e_s.map_or(0.0, |summary| summary.mean));
        (1..).map(f64::from).zip(means).collect()
    });
    let mut x = Axis::new(
        "true length of the answer, by decile up to so many tokens",
        Scale::around((1..=groups.len()).map(|decile| decile as f64)),
    );
    x.ticks =
        (1..).map(f64::from).zip(&groups).map(|(at, group)| (at, format!("≤{}", group.tokens[1]))).collect();
    let y = Axis::new("mean E2E latency (s)", Scale::from_zero(all(&lines, |point| point.1)));
    chart(case, "Who pays: E2E latency by length", x, y, lines)
}

fn timeline(
    case: &CaseRuns<'_>,
    unit: &str,
    title: &'static str,
    figure: fn(&TimelinePoint) -> usize,
) -> Titled {
    let lines = lines(case, |runs| {
        let points = runs.first().map_or(&[][..], |run| &run.timeline);
        points.iter().map(|point| (point.at_s, figure(point) as f64)).collect()
    });
    let x = Axis::new("time since the start (s)", Scale::from_zero(all(&lines, |point| point.0)));
    let y = Axis::new(unit, Scale::from_zero(all(&lines, |point| point.1)));
    chart(case, title, x, y, lines)
}
