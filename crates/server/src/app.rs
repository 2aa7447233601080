//! What all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::ServerConfig;
use crate::backend::Backend;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::wire::Limits;
use outrank_http::{ApiError, KeyDigest, Keys};
use outrank_http::{Predictor, Scorer, Traces};

/// What all handlers share.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    /// The keys of `config.api_keys`.
    pub(crate) keys: Keys,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) scorer: Scorer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) records: Arc<Records>,
    /// Where spans go, if anywhere.
    pub(crate) traces: Option<Arc<Traces>>,
    /// When the server started, in seconds since the Unix epoch.
    pub(crate) started: u64,
    /// Cancelled when requests that still run must end now.
    pub(crate) stop: CancellationToken,
    draining: AtomicBool,
}

impl App {
    pub(crate) fn new(
        config: ServerConfig,
        backend: Arc<dyn Backend>,
        predictor: Option<Box<dyn Predictor>>,
        traces: Option<Arc<Traces>>,
    ) -> std::io::Result<Self> {
        let metrics = Arc::new(Metrics::new(config.replay.is_some()));
        let mut keys = Keys::default();
        for (owner, key) in (0..).zip(&config.api_keys) {
            keys.add(KeyDigest::of(key.as_bytes()), owner);
        }
        let records = Arc::new(Records::new(config.max_finished_records));
        let known = Arc::clone(&records);
        // No request is older than the scorer.
        let census = move |_| known.all().iter().flat_map(|record| record.open()).collect();
        let limits = config.scorer_limits();
        Ok(Self {
            scorer: Scorer::start(predictor, limits, metrics.host.scorer.clone(), Box::new(census))?,
            keys,
            records,
            metrics,
            backend,
            traces,
            started: unix_time(),
            stop: CancellationToken::new(),
            draining: AtomicBool::new(false),
            config,
        })
    }

    /// From now on, new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Refuses a request that cannot be served: the server is about to exit, or the engine is gone.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(self.shutting_down());
        }
        match self.backend.stopped() {
            Some(why) => Err(ApiError::engine_stopped(&why, self.drain_retry_after())),
            None => Ok(()),
        }
    }

    /// The error of a request that comes, or still runs, too late.
    pub(crate) fn shutting_down(&self) -> ApiError {
        ApiError::shutting_down(self.drain_retry_after())
    }

    /// Refuses a model that is not served.
    pub(crate) fn check_model(&self, asked: &str) -> Result<(), ApiError> {
        let served = &self.config.model_name;
        if asked == served { Ok(()) } else { Err(ApiError::unknown_model(asked, served)) }
    }

    /// What a request may ask for at most.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            context_tokens: self.backend.context_tokens(),
            max_n: self.config.max_n,
            max_prompts: self.config.max_prompts,
        }
    }

    pub(crate) fn drain_retry_after(&self) -> Duration {
        Duration::from_secs(self.config.drain_retry_after_s)
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
