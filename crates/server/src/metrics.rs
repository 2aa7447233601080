//! All metrics of the server, under the prefix `outrank_`.
//!
//! What is waiting and running now is read from the scheduler when someone asks: a client that vanishes cannot
//! leave a gauge behind.

use std::sync::atomic::Ordering;

use outrank_core::Counters;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use outrank_http::{ScorerMetrics, latency};

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Answered in full.
    Completed,
    /// The client left.
    Cancelled,
    /// Accepted, and then not finished.
    Failed,
    /// Not accepted.
    Rejected,
}

impl Outcome {
    fn label(self) -> OutcomeLabel {
        let outcome = match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        };
        OutcomeLabel { outcome }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The metrics. Latencies are of single outputs (a request with `n` of them counts `n` times), except `e2e`.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabel, Counter>,
    rejections: Family<ReasonLabel, Counter>,
    pub(crate) queue_wait: Histogram,
    pub(crate) ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) e2e: Histogram,
    pub(crate) eta_error: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    /// What scoring takes, and what the predictor has learned.
    pub(crate) scorer: ScorerMetrics,
    scheduler: SchedulerMetrics,
}

/// Copies of the scheduler's own counters, refreshed by [`Metrics::render`].
#[derive(Debug, Default)]
struct SchedulerMetrics {
    queue_depth: Gauge,
    running: Gauge,
    kv_used_blocks: Gauge,
    kv_total_blocks: Gauge,
    preemptions: Counter,
    promotions: Counter,
    overtakes: Counter,
}

impl Metrics {
    /// Metrics at zero.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("outrank"),
            requests: Family::default(),
            rejections: Family::default(),
            queue_wait: latency(),
            ttft: latency(),
            itl: latency(),
            e2e: latency(),
            eta_error: latency(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            scorer: ScorerMetrics::default(),
            scheduler: SchedulerMetrics::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let (to, scheduler) = (&mut self.registry, &self.scheduler);
        to.register("requests", "Generation requests by what became of them", self.requests.clone());
        to.register("rejections", "Refused requests by error code", self.rejections.clone());
        to.register("queue_wait_seconds", "From arrival to the first seat", self.queue_wait.clone());
        to.register("ttft_seconds", "From arrival to the first output token", self.ttft.clone());
        to.register("itl_seconds", "Between two tokens of an output", self.itl.clone());
        to.register("e2e_seconds", "From arrival to the last token of the last output", self.e2e.clone());
        to.register("eta_error_seconds", "Between expected and true end, either way", self.eta_error.clone());
        to.register("prompt_tokens", "Prompt tokens accepted", self.prompt_tokens.clone());
        to.register("generation_tokens", "Output tokens generated", self.generation_tokens.clone());
        self.scorer.register(to);
        to.register("queue_depth", "Outputs waiting for a seat", scheduler.queue_depth.clone());
        to.register("running", "Outputs with a seat", scheduler.running.clone());
        to.register("kv_used_blocks", "KV blocks held", scheduler.kv_used_blocks.clone());
        to.register("kv_total_blocks", "KV blocks in all", scheduler.kv_total_blocks.clone());
        to.register("preemptions", "Times a running output was paused", scheduler.preemptions.clone());
        to.register("promotions", "Promotions by starvation prevention", scheduler.promotions.clone());
        to.register(
            "overtakes",
            "Pairs in which the later arrival started first",
            scheduler.overtakes.clone(),
        );
    }

    /// Counts a generation request that has ended or was not accepted.
    pub(crate) fn count_request(&self, outcome: Outcome) {
        self.requests.get_or_create(&outcome.label()).inc();
    }

    /// Counts a refusal.
    pub(crate) fn count_rejection(&self, reason: &'static str) {
        self.rejections.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// All metrics as OpenMetrics text.
    pub(crate) fn render(&self, counters: &Counters) -> Result<String, std::fmt::Error> {
        self.scheduler.refresh(counters);
        let mut rendered = String::new();
        text::encode(&mut rendered, &self.registry)?;
        Ok(rendered)
    }
}

impl SchedulerMetrics {
    fn refresh(&self, counters: &Counters) {
        let gauge = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.queue_depth, counters.waiting as u64);
        gauge(&self.running, counters.running as u64);
        gauge(&self.kv_used_blocks, counters.kv_used_blocks.into());
        gauge(&self.kv_total_blocks, counters.kv_total_blocks.into());
        self.preemptions.inner().store(counters.preemptions, Ordering::Relaxed);
        self.promotions.inner().store(counters.promotions, Ordering::Relaxed);
        self.overtakes.inner().store(counters.overtakes, Ordering::Relaxed);
    }
}
