//! The results for people: every policy beside the first, and what got worse.

use outrank_core::Summary;
use outrank_sim::Group;

use crate::bench::report::Run;
use crate::output::{Table, maybe, number, plural};

/// The policy that knows the true lengths: the other bound in the tables.
const ORACLE: &str = "oracle-sjf";
/// A figure is worse if it grew by more than this factor.
const WORSE: f64 = 1.02;
/// Figures listed as worse, at most.
const MAX_LISTED: usize = 6;

/// The runs of one policy.
struct Policy<'a> {
    name: &'a str,
    runs: Vec<&'a Run>,
}

impl Policy<'_> {
    /// Mean over the runs of a figure.
    fn mean(&self, figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| figure(run)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn sum(&self, figure: impl Fn(&Run) -> usize) -> usize {
        self.runs.iter().map(|run| figure(run)).sum()
    }
}

fn policies(runs: &[Run]) -> Vec<Policy<'_>> {
    let mut policies: Vec<Policy<'_>> = Vec::new();
    for run in runs {
        match policies.iter_mut().find(|policy| policy.name == run.policy) {
            Some(policy) => policy.runs.push(run),
            None => policies.push(Policy { name: &run.policy, runs: vec![run] }),
        }
    }
    policies
}

/// The whole report.
pub(crate) fn render(runs: &[Run]) -> String {
    let policies = policies(runs);
    let Some(first) = policies.first() else { return String::new() };
    let Some(run) = first.runs.first() else { return String::new() };
    let repeats = if first.runs.len() > 1 {
        format!(", mean of {}", plural(first.runs.len(), "run"))
    } else {
        String::new()
    };
    let mut text = format!(
        "\n{} of {} tokens on average, arrivals {}{}{repeats}; latencies in seconds\n\n",
        plural(run.requests, "request"),
        number(run.output_tokens as f64 / (run.requests - run.failed).max(1) as f64),
        run.arrivals,
        run.offered_per_s.map(|rate| format!(" ({}/s)", number(rate))).unwrap_or_default(),
    );
    text.push_str(&main_table(&policies));
    text.push('\n');
    text.push_str(&latency_table(&policies));
    text.push('\n');
    text.push_str(&length_table(&policies));
    if let Some(tau_b) = policies.iter().find_map(|policy| policy.mean(|run| run.tau_b)) {
        text.push_str(&format!("\ntau-b of the ranker on the requests served: {tau_b:.3}\n"));
    }
    text.push_str(&lengths_line(&policies));
    for policy in &policies[1..] {
        if let Some(ratio) = policy.mean(|run| run.e2e_vs_first.map(|ratio| ratio.p50)) {
            text.push_str(&format!(
                "\nE2E of each request under {} over the same under {}: median {ratio:.3}\n",
                policy.name, first.name
            ));
        }
        text.push_str(&worse(policy, first));
    }
    text.push_str(&failures(&policies));
    text
}

fn main_table(policies: &[Policy<'_>]) -> String {
    let baseline = policies[0].name;
    let (vs_first, vs_oracle) = (format!("/ {baseline}"), format!("/ {ORACLE}"));
    let has_oracle = policies.iter().any(|policy| policy.name == ORACLE);
    let mut header = vec!["s/token", "mean", "p50", "p90", "p99", "max", vs_first.as_str()];
    header.extend(has_oracle.then_some(vs_oracle.as_str()));
    header.extend(["tokens/s", "failed"]);
    let mean = |policy: &Policy<'_>| policy.mean(|run| run.metrics.s_per_token.map(|s| s.mean));
    let first = mean(&policies[0]);
    let oracle = policies.iter().find(|policy| policy.name == ORACLE).and_then(mean);
    let mut table = Table::new(header);
    for policy in policies {
        let of = |pick: fn(Summary) -> f64| maybe(policy.mean(|run| run.metrics.s_per_token.map(pick)));
        let ratio =
            |to: Option<f64>| mean(policy).zip(to).map_or("-".into(), |(a, b)| format!("{:.2}", a / b));
        let mut row = vec![policy.name.to_owned()];
        row.extend([
            of(|s| s.mean),
            of(|s| s.p50),
            of(|s| s.p90),
            of(|s| s.p99),
            of(|s| s.max),
            ratio(first),
        ]);
        row.extend(has_oracle.then(|| ratio(oracle)));
        row.push(maybe(policy.mean(|run| Some(run.tokens_per_s))));
        row.push(policy.sum(|run| run.failed).to_string());
        table.row(row);
    }
    table.render()
}

fn latency_table(policies: &[Policy<'_>]) -> String {
    let slo = policies.iter().any(|policy| policy.runs.iter().any(|run| run.within_slo.is_some()));
    let mut header = vec!["", "TTFT mean", "p50", "p99", "E2E mean", "p50", "p99", "max"];
    header.extend(["TPOT mean", "p99", "ITL p99", "max wait p99"]);
    header.extend(slo.then_some("within SLO"));
    let mut table = Table::new(header);
    for policy in policies {
        let of = |figure: fn(&Run) -> Option<f64>| maybe(policy.mean(figure));
        let mut row = vec![
            policy.name.to_owned(),
            of(|run| run.metrics.ttft_s.map(|s| s.mean)),
            of(|run| run.metrics.ttft_s.map(|s| s.p50)),
            of(|run| run.metrics.ttft_s.map(|s| s.p99)),
            of(|run| run.metrics.e2e_s.map(|s| s.mean)),
            of(|run| run.metrics.e2e_s.map(|s| s.p50)),
            of(|run| run.metrics.e2e_s.map(|s| s.p99)),
            of(|run| run.metrics.e2e_s.map(|s| s.max)),
            of(|run| run.metrics.tpot_s.map(|s| s.mean)),
            of(|run| run.metrics.tpot_s.map(|s| s.p99)),
            of(|run| run.metrics.itl_s.map(|s| s.p99)),
            of(|run| run.metrics.max_waiting_s.map(|s| s.p99)),
        ];
        if slo {
            row.push(
                policy
                    .mean(|run| run.within_slo)
                    .map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            );
        }
        table.row(row);
    }
    table.render()
}

fn length_table(policies: &[Policy<'_>]) -> String {
    let mut table = Table::new(["E2E mean (p99)", "shortest third", "middle third", "longest third"]);
    for policy in policies {
        let third = |index: usize| {
            let of = |pick: fn(Summary) -> f64| maybe(policy.mean(|run| third(run, index)?.e2e_s.map(pick)));
            format!("{} ({})", of(|s| s.mean), of(|s| s.p99))
        };
        table.row([policy.name.to_owned(), third(0), third(1), third(2)]);
    }
    table.render()
}

fn third(run: &Run, index: usize) -> Option<&Group> {
    run.by_length_third.get(index)
}

/// How far the answers were as long as the trace says: the oracle is only as good as that.
fn lengths_line(policies: &[Policy<'_>]) -> String {
    let share =
        policies.iter().filter_map(|policy| policy.mean(|run| run.as_recorded)).fold(f64::INFINITY, f64::min);
    if share >= 1.0 {
        return String::new();
    }
    format!(
        "{:.0} % of the answers were as long as the trace says (least over the policies)\n",
        100.0 * share
    )
}

type Figure = (&'static str, fn(&Run) -> Option<f64>);

/// The figures in which a policy may be worse. Each is better when smaller.
const FIGURES: [Figure; 20] = [
    ("s/token mean", |run| run.metrics.s_per_token.map(|s| s.mean)),
    ("s/token p50", |run| run.metrics.s_per_token.map(|s| s.p50)),
    ("s/token p90", |run| run.metrics.s_per_token.map(|s| s.p90)),
    ("s/token p99", |run| run.metrics.s_per_token.map(|s| s.p99)),
    ("s/token max", |run| run.metrics.s_per_token.map(|s| s.max)),
    ("TTFT mean", |run| run.metrics.ttft_s.map(|s| s.mean)),
    ("TTFT p99", |run| run.metrics.ttft_s.map(|s| s.p99)),
    ("TTFT max", |run| run.metrics.ttft_s.map(|s| s.max)),
    ("E2E mean", |run| run.metrics.e2e_s.map(|s| s.mean)),
    ("E2E p90", |run| run.metrics.e2e_s.map(|s| s.p90)),
    ("E2E p99", |run| run.metrics.e2e_s.map(|s| s.p99)),
    ("E2E max", |run| run.metrics.e2e_s.map(|s| s.max)),
    ("TPOT mean", |run| run.metrics.tpot_s.map(|s| s.mean)),
    ("TPOT p99", |run| run.metrics.tpot_s.map(|s| s.p99)),
    ("ITL p99", |run| run.metrics.itl_s.map(|s| s.p99)),
    ("longest wait p99", |run| run.metrics.max_waiting_s.map(|s| s.p99)),
    ("E2E mean of the longest third", |run| third(run, 2)?.e2e_s.map(|s| s.mean)),
    ("E2E p99 of the longest third", |run| third(run, 2)?.e2e_s.map(|s| s.p99)),
    ("s/token mean of the longest third", |run| third(run, 2)?.s_per_token.map(|s| s.mean)),
    ("time for all", |run| Some(run.duration_s)),
];

/// What `policy` does worse than `first`, worst first.
fn worse(policy: &Policy<'_>, first: &Policy<'_>) -> String {
    let figure = |(name, figure): &Figure| {
        let (here, there) = (policy.mean(figure)?, first.mean(figure)?);
        (there > 0.0 && here / there > WORSE).then_some((*name, here, there))
    };
    let mut found: Vec<_> = FIGURES.iter().filter_map(figure).collect();
    found.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)));
    let head = format!("\nWhat got worse under {}, against {}: ", policy.name, first.name);
    if found.is_empty() {
        return format!("{head}none of {} figures by more than 2 %.\n", FIGURES.len());
    }
    let listed = found.iter().take(MAX_LISTED);
    let listed = listed.map(|(name, here, there)| {
        format!("{name} {} s, was {} (x{:.2})", number(*here), number(*there), here / there)
    });
    let listed = listed.collect::<Vec<_>>().join("; ");
    let more = found.len().saturating_sub(MAX_LISTED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{head}{listed}{more} ({} of {} figures by more than 2 %).\n", found.len(), FIGURES.len())
}

fn failures(policies: &[Policy<'_>]) -> String {
    let mut text = String::new();
    for policy in policies.iter().filter(|policy| policy.sum(|run| run.failed) > 0) {
        let (failed, sent) = (policy.sum(|run| run.failed), policy.sum(|run| run.requests));
        text.push_str(&format!("\n{}: {failed} of {sent} requests FAILED\n", policy.name));
        for failure in policy.runs.iter().flat_map(|run| &run.failures).take(3) {
            text.push_str(&format!("  {failure}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::Job;
    use crate::bench::report::RunFacts;
    use crate::bench::stream::Sample;

    fn run(policy: &str, e2e_s: &[f64]) -> Run {
        let facts = RunFacts {
            policy: policy.into(),
            arrivals: "burst:3".into(),
            load: None,
            seed: 1,
            one_at_a_time: false,
        };
        let job = |index| Job { index, record: 0, arrival_s: 0.0, true_tokens: None, body: Vec::new() };
        let sample = |(job, &e2e_s): (usize, &f64)| {
            let output_tokens = 10 * (u32::try_from(job).unwrap() + 1);
            Sample { job, e2e_s, ttft_s: Some(e2e_s / 2.0), output_tokens, ..Sample::default() }
        };
        let jobs: Vec<Job> = (0..e2e_s.len()).map(job).collect();
        let samples: Vec<Sample> = e2e_s.iter().enumerate().map(sample).collect();
        Run::new(&facts, &jobs, &samples, None, None)
    }

    #[test]
    fn the_table_names_every_policy_and_its_ratio_to_the_first() {
        let text = render(&[run("fcfs", &[3.0, 3.0, 3.0]), run("outrank", &[1.5, 1.5, 1.5])]);
        let row = text.lines().find(|line| line.starts_with("outrank")).unwrap();
        assert!(row.contains("0.50"), "{text}");
        assert!(text.contains("/ fcfs") && !text.contains("oracle"), "{text}");
    }

    #[test]
    fn what_got_worse_is_said_although_the_mean_improved() {
        let text = render(&[run("fcfs", &[3.0, 3.0, 3.0]), run("ltr", &[0.1, 0.2, 6.0])]);
        let line = text.lines().find(|line| line.starts_with("What got worse under ltr")).unwrap();
        assert!(line.contains("E2E mean of the longest third 6.00 s, was 3.00 (x2.00)"), "{line}");
        assert!(!line.contains("s/token mean 0"), "{line}");
    }

    #[test]
    fn nothing_worse_is_said_too() {
        let text = render(&[run("fcfs", &[3.0, 3.0, 3.0]), run("outrank", &[1.0, 1.0, 1.0])]);
        assert!(text.contains("none of 20 figures"), "{text}");
    }

    #[test]
    fn failures_are_shouted() {
        let mut failed = run("fcfs", &[3.0]);
        failed.failed = 1;
        failed.failures = vec!["request 0: HTTP 429: the queue is full".into()];
        assert!(render(&[failed]).contains("1 of 1 requests FAILED\n  request 0: HTTP 429"));
    }
}
