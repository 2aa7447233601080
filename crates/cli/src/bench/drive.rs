//! Sends the requests of a run.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bench::plan::Job;
use crate::bench::stream::{Sample, request};
use crate::http::{Api, Endpoint};
use crate::progress::Progress;

/// Between the start of a run and its first arrival: time to set up the tasks.
const LEAD: Duration = Duration::from_millis(20);

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The server.
    pub(crate) api: Api,
    /// Which API.
    pub(crate) endpoint: Endpoint,
    /// Longest wait for one answer.
    pub(crate) limit: Duration,
}

/// Sends every job at its time, whatever became of those before it (open loop), and waits for all answers. Samples come
/// back in the order of the jobs.
pub(crate) async fn open_loop(target: &Target, jobs: Vec<Job>, progress: &Progress) -> Vec<Sample> {
    let target = Arc::new(target.clone());
    let start = Instant::now() + LEAD;
    let mut running = JoinSet::new();
    let mut samples = Vec::with_capacity(jobs.len());
    for job in jobs {
        let due = start + Duration::from_secs_f64(job.arrival_s);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => break,
                Some(done) = running.join_next() => keep(&mut samples, done, progress),
            }
        }
        let target = Arc::clone(&target);
        running.spawn(async move { request(&target.api, target.endpoint, &job, due, target.limit).await });
    }
    while let Some(done) = running.join_next().await {
        keep(&mut samples, done, progress);
    }
    samples.sort_by_key(|sample| sample.job);
    samples
}

/// Sends one request and waits for its answer. Arrival is when it is sent, in seconds since `start`.
pub(crate) async fn one(target: &Target, job: &Job, start: Instant) -> Sample {
    let due = Instant::now();
    let sample = request(&target.api, target.endpoint, job, due, target.limit).await;
    Sample { arrival_s: due.duration_since(start).as_secs_f64(), ..sample }
}

fn keep(samples: &mut Vec<Sample>, done: Result<Sample, tokio::task::JoinError>, progress: &Progress) {
    // A task ends in an error only by a panic, which is a bug and already on stderr; the count of jobs shows it.
    if let Ok(sample) = done {
        samples.push(sample);
    }
    progress.step();
}
