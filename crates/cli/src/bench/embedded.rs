//! Policies beside each other on the embedded engine.

use anyhow::{Context, Result};
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::Prompt;
use tokio::time::Instant;

use crate::arrivals::{Arrivals, drawn};
use crate::bench::args::LengthMode;
use crate::bench::drive::{Target, one, open_loop};
use crate::bench::plan::{Job, Shape};
use crate::bench::report::{Run, paired_e2e};
use crate::bench::stream::Sample;
use crate::bench::switched::Switched;
use crate::bench::{Bench, Report};
use crate::host::{Host, HostConfig, ModelFile};
use crate::output::note;
use crate::progress::Progress;

/// Output tokens of a warm-up request: enough steps for the engine's cost model to settle.
const WARM_UP_TOKENS: u32 = 48;
/// Requests that capacity is measured with, per seat.
const CAPACITY_REQUESTS_PER_SEAT: usize = 4;

impl Bench {
    fn config(&self, policy: &str) -> Result<HostConfig> {
        HostConfig::new(policy, &self.args.engine, &self.args.policy, self.ranker.clone())
    }

    async fn start(
        &self,
        model: &ModelFile,
        mut config: HostConfig,
        requests: usize,
    ) -> Result<(Host, Target)> {
        // The queue must hold every request: a refused one would make its policy look good.
        config.queue_at_least(requests + 64);
        let host = Host::start(model, config).await?;
        let target = self.target(host.url(), None)?;
        Ok((host, target))
    }

    fn warm_up_requests(&self) -> u32 {
        self.args.warm_up.unwrap_or_else(|| crate::host::seats(&self.args.engine))
    }
}

/// Every policy in turn, each on an engine of its own; repeats go round all policies before the next seed.
pub(crate) async fn compare(bench: &Bench) -> Result<Report> {
    let model = ModelFile::open(&bench.args.engine)?;
    let shape = bench.shape(model.name(), true);
    let predictions = bench.predictions();
    let predicted = predictions.as_ref().map(|tokens| move |record: usize| tokens[record]);
    let (load, capacity) = match bench.args.arrivals {
        Arrivals::Load(load) => (Some(load), Some(capacity(bench, &model, &shape).await?)),
        _ => (None, None),
    };
    let mut runs = Vec::new();
    for repeat in 0..bench.args.repeats {
        let jobs = bench.jobs(&shape, repeat, capacity)?;
        let mut order: Vec<&String> = bench.args.policies.iter().collect();
        if repeat % 2 == 1 {
            // What drifts with time (heat, neighbours) then meets each policy early as often as late.
            order.reverse();
        }
        let mut round = Vec::new();
        for policy in order {
            let (host, target) = bench.start(&model, bench.config(policy)?, jobs.len()).await?;
            bench.warm_up(&target, &shape, bench.warm_up_requests()).await?;
            let samples = open_loop(&target, jobs.clone(), &Progress::new(policy.as_str(), jobs.len())).await;
            host.stop().await?;
            let facts = bench.facts(policy, repeat, load);
            let predicted = predicted.as_ref().map(|predicted| predicted as &dyn Fn(usize) -> f64);
            let run = Run::new(&facts, &jobs, &samples, bench.args.slo.as_ref(), predicted);
            note(&format!(
                "{policy}: {} answers in {:.1} s, {:.3} s/token, {} failed",
                run.requests - run.failed,
                run.duration_s,
                run.metrics.s_per_token.unwrap_or_default().mean,
                run.failed
            ));
            round.push(run);
        }
        if repeat % 2 == 1 {
            round.reverse();
        }
        runs.extend(round);
    }
    Ok(Report { capacity_per_s: capacity, runs })
}

/// Requests a second that the engine serves when it always has work, measured under FCFS.
async fn capacity(bench: &Bench, model: &ModelFile, shape: &Shape) -> Result<f64> {
    let seats = crate::host::seats(&bench.args.engine) as usize;
    let requests = (seats * CAPACITY_REQUESTS_PER_SEAT).max(16);
    let arrivals = drawn(&vec![0.0; requests], bench.records.len(), bench.args.seed ^ 0x00CA_9AC1);
    let jobs = shape.jobs(&bench.records, &arrivals)?;
    let (host, target) = bench.start(model, bench.config("fcfs")?, requests).await?;
    bench.warm_up(&target, shape, bench.warm_up_requests()).await?;
    let samples = open_loop(&target, jobs, &Progress::new("capacity", requests)).await;
    host.stop().await?;
    let capacity = saturated_rate(&samples, seats)?;
    note(&format!("capacity: {capacity:.3} requests/s with all {seats} seats taken"));
    Ok(capacity)
}

/// Throughput while every seat was taken: tokens before the first time that fewer requests than seats were left, over
/// mean tokens of a request. The emptying batch at the end says nothing about capacity.
fn saturated_rate(samples: &[Sample], seats: usize) -> Result<f64> {
    let mut answered: Vec<&Sample> = samples.iter().filter(|sample| sample.failure.is_none()).collect();
    if answered.len() <= seats {
        anyhow::bail!("capacity: only {} of {} requests were answered", answered.len(), samples.len());
    }
    answered.sort_by(|a, b| a.e2e_s.total_cmp(&b.e2e_s));
    let full_s = answered[answered.len() - seats].e2e_s;
    let tokens = |sample: &Sample| f64::from(sample.output_tokens.max(1));
    let before_full = |sample: &Sample| {
        let first_s = sample.ttft_s.unwrap_or(sample.e2e_s);
        let share = if sample.e2e_s <= full_s {
            1.0
        } else {
            ((full_s - first_s) / (sample.e2e_s - first_s).max(1e-9)).clamp(0.0, 1.0)
        };
        tokens(sample) * share
    };
    let produced: f64 = answered.iter().map(|sample| before_full(sample)).sum();
    let mean = answered.iter().map(|sample| tokens(sample)).sum::<f64>() / answered.len() as f64;
    Ok(produced / full_s / mean)
}

/// One request at a time, under every policy in turn before the next: latency at no load, in interleaved pairs. All share
/// one engine: two of them in one process differ by a few per cent, whatever policy they run.
pub(crate) async fn serial(bench: &Bench) -> Result<Report> {
    let model = ModelFile::open(&bench.args.engine)?;
    let shape = bench.shape(model.name(), true);
    let predictions = bench.predictions();
    let predicted = predictions.as_ref().map(|tokens| move |record: usize| tokens[record]);
    let mut runs = Vec::new();
    for repeat in 0..bench.args.repeats {
        let jobs = bench.jobs(&shape, repeat, None)?;
        let configs = bench.args.policies.iter().map(|policy| bench.config(policy));
        let mut configs = configs.collect::<Result<Vec<_>>>()?.into_iter();
        let mut config = configs.next().context("--policies names no policy")?;
        let policies = std::iter::once(config.policy).chain(configs.map(|config| config.policy)).collect();
        let (policy, switch) = Switched::new(policies).context("--policies names no policy")?;
        config.policy = Box::new(policy);
        let (host, target) = bench.start(&model, config, 1).await?;
        bench.warm_up(&target, &shape, bench.warm_up_requests()).await?;
        let samples = alternate(&target, &jobs, bench.args.policies.len(), |lane| switch.to(lane)).await;
        host.stop().await?;
        for (policy, own) in bench.args.policies.iter().zip(&samples) {
            let facts = bench.facts(policy, repeat, None);
            let predicted = predicted.as_ref().map(|predicted| predicted as &dyn Fn(usize) -> f64);
            let run = Run::new(&facts, &jobs, own, bench.args.slo.as_ref(), predicted);
            runs.push(Run { e2e_vs_first: paired_e2e(own, &samples[0]), ..run });
        }
    }
    Ok(Report { capacity_per_s: None, runs })
}

/// Sends each job once in every lane before the next job, always one at a time; who goes first rotates. `enter` is called
/// with the lane before each.
pub(crate) async fn alternate(
    target: &Target,
    jobs: &[Job],
    lanes: usize,
    enter: impl Fn(usize),
) -> Vec<Vec<Sample>> {
    let progress = Progress::new("one at a time", jobs.len() * lanes);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::with_capacity(jobs.len()); lanes];
    let start = Instant::now();
    for (index, job) in jobs.iter().enumerate() {
        for turn in 0..lanes {
            let lane = (index + turn) % lanes;
            enter(lane);
            samples[lane].push(one(target, job, start).await);
            progress.step();
        }
    }
    samples
}

/// Short requests with texts that are in no trace.
pub(crate) fn warm_up_jobs(shape: &Shape, requests: u32) -> Result<Vec<Job>> {
    let record = |n: u32| {
        let text =
            format!("Warm-up {n}: say anything at all until you are stopped, this answer is thrown away.");
        TraceRecord { output_tokens: vec![WARM_UP_TOKENS], ..TraceRecord::new(Prompt::Text(text)) }
    };
    let records: Vec<TraceRecord> = (0..requests).map(record).collect();
    let shape = Shape { max_tokens: Some(WARM_UP_TOKENS), lengths: warm_up_lengths(shape), ..shape.clone() };
    shape.jobs(&records, &drawn(&vec![0.0; records.len()], records.len(), 0))
}

/// A server that is told to replay lengths understands `ignore_eos`; another may refuse it.
fn warm_up_lengths(shape: &Shape) -> LengthMode {
    if shape.hints { LengthMode::Recorded } else { shape.lengths }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_measured_while_all_seats_are_taken() {
        // Two seats, 10 tokens/s each; the last request runs alone and would halve a naive quotient.
        let sample = |start: f64, tokens: u32| {
            let e2e_s = start + f64::from(tokens) / 10.0;
            Sample { ttft_s: Some(start), e2e_s, output_tokens: tokens, ..Sample::default() }
        };
        let samples = [sample(0.0, 100), sample(0.0, 100), sample(10.0, 100), sample(10.0, 300)];
        let rate = saturated_rate(&samples, 2).unwrap();
        assert!((rate - 20.0 / 150.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn a_server_that_answers_nothing_has_no_capacity() {
        let failed = Sample { failure: Some("down".into()), ..Sample::default() };
        assert!(saturated_rate(&[failed], 1).is_err());
    }
}
