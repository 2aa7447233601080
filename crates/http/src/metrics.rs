//! Metrics that both hosts have, and how they are measured.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::Learned;
use crate::request_metrics::ReasonLabel;

/// The content type of rendered metrics.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets of latencies.
const LATENCY_BUCKETS: usize = 19;

/// Why a prompt got no score.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unscored {
    /// Scoring has taken the CPU time that it may.
    Budget,
    /// Too many prompts wait to be scored.
    QueueFull,
    /// It did not come in time.
    Deadline,
    /// Its request waits for nothing, and the scoring thread is busy.
    Busy,
}

impl Unscored {
    const ALL: [Self; 4] = [Self::Budget, Self::QueueFull, Self::Deadline, Self::Busy];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::QueueFull => "queue_full",
            Self::Deadline => "deadline",
            Self::Busy => "busy",
        }
    }
}

/// What scoring takes, and what the predictor has learned.
#[derive(Clone, Debug)]
pub struct ScorerMetrics {
    /// From asking for a score to having it.
    pub score_latency: Histogram,
    unscored: Family<ReasonLabel, Counter>,
    /// Those of `unscored`, in the order of [`Unscored`]'s variants: counting one takes no lock.
    reasons: [Counter; 4],
    answers: Counter,
    updates: Counter,
    tau_b: Gauge<f64, AtomicU64>,
}

impl Default for ScorerMetrics {
    fn default() -> Self {
        let unscored: Family<ReasonLabel, Counter> = Family::default();
        let counter = |why: Unscored| unscored.get_or_create_owned(&ReasonLabel { reason: why.name() });
        Self {
            score_latency: Histogram::new(exponential_buckets(0.000_02, 2.0, 16)),
            reasons: Unscored::ALL.map(counter),
            unscored,
            answers: Counter::default(),
            updates: Counter::default(),
            tau_b: Gauge::default(),
        }
    }
}

impl ScorerMetrics {
    /// Makes them part of what is rendered.
    pub fn register(&self, to: &mut Registry) {
        to.register(
            "score_latency_seconds",
            "From asking for a score to having it",
            self.score_latency.clone(),
        );
        to.register("unscored", "Prompts that got no score, by reason", self.unscored.clone());
        to.register("learner_answers", "Answers that the ranker learns from", self.answers.clone());
        to.register("learner_updates", "Times that the ranker changed by them", self.updates.clone());
        to.register(
            "learner_tau_b",
            "Kendall's tau-b of the learned ranker on answers it did not learn from; 0 before there is one",
            self.tau_b.clone(),
        );
    }

    /// Counts a prompt that got no score.
    pub(crate) fn count_unscored(&self, why: Unscored) {
        self.reasons[why as usize].inc();
    }

    #[cfg(test)]
    pub(crate) fn unscored(&self, why: Unscored) -> u64 {
        self.reasons[why as usize].get()
    }

    /// Notes what the predictor has learned; called whenever it hears of an answer.
    pub(crate) fn count_learned(&self, learned: &Learned) {
        self.answers.inner().store(learned.answers, Ordering::Relaxed);
        self.updates.inner().store(learned.updates, Ordering::Relaxed);
        self.tau_b.set(learned.tau_b.unwrap_or(0.0));
    }
}

/// A histogram with buckets from a millisecond to a little over four minutes, without a lock: observations are counted with single
/// atomic additions, or collected in a [`LocalLatency`] and added together, so that nothing is shared between two tokens of a stream.
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Observations of each bucket; the last is beyond all bounds.
    counts: [AtomicU64; LATENCY_BUCKETS + 1],
    sum_micros: AtomicU64,
}

/// Observations of one request, not yet counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalLatency {
    counts: [u32; LATENCY_BUCKETS + 1],
    sum_micros: u64,
}

impl LocalLatency {
    /// Notes one.
    pub fn observe(&mut self, seconds: f64) {
        self.counts[bucket_of(seconds)] += 1;
        self.sum_micros += micros(seconds);
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn observe(&self, seconds: f64) {
        self.0.counts[bucket_of(seconds)].fetch_add(1, Ordering::Relaxed);
        self.0.sum_micros.fetch_add(micros(seconds), Ordering::Relaxed);
    }

    /// Counts those of one request.
    pub fn add(&self, local: &LocalLatency) {
        for (count, &more) in self.0.counts.iter().zip(&local.counts) {
            if more > 0 {
                count.fetch_add(more.into(), Ordering::Relaxed);
            }
        }
        self.0.sum_micros.fetch_add(local.sum_micros, Ordering::Relaxed);
    }
}

/// The bucket of an observation: bound n is 2^n milliseconds, itself included.
fn bucket_of(seconds: f64) -> usize {
    let mut bound_s = 0.001;
    for bucket in 0..LATENCY_BUCKETS {
        if seconds <= bound_s {
            return bucket;
        }
        bound_s *= 2.0;
    }
    LATENCY_BUCKETS
}

fn micros(seconds: f64) -> u64 {
    // A cast saturates; nothing negative is measured.
    (seconds * 1e6) as u64
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for LatencyHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = [(f64::INFINITY, 0); LATENCY_BUCKETS + 1];
        let mut bound_s = 0.001;
        for (bucket, count) in buckets.iter_mut().zip(&self.0.counts) {
            *bucket = (bound_s, count.load(Ordering::Relaxed));
            bound_s *= 2.0;
        }
        buckets[LATENCY_BUCKETS].0 = f64::INFINITY;
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum_s = self.0.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn every_reason_for_no_score_is_counted_under_its_own_name() {
        let (metrics, mut registry) = (ScorerMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        for (times, why) in Unscored::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.count_unscored(why));
        }
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry).unwrap();
        for line in [
            r#"unscored_total{reason="budget"} 0"#,
            r#"unscored_total{reason="queue_full"} 1"#,
            r#"unscored_total{reason="deadline"} 2"#,
            r#"unscored_total{reason="busy"} 3"#,
        ] {
            assert!(rendered.lines().any(|found| found == line), "{line}:\n{rendered}");
        }
    }

    #[test]
    fn it_renders_what_the_ordinary_histogram_renders() {
        let (mut ours, mut theirs) = (Registry::default(), Registry::default());
        let (lockless, ordinary) =
            (LatencyHistogram::default(), Histogram::new(exponential_buckets(0.001, 2.0, 19)));
        ours.register("it", "It", lockless.clone());
        theirs.register("it", "It", ordinary.clone());
        let mut local = LocalLatency::default();
        for (index, seconds) in [0.0, 0.001, 0.0015, 0.25, 3.0, 262.0, 263.0, 1000.0].into_iter().enumerate()
        {
            ordinary.observe(seconds);
            if index % 2 == 0 { lockless.observe(seconds) } else { local.observe(seconds) }
        }
        lockless.add(&local);
        let render = |registry: &Registry| {
            let mut text = String::new();
            text::encode(&mut text, registry).unwrap();
            text
        };
        assert_eq!(render(&ours), render(&theirs));
    }
}
