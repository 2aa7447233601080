//! `outrank bench`.

mod args;
mod drive;
mod embedded;
mod plan;
mod report;
mod stream;
mod switched;
mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outrank_ranker::trace::{Lengths, held_out, write_whole};
use outrank_ranker::{Ranker, TraceRecord};
use serde::Serialize;

pub(crate) use args::BenchArgs;

use crate::arrivals::{Arrivals, Window, recorded_s};
use crate::bench::args::LengthMode;
use crate::bench::drive::{Target, open_loop};
use crate::bench::plan::{Job, Shape};
use crate::bench::report::{Run, RunFacts};
use crate::files;
use crate::host::HostConfig;
use crate::http::{Api, Endpoint};
use crate::output::{Output, note};
use crate::progress::Progress;
use crate::settings::FileSettings;

/// How long requests arrive where nothing is said.
const DEFAULT_DURATION_S: f64 = 60.0;
/// Warm-up requests for a server of unknown size.
const URL_WARM_UP: u32 = 4;

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    /// What `load: 1` is here, in requests a second, where it was measured.
    capacity_per_s: Option<f64>,
    runs: Vec<Run>,
}

/// Everything that all runs share.
pub(crate) struct Bench {
    pub(crate) args: BenchArgs,
    pub(crate) records: Vec<TraceRecord>,
    ranker: Option<Ranker>,
}

/// Runs the command.
pub(crate) fn run(mut args: BenchArgs, file: FileSettings, output: &Output) -> Result<()> {
    args.check()?;
    args.engine = std::mem::take(&mut args.engine).or(file.engine);
    args.policy = std::mem::take(&mut args.policy).or(file.policy);
    args.ranker = std::mem::take(&mut args.ranker).or(file.ranker);
    for policy in &args.policies {
        // Wrong settings are refused here, and not when it is this policy's turn.
        HostConfig::new(policy, &args.engine, &args.policy, None)?;
    }
    if let Some(out) = &args.out {
        files::check_out(out)?;
    }
    let records = records(&args)?;
    let ranker = if args.policies.is_empty() { None } else { args.ranker.load()? };
    let bench = Bench { args, records, ranker };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let report = runtime.context("async runtime")?.block_on(bench.all())?;
    // Shown first: what took so long must not be lost to a disk that filled up meanwhile.
    output.result(&report, &table::render(&report.runs))?;
    if let Some(path) = &bench.args.out {
        write_json(path, &report)?;
    }
    if report.runs.iter().all(|run| run.failed == run.requests) {
        bail!("no request was answered");
    }
    Ok(())
}

fn records(args: &BenchArgs) -> Result<Vec<TraceRecord>> {
    let lengths = match args.lengths {
        LengthMode::Recorded => Lengths::Required,
        LengthMode::Free => Lengths::Optional,
    };
    let mut records = Vec::new();
    for path in &args.traces {
        for (place, record) in files::placed(path, lengths)? {
            if args.held_out && !held_out(&record) {
                continue;
            }
            if args.arrivals == Arrivals::Trace {
                recorded_s(&record).with_context(|| place.to_string())?;
            }
            records.push(record);
        }
    }
    if records.is_empty() {
        bail!("none of the trace's prompts is held out; leave --held-out away");
    }
    if let Some(oracle) = args.policies.iter().find(|policy| policy.starts_with("oracle"))
        && records.iter().any(|record| record.output_tokens.is_empty())
    {
        bail!(
            "{oracle} orders by the recorded lengths, and a request of the trace has none: collect them first"
        );
    }
    Ok(records)
}

fn write_json(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report).context("writing the result as JSON")?;
    write_whole(path, (text + "\n").as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

impl Bench {
    async fn all(&self) -> Result<Report> {
        match (&self.args.url, &self.args.arrivals) {
            (Some(url), _) => self.against_url(url).await,
            (None, Arrivals::Serial(_)) => embedded::serial(self).await,
            (None, _) => embedded::compare(self).await,
        }
    }

    async fn against_url(&self, url: &str) -> Result<Report> {
        let target = self.target(url, self.args.url_key.clone())?;
        let model = match &self.args.url_model {
            Some(model) => model.clone(),
            None => target.api.first_model().await?,
        };
        let shape = self.shape(model, self.args.outrank_hints);
        let mut runs = Vec::new();
        for repeat in 0..self.args.repeats {
            let facts = self.facts(url, repeat, None);
            let jobs = self.jobs(&shape, repeat, None)?;
            self.warm_up(&target, &shape, self.args.warm_up.unwrap_or(URL_WARM_UP)).await?;
            let samples = match self.args.arrivals {
                Arrivals::Serial(_) => embedded::alternate(&target, &jobs, 1, |_| {}).await.swap_remove(0),
                _ => open_loop(&target, jobs.clone(), &Progress::new(url, jobs.len())).await,
            };
            runs.push(Run::new(&facts, &jobs, &samples, self.args.slo.as_ref(), None));
        }
        Ok(Report { capacity_per_s: None, runs })
    }

    fn target(&self, url: &str, key: Option<String>) -> Result<Target> {
        let endpoint = if self.args.completions { Endpoint::Completions } else { Endpoint::Chat };
        Ok(Target { api: Api::new(url, key)?, endpoint, limit: Duration::from_secs_f64(self.args.timeout_s) })
    }

    fn shape(&self, model: String, hints: bool) -> Shape {
        Shape {
            endpoint: if self.args.completions { Endpoint::Completions } else { Endpoint::Chat },
            model,
            lengths: self.args.lengths,
            max_tokens: self.args.max_tokens,
            temperature: self.args.temperature,
            seed: self.args.seed,
            hints,
        }
    }

    fn seed(&self, repeat: u32) -> u64 {
        self.args.seed.wrapping_add(u64::from(repeat))
    }

    fn facts(&self, policy: &str, repeat: u32, load: Option<f64>) -> RunFacts {
        RunFacts {
            policy: policy.into(),
            arrivals: self.args.arrivals.to_string(),
            load,
            seed: self.seed(repeat),
            one_at_a_time: matches!(self.args.arrivals, Arrivals::Serial(_)),
        }
    }

    /// The requests of the runs with one seed: the same for every policy.
    fn jobs(&self, shape: &Shape, repeat: u32, capacity: Option<f64>) -> Result<Vec<Job>> {
        let seed = self.seed(repeat);
        let window = Window {
            duration_s: self.args.duration_s.unwrap_or(DEFAULT_DURATION_S),
            requests: self.args.requests.map(|n| n as usize),
            rate: self.args.rate,
            seed,
        };
        let arrivals = self.args.arrivals.schedule(&self.records, &window, capacity)?;
        if arrivals.len() > self.records.len() {
            note(&format!(
                "{} requests, but the trace has {}: prompts repeat (a prefix cache would notice)",
                arrivals.len(),
                self.records.len()
            ));
        }
        Shape { seed, ..shape.clone() }.jobs(&self.records, &arrivals)
    }

    /// The ranker's prediction for each record, in tokens.
    fn predictions(&self) -> Option<Vec<f64>> {
        let ranker = self.ranker.as_ref()?;
        Some(
            self.records
                .iter()
                .map(|record| f64::from(ranker.score(&record.text()).median_tokens()))
                .collect(),
        )
    }

    /// Sends requests whose latencies nobody reads: pages are touched, step costs are learned, connections are open.
    async fn warm_up(&self, target: &Target, shape: &Shape, requests: u32) -> Result<()> {
        if requests == 0 {
            return Ok(());
        }
        let jobs = embedded::warm_up_jobs(shape, requests)?;
        let samples = open_loop(target, jobs, &Progress::new("warm-up", requests as usize)).await;
        let failures: Vec<&String> = samples.iter().filter_map(|sample| sample.failure.as_ref()).collect();
        match failures.first() {
            Some(failure) if failures.len() == samples.len() => {
                bail!("the server answers nothing: {failure}")
            }
            Some(failure) => {
                note(&format!("{} of {requests} warm-up requests failed: {failure}", failures.len()));
            }
            None => {}
        }
        Ok(())
    }
}
