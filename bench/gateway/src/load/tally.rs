//! What became of the requests.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use outrank_gateway_bench::procfs::{Usage, usage};
use outrank_gateway_bench::summary::Summary;

use crate::client::micros;

/// How one request went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// 0 if no answer came.
    pub(crate) status: u16,
    pub(crate) retry_after: bool,
    pub(crate) ttft_us: u32,
    pub(crate) e2e_us: u32,
    pub(crate) error: Option<String>,
}

/// What became of many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ok: u64,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
    refused_with_retry_after: u64,
    ttft_us: Vec<u32>,
    e2e_us: Vec<u32>,
    refused_us: Vec<u32>,
    /// From the mock's sending of a token to its arrival here.
    pub(crate) transit_us: Vec<u32>,
}

impl Outcome {
    pub(crate) fn error(what: String, due: Instant) -> Self {
        let e2e_us = micros(due.elapsed());
        Self { status: 0, retry_after: false, ttft_us: e2e_us, e2e_us, error: Some(what) }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        *self.statuses.entry(outcome.status).or_default() += 1;
        if let Some(error) = outcome.error {
            *self.errors.entry(error).or_default() += 1;
        } else if outcome.status == 200 {
            self.ok += 1;
            self.ttft_us.push(outcome.ttft_us);
            self.e2e_us.push(outcome.e2e_us);
        } else {
            self.refused_us.push(outcome.e2e_us);
            self.refused_with_retry_after += u64::from(outcome.retry_after);
        }
    }

    /// Adds what another counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.ok += other.ok;
        self.refused_with_retry_after += other.refused_with_retry_after;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.ttft_us.extend(other.ttft_us);
        self.e2e_us.extend(other.e2e_us);
        self.refused_us.extend(other.refused_us);
        self.transit_us.extend(other.transit_us);
    }

    /// As JSON, for so many seconds of measurement. Latencies in milliseconds.
    pub(crate) fn report(&mut self, duration_s: f64) -> Value {
        json!({
            "duration_s": duration_s,
            "ok": self.ok,
            "rate_per_s": self.ok as f64 / duration_s,
            "tokens_per_s": self.transit_us.len() as f64 / duration_s,
            "statuses": self.statuses,
            "errors": self.errors,
            "refused_with_retry_after": self.refused_with_retry_after,
            "ttft_ms": Summary::of_us(&mut self.ttft_us),
            "e2e_ms": Summary::of_us(&mut self.e2e_us),
            "refused_ms": Summary::of_us(&mut self.refused_us),
            "transit_ms": Summary::of_us(&mut self.transit_us),
        })
    }
}

/// What processes used during a run.
#[derive(Debug)]
pub(crate) struct Meter(Vec<(u32, Usage)>);

impl Meter {
    /// Starts now.
    pub(crate) fn start(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|&pid| Some((pid, usage(pid)?))).collect())
    }

    /// CPU time since the start, memory and files now, by process.
    pub(crate) fn report(&self) -> Value {
        let rows = self.0.iter().filter_map(|&(pid, before)| {
            let after = usage(pid)?;
            let cpu_s = after.cpu_s - before.cpu_s;
            Some((
                pid.to_string(),
                json!({"cpu_s": cpu_s, "rss_kib": after.rss_kib, "open_files": after.open_files}),
            ))
        });
        Value::Object(rows.collect())
    }
}
