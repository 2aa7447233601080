//! All metrics of the server, under the prefix `outrank_`.
//!
//! What is waiting and running now is read from the scheduler when someone asks: a client that vanishes cannot
//! leave a gauge behind.

use std::sync::atomic::Ordering;

use outrank_core::{Counters, Trust};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use outrank_http::HostMetrics;

/// The metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Of the latencies, `e2e` is of the whole request, the others of each output.
    pub(crate) host: HostMetrics,
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
    /// Metrics at zero; `replays` says whether savings are counted.
    pub(crate) fn new(replays: bool) -> Self {
        let mut metrics = Self { registry: Registry::with_prefix("outrank"), ..Self::default() };
        metrics.host.register(&mut metrics.registry, replays);
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let (to, scheduler) = (&mut self.registry, &self.scheduler);
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

    /// All metrics as OpenMetrics text.
    pub(crate) fn render(&self, counters: &Counters, trust: Trust) -> Result<String, std::fmt::Error> {
        self.host.trust.refresh(trust);
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
