//! What the mock knows and counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use crate::Args;
use crate::fault::{Fault, Script};
use crate::seats::Seats;

/// Requests that the log keeps, at most; later ones are only counted.
const MAX_LOGGED: usize = 1_000_000;

/// The mock server.
#[derive(Debug)]
pub(crate) struct Mock {
    pub(crate) args: Args,
    pub(crate) seats: Arc<Seats>,
    script: Mutex<Script>,
    log: Mutex<Vec<Logged>>,
    pub(crate) counts: Counts,
}

/// Generation requests, by what became of them.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) connections: AtomicU64,
}

/// A request that carried a `user`, for tests of order, loss and doubling.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Logged {
    pub(crate) user: String,
    pub(crate) priority: Option<i64>,
    pub(crate) arrived_ns: u64,
    pub(crate) seated_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) outcome: &'static str,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mock {
    pub(crate) fn new(args: Args) -> Self {
        let seats = Seats::new(args.seats);
        Self { args, seats, script: Mutex::default(), log: Mutex::default(), counts: Counts::default() }
    }

    /// The fault that the next request suffers by script.
    pub(crate) fn next_fault(&self) -> Option<Fault> {
        lock(&self.script).next()
    }

    /// Sets the script from `{"fault": TEXT or null, "count": N or null}`. False if it is not understood.
    pub(crate) fn set_script(&self, asked: &Value) -> bool {
        let fault = match &asked["fault"] {
            Value::Null => None,
            Value::String(text) => match Fault::parse(text) {
                None => return false,
                fault => fault,
            },
            _ => return false,
        };
        lock(&self.script).set(fault, asked["count"].as_u64());
        true
    }

    pub(crate) fn log(&self, entry: Logged) {
        let mut log = lock(&self.log);
        if log.len() < MAX_LOGGED {
            log.push(entry);
        }
    }

    pub(crate) fn logged(&self) -> Value {
        json!(*lock(&self.log))
    }

    /// Forgets log, counts, script and peaks.
    pub(crate) fn reset(&self) {
        lock(&self.log).clear();
        lock(&self.script).set(None, None);
        let counts = &self.counts;
        for counter in [&counts.received, &counts.finished, &counts.left, &counts.failed, &counts.tokens] {
            counter.store(0, Ordering::Relaxed);
        }
        self.seats.reset_peaks();
    }

    pub(crate) fn stats(&self) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (counts, seats) = (&self.counts, self.seats.occupancy());
        json!({
            "received": count(&counts.received), "finished": count(&counts.finished), "left": count(&counts.left),
            "failed": count(&counts.failed), "tokens": count(&counts.tokens),
            "connections": count(&counts.connections), "running": seats.running, "waiting": seats.waiting,
            "peak_running": seats.peak_running, "peak_waiting": seats.peak_waiting,
        })
    }

    /// The gauges of vLLM that gateways read.
    pub(crate) fn metrics(&self) -> String {
        let (seats, model) = (self.seats.occupancy(), &self.args.model);
        let gauge = |name: &str, value: f64| {
            format!("# TYPE {name} gauge\n{name}{{model_name=\"{model}\"}} {value}\n")
        };
        let filled =
            seats.running as f64 / if self.args.seats == 0 { 1024.0 } else { self.args.seats as f64 };
        [
            gauge("vllm:num_requests_running", seats.running as f64),
            gauge("vllm:num_requests_waiting", seats.waiting as f64),
            gauge("vllm:kv_cache_usage_perc", filled.min(1.0)),
        ]
        .concat()
    }
}
