//! What all requests share. What a reload may change is behind locks that are held for the length of a clone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outrank_http::{ApiError, Predictor, Replay, Scorer, Traces};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::desk::Desk;
use crate::journal::{Journal, Journals};
use crate::metrics::Metrics;
use crate::records::Records;
use crate::tenants::Tenants;

/// What clients are told to wait while the gateway shuts down.
pub(crate) const DRAIN_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What all requests share.
pub(crate) struct App {
    config: RwLock<Arc<GatewayConfig>>,
    tenants: RwLock<Arc<Tenants>>,
    lanes: Mutex<HashMap<String, usize>>,
    scorer: RwLock<Arc<Scorer>>,
    pub(crate) journals: Journals,
    pub(crate) desk: Arc<Desk>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) records: Arc<Records>,
    /// Cancelled when requests that still wait must end now.
    pub(crate) stop: CancellationToken,
    pub(crate) clock: Clock,
    /// Where spans go, if anywhere.
    pub(crate) traces: Option<Arc<Traces>>,
    next_record: AtomicU64,
    draining: AtomicBool,
}

impl App {
    pub(crate) fn new(
        config: &Arc<GatewayConfig>,
        predictor: Option<Box<dyn Predictor>>,
        journals: Journals,
        metrics: Arc<Metrics>,
        traces: Option<Arc<Traces>>,
    ) -> std::io::Result<Self> {
        let clock = Clock::start();
        let records = Arc::new(Records::new(config.max_finished_records));
        let app = Self {
            tenants: RwLock::default(),
            lanes: Mutex::default(),
            scorer: RwLock::new(Arc::new(start_scorer(predictor, config, &metrics, &records)?)),
            journals,
            desk: Arc::new(Desk::new(clock, Arc::clone(config))),
            records,
            metrics,
            stop: CancellationToken::new(),
            clock,
            traces,
            next_record: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            config: RwLock::new(Arc::clone(config)),
        };
        app.take_tenants(config);
        Ok(app)
    }

    /// The settings in force.
    pub(crate) fn config(&self) -> Arc<GatewayConfig> {
        Arc::clone(&self.config.read())
    }

    /// How the policy is compared with order of arrival.
    pub(crate) fn replay(&self) -> Replay {
        self.config().replay(self.desk.seats())
    }

    /// Who may ask.
    pub(crate) fn tenants(&self) -> Arc<Tenants> {
        Arc::clone(&self.tenants.read())
    }

    /// Who predicts lengths.
    pub(crate) fn scorer(&self) -> Arc<Scorer> {
        Arc::clone(&self.scorer.read())
    }

    /// Where answers are written down.
    pub(crate) fn journal(&self) -> Option<Arc<Journal>> {
        self.journals.current()
    }

    /// Takes other settings, a new predictor and a new journal. Requests under way keep what they began with.
    pub(crate) fn replace(&self, config: Arc<GatewayConfig>, scorer: Arc<Scorer>, journal: Option<Journal>) {
        self.take_tenants(&config);
        *self.scorer.write() = scorer;
        self.journals.replace(journal);
        *self.config.write() = config;
    }

    fn take_tenants(&self, config: &GatewayConfig) {
        let before = self.tenants();
        let tenants = Tenants::new(&config.tenants, &mut self.lanes.lock(), Some(&before));
        self.desk.set_weights(tenants.list().iter().map(|it| (it.lane, it.config.weight)).collect());
        *self.tenants.write() = Arc::new(tenants);
    }

    /// From now on, new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Refuses a request that comes too late.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ApiError::shutting_down(DRAIN_RETRY_AFTER));
        }
        Ok(())
    }

    /// A number that no other record has.
    pub(crate) fn number(&self) -> u64 {
        self.next_record.fetch_add(1, Ordering::Relaxed)
    }
}

/// Starts a scorer that learns from the answers of these requests, and from those that run.
pub(crate) fn start_scorer(
    predictor: Option<Box<dyn Predictor>>,
    config: &GatewayConfig,
    metrics: &Metrics,
    records: &Arc<Records>,
) -> std::io::Result<Scorer> {
    let records = Arc::clone(records);
    let census = move |since| records.all().iter().filter_map(|record| record.open_since(since)).collect();
    Scorer::start(predictor, config.scorer_limits(), metrics.host.scorer.clone(), Box::new(census))
}
