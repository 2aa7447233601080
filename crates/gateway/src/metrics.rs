//! All metrics of the gateway, under the prefix `outrank_`; the names that the embedded server has too mean the same.

use std::sync::atomic::{AtomicU64, Ordering};

use outrank_core::Trust;
use outrank_http::HostMetrics;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::desk::Desk;
use crate::tenants::Class;

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
    pub(crate) host: HostMetrics,
    tenant_tokens: Family<TenantLabel, Counter>,
    upstream_errors: Family<ErrorLabel, Counter>,
    pub(crate) retries: Counter,
    pub(crate) malformed_lines: Counter,
    pub(crate) connections: Gauge,
    pub(crate) journal_lines: Counter,
    pub(crate) journal_errors: Counter,
    pub(crate) reloads: Counter,
    state: StateMetrics,
}

/// What the desk knows, refreshed by [`Metrics::render`].
#[derive(Debug, Default)]
struct StateMetrics {
    queue_depth: Family<ClassLabel, Gauge>,
    running: Gauge,
    overtakes: Counter,
    backlog: Float,
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
        self.host.register(to, true);
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

    /// Counts a failure of an upstream.
    pub(crate) fn count_upstream_error(&self, upstream: &str, error: &'static str) {
        self.upstream_errors.get_or_create(&ErrorLabel { upstream: upstream.to_owned(), error }).inc();
    }

    /// Counts the output of a tenant.
    pub(crate) fn count_tenant(&self, tenant: &str, tokens: u32) {
        self.tenant_tokens.get_or_create(&TenantLabel { tenant: tenant.to_owned() }).inc_by(tokens.into());
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
        let trusted = pools.iter().all(|pool| pool.trusted);
        self.host.trust.refresh(if trusted { Trust::Trusted } else { Trust::Distrusted });
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
