//! Metrics of requests, by the same names in every host.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::LatencyHistogram;

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
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
    const ALL: [Self; 4] = [Self::Completed, Self::Cancelled, Self::Failed, Self::Rejected];

    /// Its name in metrics and journals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

/// Requests and their latencies, in seconds. Where a request has several outputs, `queue_wait`, `ttft` and `itl` are of each.
#[derive(Debug)]
pub struct RequestMetrics {
    requests: Family<OutcomeLabel, Counter>,
    /// Those of `requests`, in the order of [`Outcome`]'s variants: counting one takes no lock.
    outcomes: [Counter; 4],
    rejections: Family<ReasonLabel, Counter>,
    /// From arrival to the first seat, in the engine or at an upstream.
    pub queue_wait: LatencyHistogram,
    /// From arrival to the first output.
    pub ttft: LatencyHistogram,
    /// Between two outputs.
    pub itl: LatencyHistogram,
    /// From arrival to the end of the answer.
    pub e2e: LatencyHistogram,
    /// Prompt tokens, as far as they are known.
    pub prompt_tokens: Counter,
    /// Output tokens.
    pub generation_tokens: Counter,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let requests: Family<OutcomeLabel, Counter> = Family::default();
        let counter =
            |outcome: Outcome| requests.get_or_create_owned(&OutcomeLabel { outcome: outcome.name() });
        Self {
            outcomes: Outcome::ALL.map(counter),
            requests,
            rejections: Family::default(),
            queue_wait: LatencyHistogram::default(),
            ttft: LatencyHistogram::default(),
            itl: LatencyHistogram::default(),
            e2e: LatencyHistogram::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
        }
    }
}

impl RequestMetrics {
    /// Makes them part of what is rendered.
    pub fn register(&self, to: &mut Registry) {
        to.register("requests", "Generation requests by what became of them", self.requests.clone());
        to.register("rejections", "Refused requests by error code", self.rejections.clone());
        let latencies = [
            (
                "queue_wait_seconds",
                "From arrival to a seat, or to being sent to an upstream",
                &self.queue_wait,
            ),
            ("ttft_seconds", "From arrival to the first output", &self.ttft),
            ("itl_seconds", "Between two outputs of an answer", &self.itl),
            ("e2e_seconds", "From arrival to the end of the answer", &self.e2e),
        ];
        for (name, help, histogram) in latencies {
            to.register(name, help, histogram.clone());
        }
        to.register("prompt_tokens", "Prompt tokens, as far as they are known", self.prompt_tokens.clone());
        to.register("generation_tokens", "Output tokens generated", self.generation_tokens.clone());
    }

    /// Counts a generation request that has ended or was not accepted.
    pub fn count_request(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// Counts a refusal.
    pub fn count_rejection(&self, reason: &'static str) {
        self.rejections.get_or_create(&ReasonLabel { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn every_outcome_is_there_from_the_start_and_counted_under_its_own_name() {
        let metrics = RequestMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        for (times, outcome) in Outcome::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.count_request(outcome));
        }
        metrics.count_rejection("queue_full");
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry).unwrap();
        for line in [
            r#"requests_total{outcome="completed"} 0"#,
            r#"requests_total{outcome="cancelled"} 1"#,
            r#"requests_total{outcome="failed"} 2"#,
            r#"requests_total{outcome="rejected"} 3"#,
            r#"rejections_total{reason="queue_full"} 1"#,
        ] {
            assert!(rendered.lines().any(|found| found == line), "{line}:\n{rendered}");
        }
    }
}
