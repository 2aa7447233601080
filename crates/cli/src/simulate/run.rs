//! One run and its figures.

use anyhow::Result;
use outrank_core::{Counters, MonitorSettings};
use outrank_sim::{
    Answer, Group, Job, Metrics, Profile, Scoring, Simulation, TimelinePoint, Totals, TrustChange, by_length,
};
use serde::Serialize;

use crate::simulate::Case;
use crate::simulate::args::SimulateArgs;
use crate::simulate::learning::Learning;
use crate::simulate::spec::PolicySpec;

/// What a run is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) policy: String,
    pub(crate) profile: String,
    pub(crate) arrivals: String,
    /// Fraction of capacity, where arrivals were scaled to one.
    pub(crate) load: Option<f64>,
    /// Mean arrivals a second; `None` where all come at once.
    pub(crate) offered_per_s: Option<f64>,
    pub(crate) seed: u64,
}

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    #[serde(flatten)]
    pub(crate) facts: Facts,
    pub(crate) requests: usize,
    /// From the first arrival to the last answer.
    pub(crate) duration_s: f64,
    /// Of which the engine computed.
    pub(crate) busy_s: f64,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) tokens_per_s: f64,
    pub(crate) requests_per_s: f64,
    /// Answers a second that met every objective, with `--slo`.
    pub(crate) goodput_per_s: Option<f64>,
    /// Share of requests that met every objective, with `--slo`.
    pub(crate) within_slo: Option<f64>,
    /// Seconds until so many were answered, with `--first`.
    pub(crate) first_answers_s: Option<f64>,
    /// Requests answered in so many seconds, with `--within-s`.
    pub(crate) answered_within: Option<usize>,
    /// Tau-b between predictions and lengths.
    pub(crate) tau_b: Option<f64>,
    /// Seconds during which the monitor kept the ranker out.
    pub(crate) distrusted_s: f64,
    /// When it was kept out, and when it was let in again.
    pub(crate) trust_changes: Vec<TrustChange>,
    pub(crate) steps: u64,
    pub(crate) overtakes: u64,
    pub(crate) promotions: u64,
    pub(crate) preemptions: u64,
    /// Context tokens computed again because their KV was dropped.
    pub(crate) recomputed_tokens: u64,
    pub(crate) metrics: Metrics,
    pub(crate) by_length_decile: Vec<Group>,
    /// Who waited and who ran over time.
    pub(crate) timeline: Vec<TimelinePoint>,
    /// Every answer, for charts and `--answers`; not part of the JSON.
    #[serde(skip)]
    pub(crate) answers: Vec<Answer>,
}

/// Simulates the requests of a case under a policy.
pub(crate) fn run(args: &SimulateArgs, case: &Case<'_>, policy: &PolicySpec, facts: Facts) -> Result<Run> {
    let jobs = &case.jobs;
    let (answers, totals) = answers(args, case, policy)?;
    let good = args.slo.map(|slo| answers.iter().filter(|answer| slo.met(answer)).count() as f64);
    let start_s = jobs.first().map_or(0.0, |job| job.arrival_s);
    let mut ends_s: Vec<f64> = answers.iter().map(|it| it.arrival_s + it.e2e_s - start_s).collect();
    ends_s.sort_unstable_by(f64::total_cmp);
    let duration_s = totals.duration_s.max(f64::MIN_POSITIVE);
    let Counters { steps, overtakes, promotions, preemptions, recomputed_tokens, .. } = totals.counters;
    Ok(Run {
        requests: answers.len(),
        duration_s: totals.duration_s,
        busy_s: totals.busy_s,
        prompt_tokens: totals.prompt_tokens,
        output_tokens: totals.output_tokens,
        tokens_per_s: totals.output_tokens as f64 / duration_s,
        requests_per_s: answers.len() as f64 / duration_s,
        goodput_per_s: good.map(|good| good / duration_s),
        within_slo: good.map(|good| good / answers.len().max(1) as f64),
        first_answers_s: args.first.and_then(|n| ends_s.get(n as usize - 1).copied()),
        answered_within: args.within_s.map(|limit_s| ends_s.partition_point(|&end_s| end_s <= limit_s)),
        tau_b: None,
        distrusted_s: totals.distrusted_s,
        trust_changes: totals.trust_changes,
        steps,
        overtakes,
        promotions,
        preemptions,
        recomputed_tokens,
        metrics: Metrics::of(&answers),
        by_length_decile: by_length(&answers, 10),
        timeline: totals.timeline,
        answers,
        facts,
    })
}

fn answers(args: &SimulateArgs, case: &Case<'_>, policy: &PolicySpec) -> Result<(Vec<Answer>, Totals)> {
    let scoring = Scoring { request_s: args.score_s, blocking: args.blocking_scores };
    let mut monitor = MonitorSettings::default();
    if args.no_monitor {
        monitor.z = f64::INFINITY;
    }
    let simulation = Simulation::new(&case.engine.profile, policy.policy(), scoring, monitor)?;
    let mut answers = Vec::with_capacity(case.jobs.len());
    let jobs = case.jobs.iter().copied();
    let totals = match (args.learn, case.workload.ranker()) {
        (Some(from), Some(prior)) => simulation.run(jobs, Learning::new(case, prior, from, &mut answers))?,
        _ => simulation.run(jobs, |answer| answers.push(answer))?,
    };
    Ok((answers, totals))
}

/// Requests a second that the engine serves while requests wait, under FCFS.
pub(crate) fn capacity_per_s(profile: &Profile, jobs: &[Job]) -> Result<f64> {
    let fcfs = Box::new(outrank_core::policies::Fcfs);
    let simulation = Simulation::new(profile, fcfs, Scoring::default(), MonitorSettings::default())?;
    let totals = simulation.run(jobs.iter().copied(), |_| {})?;
    let mean_tokens = totals.output_tokens as f64 / jobs.len().max(1) as f64;
    Ok(totals.saturated_tokens as f64 / totals.saturated_s.max(f64::MIN_POSITIVE) / mean_tokens)
}
