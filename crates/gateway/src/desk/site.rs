//! What the desk knows of one upstream.

use std::sync::Arc;

use outrank_core::Timestamp;

use crate::config::Mode;
use crate::upstream::Upstream;
use crate::upstream::breaker::Breaker;
use crate::upstream::window::Window;
use crate::upstream::works::Works;

/// How long an upstream that says it has too much is left alone, at least and at most.
const MIN_PAUSE_S: f64 = 0.05;
const MAX_PAUSE_S: f64 = 5.0;

/// The models that an upstream serves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Models {
    /// It has not been asked yet, or does not tell: requests for any model may go there.
    #[default]
    Unknown,
    /// It says that it serves these; what it makes of other names is its own affair.
    Listed(Vec<String>),
    /// The settings say that it serves these and no others.
    Configured(Vec<String>),
}

/// An upstream and its state.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) upstream: Arc<Upstream>,
    pub(super) window: Window,
    pub(super) breaker: Breaker,
    /// Whether the last health check, or the last connection, succeeded.
    pub(super) up: bool,
    /// It was taken out of the settings; what runs there may end.
    pub(super) removed: bool,
    pub(super) models: Models,
    /// Requests there now.
    pub(super) in_flight: u32,
    works: Works,
    /// Most requests that were there at once, lately.
    pub(super) most_in_flight: f64,
    /// Expected output tokens still to come from there.
    pub(super) work_tokens: f64,
    /// It said that it has too much: nothing is sent until then.
    paused_until: Timestamp,
}

impl Site {
    pub(super) fn new(upstream: Arc<Upstream>) -> Self {
        let models = upstream.config.models.clone().map_or(Models::Unknown, Models::Configured);
        Self {
            window: Window::new(upstream.window),
            breaker: Breaker::default(),
            up: true,
            removed: false,
            models,
            in_flight: 0,
            works: Works::default(),
            most_in_flight: 1.0,
            work_tokens: 0.0,
            paused_until: Timestamp::ZERO,
            upstream,
        }
    }

    /// Whether anything may be sent there now.
    pub(super) fn is_available(&self, now: Timestamp) -> bool {
        self.up && !self.removed && self.breaker.allows(now)
    }

    /// Requests that may be there at once.
    pub(super) fn capacity(&self) -> u32 {
        let limit = self.upstream.config.limit.unwrap_or(u32::MAX);
        match self.upstream.mode {
            Mode::Hold => self.window.size().min(limit),
            Mode::Stamp => limit,
        }
    }

    /// Whether one more request may be sent there now that leaves so many seats free.
    pub(super) fn has_room(&self, now: Timestamp, leaves: u32) -> bool {
        let takes = self.capacity().saturating_sub(leaves);
        self.is_available(now) && now >= self.paused_until && self.in_flight < takes
    }

    /// Expected work there for its weight.
    pub(super) fn load(&self) -> f64 {
        // Of several idle ones, the one with the greater weight goes first.
        (self.work_tokens.max(0.0) + 1.0) / self.upstream.config.weight
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        match &self.models {
            Models::Unknown => true,
            Models::Listed(names) | Models::Configured(names) => names.iter().any(|name| name == model),
        }
    }

    /// Whether it may be asked for a model that nobody lists.
    pub(super) fn takes_any(&self) -> bool {
        !matches!(self.models, Models::Configured(_))
    }

    /// A request is sent there. Returns which it is, counted from the first.
    pub(super) fn took(&mut self, now: Timestamp, work_tokens: f64, streams: bool) -> u64 {
        self.in_flight += 1;
        self.work_tokens += work_tokens;
        self.most_in_flight = (self.most_in_flight * 0.999).max(f64::from(self.in_flight));
        self.breaker.sent(now);
        self.works.sent(streams)
    }

    /// The answer to one of the requests there has begun. So many more might be there, if those who wait did not leave seats free.
    pub(super) fn began(
        &mut self,
        now: Timestamp,
        nth: u64,
        prompt_tokens: u32,
        ttft_s: f64,
        left_free: u32,
    ) {
        let might_be = self.in_flight + left_free;
        let works_on = self.works.began(now, nth, self.window.seated_s());
        self.window.streams(self.works.streaming());
        self.window.works_on(works_on, might_be);
        self.window.first_token(prompt_tokens, ttft_s, might_be);
    }

    pub(super) fn released(&mut self, now: Timestamp, nth: u64, work_tokens: f64, began: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.works.ended(now, nth, began);
        self.work_tokens = if self.in_flight == 0 { 0.0 } else { self.work_tokens - work_tokens };
    }

    /// It said that it has too much.
    pub(super) fn overloaded(&mut self, now: Timestamp, retry_after_s: Option<f64>) {
        self.window.overloaded();
        let pause_s = retry_after_s.unwrap_or(MIN_PAUSE_S).clamp(MIN_PAUSE_S, MAX_PAUSE_S);
        self.paused_until = Timestamp::from_secs_f64(now.secs_f64() + pause_s);
    }
}
