//! From samples to figures.

use outrank_core::Summary;
use outrank_sim::{Answer, Group, Metrics, Slo, by_length};
use serde::Serialize;

use crate::bench::plan::Job;
use crate::bench::stream::Sample;

/// Failures that are quoted, at most; all are counted.
const MAX_QUOTED_FAILURES: usize = 5;

/// One timed run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// The policy, or the URL.
    pub(crate) policy: String,
    /// The pattern of arrivals.
    pub(crate) arrivals: String,
    /// Fraction of the measured capacity, for `load:` arrivals.
    pub(crate) load: Option<f64>,
    /// Mean arrivals a second; `None` where all come at once.
    pub(crate) offered_per_s: Option<f64>,
    /// Seed of arrivals and of the choice of requests.
    pub(crate) seed: u64,
    /// Requests sent.
    pub(crate) requests: usize,
    /// Of which were not answered to the end.
    pub(crate) failed: usize,
    /// Why, for the first few.
    pub(crate) failures: Vec<String>,
    /// Of which ended at the output limit.
    pub(crate) truncated: usize,
    /// From the first arrival to the last answer.
    pub(crate) duration_s: f64,
    /// Prompt tokens of the answered requests.
    pub(crate) prompt_tokens: u64,
    /// Output tokens of the answered requests.
    pub(crate) output_tokens: u64,
    /// Output tokens a second.
    pub(crate) tokens_per_s: f64,
    /// Answers a second.
    pub(crate) requests_per_s: f64,
    /// Answers a second that met every objective, with `--slo`.
    pub(crate) goodput_per_s: Option<f64>,
    /// Share of all requests that met every objective, with `--slo`.
    pub(crate) within_slo: Option<f64>,
    /// Tau-b of the ranker on what was served here: predicted against generated tokens.
    pub(crate) tau_b: Option<f64>,
    /// One request at a time: E2E of each request over the same request's E2E under the first policy.
    pub(crate) e2e_vs_first: Option<Summary>,
    /// Share of requests whose length was what the trace says; 1 where nothing is recorded wrongly.
    pub(crate) as_recorded: Option<f64>,
    pub(crate) metrics: Metrics,
    /// The shortest, middle and longest third of the answers.
    pub(crate) by_length_third: Vec<Group>,
    /// Ten groups of answers, shortest first.
    pub(crate) by_length_decile: Vec<Group>,
}

/// What a run was.
#[derive(Debug, Clone)]
pub(crate) struct RunFacts {
    pub(crate) policy: String,
    pub(crate) arrivals: String,
    pub(crate) load: Option<f64>,
    pub(crate) seed: u64,
    /// Whether each request waited for the one before.
    pub(crate) one_at_a_time: bool,
}

impl From<&Sample> for Answer {
    fn from(sample: &Sample) -> Self {
        Self {
            index: sample.job,
            arrival_s: sample.arrival_s,
            output_tokens: sample.output_tokens,
            // An answer without a first token took until its end.
            ttft_s: sample.ttft_s.unwrap_or(sample.e2e_s),
            e2e_s: sample.e2e_s,
            max_gap_s: sample.gaps_s.iter().map(|&gap| f64::from(gap)).fold(0.0, f64::max),
            preemptions: 0,
            eta_s: sample.eta_s,
        }
    }
}

impl Run {
    /// The figures of a run. `predicted` gives the ranker's prediction for a record of the trace, in tokens.
    pub(crate) fn new(
        facts: &RunFacts,
        jobs: &[Job],
        samples: &[Sample],
        slo: Option<&Slo>,
        predicted: Option<&dyn Fn(usize) -> f64>,
    ) -> Self {
        let answered: Vec<&Sample> = samples.iter().filter(|sample| sample.failure.is_none()).collect();
        let failures =
            samples.iter().filter_map(|s| Some(format!("request {}: {}", s.job, s.failure.as_ref()?)));
        let end_s = samples.iter().map(|s| s.arrival_s + s.e2e_s).fold(0.0, f64::max);
        let start_s = samples.iter().map(|s| s.arrival_s).fold(end_s, f64::min);
        // One at a time, the other policies' turns lie between: the time at work counts.
        let busy_s = samples.iter().map(|s| s.e2e_s).sum::<f64>();
        let duration_s = if facts.one_at_a_time { busy_s } else { end_s - start_s }.max(f64::MIN_POSITIVE);
        let output_tokens: u64 = answered.iter().map(|s| u64::from(s.output_tokens)).sum();
        let answers: Vec<Answer> = answered.iter().copied().map(Answer::from).collect();
        let gaps_s = answered.iter().flat_map(|s| s.gaps_s.iter().map(|&gap| f64::from(gap)));
        let good = slo.map(|slo| answers.iter().filter(|answer| slo.met(answer)).count() as f64);
        let last_arrival_s = jobs.last().map_or(0.0, |job| job.arrival_s);
        Self {
            policy: facts.policy.clone(),
            arrivals: facts.arrivals.clone(),
            load: facts.load,
            offered_per_s: (last_arrival_s > 0.0).then(|| jobs.len() as f64 / last_arrival_s),
            seed: facts.seed,
            requests: jobs.len(),
            failed: jobs.len() - answered.len(),
            failures: failures.take(MAX_QUOTED_FAILURES).collect(),
            truncated: answered.iter().filter(|s| s.truncated).count(),
            duration_s,
            prompt_tokens: answered.iter().map(|s| u64::from(s.prompt_tokens.unwrap_or(0))).sum(),
            output_tokens,
            tokens_per_s: output_tokens as f64 / duration_s,
            requests_per_s: answered.len() as f64 / duration_s,
            goodput_per_s: good.map(|good| good / duration_s),
            within_slo: good.map(|good| good / jobs.len() as f64),
            tau_b: predicted.and_then(|predicted| tau_b(jobs, &answered, predicted)),
            e2e_vs_first: None,
            as_recorded: as_recorded(jobs, &answered),
            metrics: Metrics { itl_s: Summary::of(gaps_s.collect()), ..Metrics::of(&answers) },
            by_length_third: by_length(&answers, 3),
            by_length_decile: by_length(&answers, 10),
        }
    }
}

/// E2E of each answered request over that of the same request in `first`.
pub(crate) fn paired_e2e(samples: &[Sample], first: &[Sample]) -> Option<Summary> {
    let pairs = samples.iter().zip(first);
    let answered = pairs.filter(|(here, there)| here.failure.is_none() && there.failure.is_none());
    Summary::of(answered.map(|(here, there)| here.e2e_s / there.e2e_s.max(f64::MIN_POSITIVE)).collect())
}

fn tau_b(jobs: &[Job], answered: &[&Sample], predicted: &dyn Fn(usize) -> f64) -> Option<f64> {
    let predicted: Vec<f64> = answered.iter().map(|s| predicted(jobs[s.job].record)).collect();
    let truth: Vec<f64> = answered.iter().map(|s| f64::from(s.output_tokens)).collect();
    outrank_ranker::kendall_tau_b(&predicted, &truth)
}

fn as_recorded(jobs: &[Job], answered: &[&Sample]) -> Option<f64> {
    let recorded: Vec<bool> =
        answered.iter().filter_map(|s| Some(jobs[s.job].true_tokens? == s.output_tokens)).collect();
    let same = recorded.iter().filter(|&&same| same).count();
    (!recorded.is_empty()).then(|| same as f64 / recorded.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(index: usize) -> Job {
        Job { index, record: index, arrival_s: index as f64, true_tokens: Some(3), body: Vec::new() }
    }

    fn answered(job: usize, ttft_s: f64, gaps_s: &[f32]) -> Sample {
        let e2e_s = ttft_s + gaps_s.iter().map(|&gap| f64::from(gap)).sum::<f64>();
        let output_tokens = u32::try_from(gaps_s.len() + 1).unwrap();
        let (arrival_s, gaps_s, ttft_s) = (job as f64, gaps_s.to_vec(), Some(ttft_s));
        Sample { job, arrival_s, ttft_s, e2e_s, gaps_s, output_tokens, ..Sample::default() }
    }

    fn facts() -> RunFacts {
        RunFacts {
            policy: "fcfs".into(),
            arrivals: "burst:3".into(),
            load: None,
            seed: 1,
            one_at_a_time: false,
        }
    }

    #[test]
    fn the_figures_of_one_answer_are_those_of_their_definitions() {
        let samples = [answered(0, 2.0, &[0.5, 1.5])];
        let run = Run::new(&facts(), &[job(0)], &samples, None, None);
        let mean = |s: Option<Summary>| s.unwrap().mean;
        let m = run.metrics;
        assert_eq!((mean(m.e2e_s), mean(m.ttft_s), mean(m.tpot_s)), (4.0, 2.0, 1.0));
        assert!((mean(m.s_per_token) - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!((mean(m.max_waiting_s), m.itl_s.unwrap().max), (2.0, 1.5));
        assert_eq!((run.output_tokens, run.tokens_per_s, run.as_recorded), (3, 0.75, Some(1.0)));
    }

    #[test]
    fn a_long_pause_between_tokens_counts_as_waiting() {
        let run = Run::new(&facts(), &[job(0)], &[answered(0, 1.0, &[8.0])], None, None);
        assert_eq!(run.metrics.max_waiting_s.unwrap().max, 8.0);
    }

    #[test]
    fn one_token_has_no_time_per_further_token() {
        let run = Run::new(&facts(), &[job(0)], &[answered(0, 1.0, &[])], None, None);
        assert!(run.metrics.tpot_s.is_none() && run.metrics.itl_s.is_none());
    }

    #[test]
    fn one_at_a_time_only_the_time_at_work_counts_and_pairs_are_compared() {
        let serial = RunFacts { one_at_a_time: true, ..facts() };
        // The other policy's turn lies in the gap of 98 s between the two.
        let samples = [answered(0, 1.0, &[1.0]), Sample { arrival_s: 100.0, ..answered(1, 2.0, &[]) }];
        let run = Run::new(&serial, &[job(0), job(1)], &samples, None, None);
        assert_eq!((run.duration_s, run.tokens_per_s), (4.0, 0.75));
        let slower = [answered(0, 2.0, &[2.0]), answered(1, 2.0, &[])];
        let ratio = paired_e2e(&slower, &samples).unwrap();
        assert_eq!((ratio.mean, ratio.max), (1.5, 2.0));
    }

    #[test]
    fn a_failure_is_counted_quoted_and_left_out_of_the_latencies() {
        let failed =
            Sample { job: 1, e2e_s: 99.0, failure: Some("HTTP 503: full".into()), ..Sample::default() };
        let run = Run::new(&facts(), &[job(0), job(1)], &[answered(0, 1.0, &[1.0]), failed], None, None);
        assert_eq!(
            (run.requests, run.failed, run.failures.as_slice()),
            (2, 1, &["request 1: HTTP 503: full".into()][..])
        );
        assert_eq!(run.metrics.e2e_s.unwrap().max, 2.0);
    }

    #[test]
    fn goodput_counts_only_what_met_every_objective() {
        let slo: Slo = "ttft:1.5,e2e:3".parse().unwrap();
        let samples = [answered(0, 1.0, &[1.0]), answered(1, 2.0, &[0.5]), answered(2, 1.0, &[9.0])];
        let run = Run::new(&facts(), &[job(0), job(1), job(2)], &samples, Some(&slo), None);
        assert_eq!(run.within_slo, Some(1.0 / 3.0));
    }

    #[test]
    fn thirds_are_cut_by_length_and_lose_nobody() {
        let samples: Vec<Sample> = (0..10).map(|i| answered(i, 1.0, &vec![0.1; 9 - i])).collect();
        let jobs: Vec<Job> = (0..10).map(job).collect();
        let run = Run::new(&facts(), &jobs, &samples, None, Some(&|record| -(record as f64)));
        assert_eq!(run.by_length_third.iter().map(|group| group.requests).sum::<usize>(), 10);
        assert_eq!(run.by_length_third[0].tokens, [1, 3]);
        assert_eq!(run.by_length_decile.len(), 10);
        assert_eq!(run.tau_b, Some(1.0));
    }
}
