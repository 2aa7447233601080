//! `outrank simulate`.

mod args;
mod cases;
mod csv;
mod learning;
mod report;
pub(crate) mod run;
mod spec;
mod table;
pub(crate) mod workload;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use outrank_ranker::trace::write_whole;
use outrank_sim::{Job, Profile};
use serde::Serialize;

pub(crate) use args::SimulateArgs;

use crate::arrivals::{Arrival, Arrivals, Window};
use crate::files::check_out;
use crate::output::{Output, note};
use crate::progress::Progress;
use crate::settings::FileSettings;
use crate::simulate::run::{Facts, Run};
use crate::simulate::workload::Workload;

/// How long requests arrive where nothing is said.
const DEFAULT_DURATION_S: f64 = 60.0;
/// Requests that capacity is measured with, at least, and per seat.
const CAPACITY_REQUESTS: usize = 2000;
const CAPACITY_REQUESTS_PER_SEAT: usize = 8;

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    /// Requests a second that each profile serves while requests wait, under FCFS.
    capacity_per_s: Vec<(String, f64)>,
    runs: Vec<Run>,
}

/// One profile with its capacity.
pub(crate) struct Engine {
    profile: Profile,
    capacity_per_s: f64,
}

/// Requests that several policies get.
pub(crate) struct Case<'a> {
    engine: &'a Engine,
    workload: &'a Workload,
    arrivals: String,
    load: Option<f64>,
    seed: u64,
    /// Which records arrive when.
    times: Vec<Arrival>,
    jobs: Vec<Job>,
    /// Tau-b between predictions and lengths.
    tau_b: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(mut args: SimulateArgs, file: FileSettings, output: &Output) -> Result<()> {
    args.take_journal();
    args.check()?;
    for path in [&args.csv, &args.report, &args.answers].into_iter().flatten() {
        check_out(path)?;
    }
    args.ranker = std::mem::take(&mut args.ranker).or(file.ranker);
    let workload = Workload::read(&args)?;
    let engines = engines(&args, &workload)?;
    let cases = cases(&args, &workload, &engines)?;
    let runs = run_all(&args, &cases)?;
    let capacity_per_s =
        engines.iter().map(|engine| (engine.profile.name.clone(), engine.capacity_per_s)).collect();
    let report = Report { capacity_per_s, runs };
    output.result(&report, &table::render(&report.runs))?;
    if let Some(path) = &args.csv {
        write(path, &csv::render(&report.runs))?;
    }
    if let Some(path) = &args.report {
        write(path, &report::render(&report::facts(&args, &report), &report))?;
    }
    if let Some(path) = &args.answers {
        write(path, &csv::answers(&report.runs)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_whole(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn engines(args: &SimulateArgs, workload: &Workload) -> Result<Vec<Engine>> {
    let mut engines = Vec::new();
    for name in &args.profiles {
        let mut profile = Profile::load(name)?;
        if let Some(seats) = args.seats {
            profile = profile.with_seats(seats)?;
        }
        let requests = CAPACITY_REQUESTS.max(CAPACITY_REQUESTS_PER_SEAT * profile.capacity.seats as usize);
        let jobs = workload.jobs(&profile, &workload.burst(requests), 0);
        let capacity_per_s = run::capacity_per_s(&profile, &jobs)?;
        note(&format!("{}: capacity {capacity_per_s:.2} requests/s", profile.name));
        engines.push(Engine { profile, capacity_per_s });
    }
    Ok(engines)
}

/// Every profile with every pattern of arrivals, load and seed.
fn cases<'a>(args: &SimulateArgs, workload: &'a Workload, engines: &'a [Engine]) -> Result<Vec<Case<'a>>> {
    let mut cases = Vec::new();
    for engine in engines {
        for arrivals in &args.arrivals {
            let loads: Vec<Option<f64>> = match arrivals {
                Arrivals::Csv(_) | Arrivals::Trace if !args.load.is_empty() => {
                    args.load.iter().copied().map(Some).collect()
                }
                Arrivals::Load(load) => vec![Some(*load)],
                _ => vec![None],
            };
            for load in loads {
                for seed in 1..=args.seeds {
                    let rate = match arrivals {
                        Arrivals::Csv(_) | Arrivals::Trace => load.map(|load| load * engine.capacity_per_s),
                        _ => None,
                    };
                    let window = Window {
                        duration_s: args.duration_s.unwrap_or(DEFAULT_DURATION_S),
                        requests: args.requests.map(|n| n as usize),
                        rate,
                        seed,
                    };
                    let times = workload.schedule(arrivals, &window, engine.capacity_per_s)?;
                    let jobs = workload.jobs(&engine.profile, &times, seed);
                    let tau_b = workload::tau_b(&jobs);
                    let arrivals = arrivals.to_string();
                    cases.push(Case { engine, workload, arrivals, load, seed, times, jobs, tau_b });
                }
            }
        }
    }
    Ok(cases)
}

/// Every case under every policy, on all cores; the order of the result does not depend on who was first.
fn run_all(args: &SimulateArgs, cases: &[Case<'_>]) -> Result<Vec<Run>> {
    let total = cases.len() * args.policies.len();
    let threads = args.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        |threads| threads as usize,
    );
    let progress = Progress::new("simulate", total);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<Run>)>> = Mutex::new(Vec::with_capacity(total));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(total) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= total {
                        break;
                    }
                    let case = &cases[at / args.policies.len()];
                    let policy = &args.policies[at % args.policies.len()];
                    let run = run_one(args, case, policy);
                    if let Ok(mut results) = results.lock() {
                        results.push((at, run));
                    }
                    progress.step();
                }
            });
        }
    });
    drop(progress);
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, run)| run).collect()
}

fn run_one(args: &SimulateArgs, case: &Case<'_>, policy: &spec::PolicySpec) -> Result<Run> {
    let last_s = case.jobs.last().map_or(0.0, |job| job.arrival_s);
    let facts = Facts {
        policy: policy.to_string(),
        profile: case.engine.profile.name.clone(),
        arrivals: case.arrivals.clone(),
        load: case.load,
        offered_per_s: (last_s > 0.0).then(|| case.jobs.len() as f64 / last_s),
        seed: case.seed,
    };
    let run = run::run(args, case, policy, facts)
        .with_context(|| format!("{policy}, {}, seed {}", case.arrivals, case.seed))?;
    Ok(Run { tau_b: case.tau_b, ..run })
}
