//! All metrics of the gateway, under the prefix `outrank_`; the names that the embedded server has too mean the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use outrank_http::{LatencyHistogram, ScorerMetrics};
use outrank_ranker::kendall_tau_b;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::desk::Desk;
use crate::tenants::Class;

/// Answers over which tau-b is taken.
const TAU_ANSWERS: usize = 512;

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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ErrorLabel {
    upstream: String,
    error: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

type Float = Gauge<f64, AtomicU64>;

/// The metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    registry: Registry,
    completed: Counter,
    cancelled: Counter,
    failed: Counter,
    rejected: Counter,
    rejections: Family<ReasonLabel, Counter>,
    tenant_tokens: Family<TenantLabel, Counter>,
    upstream_errors: Family<ErrorLabel, Counter>,
    pub(crate) queue_wait: LatencyHistogram,
    pub(crate) ttft: LatencyHistogram,
    pub(crate) itl: LatencyHistogram,
    pub(crate) e2e: LatencyHistogram,
    pub(crate) eta_error: LatencyHistogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    pub(crate) retries: Counter,
    pub(crate) malformed_lines: Counter,
    pub(crate) connections: Gauge,
    pub(crate) journal_lines: Counter,
    pub(crate) journal_errors: Counter,
    pub(crate) reloads: Counter,
    pub(crate) saved_s: Float,
    /// What scoring takes, and what the predictor has learned.
    pub(crate) scorer: ScorerMetrics,
    predicted: Mutex<VecDeque<(f64, f64)>>,
    state: StateMetrics,
}

/// What the desk knows, refreshed by [`Metrics::render`].
#[derive(Debug, Default)]
struct StateMetrics {
    queue_depth: Family<ClassLabel, Gauge>,
    running: Gauge,
    overtakes: Counter,
    backlog: Float,
    tau: Float,
    trusted: Gauge,
    up: Family<UpstreamLabel, Gauge>,
    breaker: Family<UpstreamLabel, Gauge>,
    ejections: Family<UpstreamLabel, Counter>,
    in_flight: Family<UpstreamLabel, Gauge>,
    window: Family<UpstreamLabel, Gauge>,
    work: Family<UpstreamLabel, Float>,
}

impl Metrics {
    /// Metrics at zero.
    pub(crate) fn new() -> Self {
        let mut metrics = Self { registry: Registry::with_prefix("outrank"), ..Self::default() };
        metrics.register_requests();
        metrics.register_state();
        metrics
    }

    fn register_requests(&mut self) {
        let to = &mut self.registry;
        let requests: Family<OutcomeLabel, Counter> = Family::default();
        for (outcome, counter) in [
            (Outcome::Completed, &mut self.completed),
            (Outcome::Cancelled, &mut self.cancelled),
            (Outcome::Failed, &mut self.failed),
            (Outcome::Rejected, &mut self.rejected),
        ] {
            *counter = requests.get_or_create(&OutcomeLabel { outcome: outcome.name() }).clone();
        }
        to.register("requests", "Generation requests by what became of them", requests);
        to.register("rejections", "Refused requests by error code", self.rejections.clone());
        to.register(
            "queue_wait_seconds",
            "From arrival to being sent to an upstream",
            self.queue_wait.clone(),
        );
        to.register("ttft_seconds", "From arrival to the first output", self.ttft.clone());
        to.register("itl_seconds", "Between two outputs of a stream", self.itl.clone());
        to.register("e2e_seconds", "From arrival to the end of the answer", self.e2e.clone());
        to.register("eta_error_seconds", "Between expected and true end, either way", self.eta_error.clone());
        to.register("prompt_tokens", "Prompt tokens, as far as upstreams tell", self.prompt_tokens.clone());
        to.register("generation_tokens", "Output tokens generated", self.generation_tokens.clone());
        to.register("tenant_generation_tokens", "Output tokens by tenant", self.tenant_tokens.clone());
        to.register("retries", "Requests sent again after an upstream failed them", self.retries.clone());
        to.register("upstream_errors", "Failures of upstreams by kind", self.upstream_errors.clone());
        to.register("malformed_lines", "Lines of streams that are no events", self.malformed_lines.clone());
        to.register("connections", "Client connections open", self.connections.clone());
        to.register("journal_lines", "Requests written to the journal", self.journal_lines.clone());
        to.register(
            "journal_errors",
            "Requests that could not be written to the journal",
            self.journal_errors.clone(),
        );
        to.register("reloads", "Times that settings were reloaded", self.reloads.clone());
        to.register(
            "shadow_saved_seconds",
            "Waiting that the policy saved against arrival order, or would have saved in shadow mode, by replay of what was served",
            self.saved_s.clone(),
        );
        self.scorer.register(to);
    }

    fn register_state(&mut self) {
        let (to, state) = (&mut self.registry, &self.state);
        to.register("queue_depth", "Requests that wait, by class", state.queue_depth.clone());
        to.register("running", "Requests at upstreams", state.running.clone());
        to.register("overtakes", "Pairs in which the later arrival started first", state.overtakes.clone());
        to.register(
            "backlog_seconds",
            "Expected time until all who wait have been served",
            state.backlog.clone(),
        );
        to.register(
            "rank_tau",
            "Kendall's tau-b of predictions and lengths of the newest 512 answers",
            state.tau.clone(),
        );
        to.register(
            "trust_state",
            "1 while scores order the queue, 0 while arrival does",
            state.trusted.clone(),
        );
        to.register("upstream_up", "1 if the upstream answers", state.up.clone());
        to.register(
            "upstream_breaker",
            "Circuit breaker: 0 closed, 1 half open, 2 open",
            state.breaker.clone(),
        );
        to.register("upstream_ejections", "Times that the breaker opened", state.ejections.clone());
        to.register("upstream_inflight", "Requests at the upstream", state.in_flight.clone());
        to.register("upstream_window", "Requests that may be at the upstream", state.window.clone());
        to.register("upstream_work_tokens", "Output tokens expected from the upstream", state.work.clone());
    }

    /// Counts a generation request that has ended or was not accepted.
    pub(crate) fn count_request(&self, outcome: Outcome) {
        match outcome {
            Outcome::Completed => self.completed.inc(),
            Outcome::Cancelled => self.cancelled.inc(),
            Outcome::Failed => self.failed.inc(),
            Outcome::Rejected => self.rejected.inc(),
        };
    }

    /// Counts a refusal.
    pub(crate) fn count_rejection(&self, reason: &'static str) {
        self.rejections.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a failure of an upstream.
    pub(crate) fn count_upstream_error(&self, upstream: &str, error: &'static str) {
        self.upstream_errors.get_or_create(&ErrorLabel { upstream: upstream.to_owned(), error }).inc();
    }

    /// Counts the output of a tenant.
    pub(crate) fn count_tenant(&self, tenant: &str, tokens: u32) {
        self.tenant_tokens.get_or_create(&TenantLabel { tenant: tenant.to_owned() }).inc_by(tokens.into());
    }

    /// Notes what was predicted and what came.
    pub(crate) fn note_prediction(&self, predicted: f64, tokens: f64) {
        let mut pairs = self.predicted.lock();
        if pairs.len() == TAU_ANSWERS {
            pairs.pop_front();
        }
        pairs.push_back((predicted, tokens));
    }

    /// All metrics as OpenMetrics text.
    pub(crate) fn render(&self, desk: &Desk) -> Result<String, std::fmt::Error> {
        self.refresh(desk);
        let mut rendered = String::new();
        text::encode(&mut rendered, &self.registry)?;
        Ok(rendered)
    }

    fn refresh(&self, desk: &Desk) {
        let state = &self.state;
        let (pools, sites) = (desk.pools(), desk.sites());
        for (at, class) in Class::ALL.into_iter().enumerate() {
            let depth: usize = pools.iter().map(|pool| pool.waiting[at]).sum();
            state.queue_depth.get_or_create(&ClassLabel { class: class.name() }).set(depth as i64);
        }
        state.running.set(pools.iter().map(|pool| pool.running as i64).sum());
        let overtakes = pools.iter().map(|pool| pool.overtakes).sum();
        state.overtakes.inner().store(overtakes, Ordering::Relaxed);
        state.backlog.set(pools.iter().map(|pool| pool.backlog_s).fold(0.0, f64::max));
        state.trusted.set(i64::from(pools.iter().all(|pool| pool.trusted)));
        let (predicted, tokens): (Vec<f64>, Vec<f64>) = self.predicted.lock().iter().copied().unzip();
        state.tau.set(kendall_tau_b(&predicted, &tokens).unwrap_or(0.0));
        state.up.clear();
        state.breaker.clear();
        state.in_flight.clear();
        state.window.clear();
        state.work.clear();
        for site in sites {
            let label = UpstreamLabel { upstream: site.name.clone() };
            state.up.get_or_create(&label).set(site.up.into());
            state.breaker.get_or_create(&label).set(site.breaker);
            state.ejections.get_or_create(&label).inner().store(site.ejections, Ordering::Relaxed);
            state.in_flight.get_or_create(&label).set(site.in_flight.into());
            if let Some(window) = site.window {
                state.window.get_or_create(&label).set(window.into());
            }
            state.work.get_or_create(&label).set(site.work_tokens);
        }
    }
}
