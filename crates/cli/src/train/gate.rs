//! Whether a ranker is better than the one in use, on requests that it did not learn from.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use outrank_core::{MonitorSettings, policies};
use outrank_ranker::{HeldOut, Ranker, kendall_tau_b};
use outrank_sim::{Job, Metrics, Profile, Scoring, Simulation};
use serde::Serialize;

use super::rows::Row;
use crate::arrivals::{Window, replayed};
use crate::output::{number, plural};
use crate::simulate::run::capacity_per_s;
use crate::simulate::workload::within;

/// Requests for each seat of the simulated engine, at least: with fewer nobody would wait.
const REQUESTS_PER_SEAT: usize = 8;

/// Arrivals are scaled to this multiple of what the engine serves.
const LOAD: f64 = 1.5;

/// Least share of the engine's busy time in which somebody waits; with less, all requests arrive at once.
const MIN_QUEUEING: f64 = 0.2;

/// The verdict. Pairs are the ranker in use and the new one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Gate {
    pub(super) passed: bool,
    /// Kendall's tau-b between predicted and true lengths of finished answers; over several models the mean of each one's own,
    /// weighted by its answers.
    pub(super) tau_b: [f64; 2],
    /// Simulated mean latency in seconds a token.
    pub(super) s_per_token: [f64; 2],
    /// Why it was not passed.
    why: Vec<&'static str>,
    /// The ranker in use.
    against: String,
    /// Requests judged by; those whose answer was cut short only load the engine ...
    requests: usize,
    /// ... and these have a true length.
    pub(super) finished: usize,
    profile: String,
    seats: u32,
    /// `journal`, or `burst`.
    arrivals: &'static str,
}

/// Judges the ranker in use and a new one.
pub(super) fn judge(rows: &[Row], against: String, rankers: [&Ranker; 2], profile: Profile) -> Result<Gate> {
    let most = u32::try_from(rows.len() / REQUESTS_PER_SEAT).unwrap_or(u32::MAX).max(1);
    let seats = profile.capacity.seats.min(most);
    let profile = profile.with_seats(seats)?;
    let (jobs, arrivals) = load(rows, &profile)?;
    let [old, new] = rankers.map(|ranker| ordered(rows, ranker));
    let HeldOut { requests: finished, tau_b: old } =
        old.context("the newest answers all have the same length: there is no order to judge by")?;
    // Where the one is defined, so is the other, unless a ranker predicts the same for all.
    let tau_b = [old, new.map_or(0.0, |new| new.tau_b)];
    let s_per_token =
        [s_per_token(rows, rankers[0], &jobs, &profile)?, s_per_token(rows, rankers[1], &jobs, &profile)?];
    let mut why = Vec::new();
    if tau_b[1] <= tau_b[0] {
        why.push("it does not order better");
    }
    if s_per_token[1] >= s_per_token[0] {
        why.push("latency is no lower");
    }
    Ok(Gate {
        passed: why.is_empty(),
        tau_b,
        s_per_token,
        why,
        against,
        requests: rows.len(),
        finished,
        profile: profile.name,
        seats,
        arrivals,
    })
}

impl Gate {
    /// In words.
    pub(super) fn text(&self) -> String {
        let verdict = if self.passed {
            "gate passed".to_owned()
        } else {
            format!("gate not passed: {}, so nothing is written", self.why.join(" and "))
        };
        format!(
            "{verdict}\n  on the newest {} ({} finished), against {}:\n  tau-b {:.3} -> {:.3}\n  simulated mean s/token {} -> {} \
             ({}, {}, arrivals: {})",
            plural(self.requests, "request"),
            self.finished,
            self.against,
            self.tau_b[0],
            self.tau_b[1],
            number(self.s_per_token[0]),
            number(self.s_per_token[1]),
            self.profile,
            plural(self.seats as usize, "seat"),
            self.arrivals
        )
    }
}

/// How a ranker orders finished answers; `None` where that is not defined for any model.
fn ordered(rows: &[Row], ranker: &Ranker) -> Option<HeldOut> {
    let mut models: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.example.censored) {
        let (predicted, truth) = models.entry(&row.model).or_default();
        predicted.push(f64::from(row.example.score(ranker).median_tokens()));
        truth.push(f64::from(row.example.tokens));
    }
    HeldOut::mean(models.values().map(|(predicted, truth)| (truth.len(), kendall_tau_b(predicted, truth))))
}

/// The requests as they arrive at an engine that has more to do than it can, without scores; and whose arrivals they are.
fn load(rows: &[Row], profile: &Profile) -> Result<(Vec<(usize, Job)>, &'static str)> {
    let job = |row: usize, arrival_s: f64| {
        let (tokens, prompt_tokens) = (rows[row].example.tokens.max(1), rows[row].prompt_tokens);
        let (prompt_tokens, output_tokens) = within(profile.capacity.context_tokens, prompt_tokens, tokens);
        (row, Job { arrival_s, prompt_tokens, output_tokens, max_tokens: None, score: None })
    };
    let burst: Vec<(usize, Job)> = (0..rows.len()).map(|row| job(row, 0.0)).collect();
    let Some(times) = rows.iter().map(|row| row.arrival_s).collect::<Option<Vec<f64>>>() else {
        return Ok((burst, "burst"));
    };
    let bare = |jobs: &[(usize, Job)]| jobs.iter().map(|(_, job)| *job).collect::<Vec<_>>();
    let rate = LOAD * capacity_per_s(profile, &bare(&burst))?;
    let window = Window { duration_s: f64::INFINITY, requests: None, rate: Some(rate), seed: 0 };
    let replayed = replayed(&times, &window);
    let jobs: Vec<(usize, Job)> = replayed.iter().map(|arrival| job(arrival.record, arrival.at_s)).collect();
    let fcfs = Box::new(policies::Fcfs);
    let simulation = Simulation::new(profile, fcfs, Scoring::default(), MonitorSettings::default())?;
    let totals = simulation.run(bare(&jobs), |_| {})?;
    if totals.saturated_s < MIN_QUEUEING * totals.busy_s {
        return Ok((burst, "burst"));
    }
    Ok((jobs, "journal"))
}

/// Mean latency under the policy `outrank` with the scores of a ranker, in seconds a token.
fn s_per_token(rows: &[Row], ranker: &Ranker, jobs: &[(usize, Job)], profile: &Profile) -> Result<f64> {
    let policy = policies::by_name("outrank", &policies::PolicySettings::default())
        .context("the policy outrank is gone: this is a defect, please report it")?;
    let simulation = Simulation::new(profile, policy, Scoring::default(), MonitorSettings::default())?;
    let mut answers = Vec::with_capacity(jobs.len());
    let scored = jobs.iter().map(|(row, job)| Job { score: Some(rows[*row].example.score(ranker)), ..*job });
    simulation.run(scored, |answer| answers.push(answer))?;
    Ok(Metrics::of(&answers).s_per_token.map_or(0.0, |summary| summary.mean))
}
