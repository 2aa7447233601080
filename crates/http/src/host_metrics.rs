//! The metrics that every host has.

use prometheus_client::registry::Registry;

use crate::{RequestMetrics, ScorerMetrics, Shadow, TrustMetrics};

/// The metrics that every host has.
#[derive(Debug, Default)]
pub struct HostMetrics {
    /// Outcomes and latencies of requests.
    pub requests: RequestMetrics,
    /// How far predictions are to be trusted.
    pub trust: TrustMetrics,
    /// What the policy saves.
    pub shadow: Shadow,
    /// What scoring takes, and what the predictor has learned.
    pub scorer: ScorerMetrics,
}

impl HostMetrics {
    /// Makes them part of a registry; what is saved only where it is counted.
    pub fn register(&self, to: &mut Registry, counts_savings: bool) {
        self.requests.register(to);
        self.trust.register(to);
        self.scorer.register(to);
        if counts_savings {
            self.shadow.register(to);
        }
    }
}
