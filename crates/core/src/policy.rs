//! What an ordering policy is.

use std::fmt::Debug;

use crate::{Request, Score, ServiceModel, Starvation, Timestamp};

/// Sort key of a request under a policy: smaller goes first. Never NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Key(f64);

impl Key {
    /// A key of the given value; NaN, which no policy should produce, sorts last.
    pub fn new(value: f64) -> Self {
        Self(if value.is_nan() { f64::INFINITY } else { value + 0.0 })
    }

    /// The value itself.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The request that those without prediction are taken for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Unscored {
    /// Output length in tokens.
    pub tokens: f64,
    /// Seconds of service.
    pub service_s: f64,
}

/// How busy the host is, as far as keys depend on it. It moves in steps of [`LOAD_STEP`], so that keys stand still in
/// between.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Load {
    /// Expected seconds until everyone who waits has been served, on all seats together.
    pub backlog_s: f64,
    /// Mean seconds of service of a request.
    pub mean_service_s: f64,
    /// Requests whose [`RequestView::worth_s`] is less bring [`Policy::short_share`] of the work.
    pub short_s: f64,
}

/// Factor by which the backlog must have changed before the keys of those who wait are taken anew.
pub const LOAD_STEP: f64 = 1.2;

/// What a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The facts on arrival.
    pub request: &'a Request,
    /// The prediction, if one has been made.
    pub score: Option<Score>,
    /// Expected output length in tokens within the limit of the request; without a prediction the recent mean.
    pub predicted_tokens: f64,
    /// What every request without prediction is ordered as. It never changes, so that they keep the order of arrival
    /// whatever is measured meanwhile.
    pub unscored: Unscored,
    /// Output tokens so far.
    pub generated_tokens: u32,
    /// Prefill tokens still to be processed.
    pub prefill_tokens: u32,
    /// Whether it has a seat.
    pub running: bool,
    /// Measured step costs of the host.
    pub service: &'a ServiceModel,
    /// The time now.
    pub now: Timestamp,
    /// Expected seconds until everyone who waited when this request arrived has been served, on all seats together.
    /// It never changes.
    pub backlog_at_arrival_s: f64,
    /// How busy the host is.
    pub load: Load,
}

impl RequestView<'_> {
    /// Seconds since the request arrived.
    pub fn age_s(&self) -> f64 {
        self.now.since(self.request.arrival).as_secs_f64()
    }

    /// Output tokens still to come at most, as far as a prediction may know; at least 1.
    pub fn limit_tokens(&self) -> f64 {
        f64::from(self.request.known_limit_tokens().saturating_sub(self.generated_tokens).max(1))
    }

    /// Expected output tokens still to come, at least 1 and at most what `max_tokens` allows. For a request
    /// without score it does not depend on the request, so that such requests keep the order of arrival.
    pub fn remaining_tokens(&self) -> f64 {
        let limit = self.limit_tokens();
        match self.score {
            Some(score) => score.remaining_tokens(self.generated_tokens).min(limit),
            None => self.predicted_tokens.max(1.0),
        }
    }

    /// What the request still asks for: prefill and the Gittins rank of its answer ([`Score::gittins_tokens`]), in seconds of
    /// service.
    pub fn worth_s(&self) -> f64 {
        let Some(score) = self.score else { return self.unscored.service_s };
        // A limit shortens what lies beyond it, more the farther it lies, so that no two lengths become alike.
        let cut = self.predicted_tokens / score.mean_tokens();
        let tokens = (score.gittins_tokens(self.generated_tokens) * cut).min(self.limit_tokens());
        self.service.service_s(self.prefill_tokens, tokens)
    }

    /// Expected seconds of service still to come. Without a score, prefill is left out too.
    pub fn remaining_service_s(&self) -> f64 {
        let prefill_tokens = if self.score.is_some() { self.prefill_tokens } else { 0 };
        self.service.service_s(prefill_tokens, self.remaining_tokens())
    }
}

/// Limits on preemption, so that requests do not change places for nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hysteresis {
    /// A waiting request must rank ahead of a running one by this much, in units of the key.
    pub min_gain: f64,
    /// ... and by this multiple of the seconds that the switch costs the host.
    pub switch_cost_factor: f64,
    /// Requests paused in one step, at most.
    pub max_per_step: u32,
    /// Times that one request may be paused.
    pub max_per_request: u32,
}

/// Whether a waiting request may take the seat of a running one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Preemption {
    /// Never: a request that runs keeps its seat (memory pressure aside).
    Never,
    /// Whenever it ranks ahead, at whatever cost.
    Always,
    /// Where it pays. Keys of such a policy are in seconds.
    Limited(Hysteresis),
}

/// An order of requests. A policy is a pure function from what is known of a request to a key; queues, seats,
/// memory, preemption and starvation prevention are the scheduler's.
pub trait Policy: Debug + Send {
    /// Name in settings, tables and metrics.
    fn name(&self) -> &'static str;

    /// Key of a request, smaller first; ties go to the earlier arrival. It is taken when the request arrives,
    /// is scored or is paused, and in every step while it runs: while a request waits, its key stands still, unless the
    /// policy has a [`Policy::rekey_interval_s`].
    fn key(&self, view: &RequestView<'_>) -> Key;

    /// Seconds after which the keys of all who wait are taken anew, for a policy whose order changes with time. It costs
    /// O(n log n) each time; the default needs none.
    fn rekey_interval_s(&self) -> Option<f64> {
        None
    }

    /// Whether running requests may lose their seat.
    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Never
    }

    /// Starvation prevention by promotion, if the policy has it.
    fn starvation(&self) -> Option<Starvation> {
        None
    }

    /// Whether keys depend on [`RequestView::load`]: they are then taken anew when it moves.
    fn follows_load(&self) -> bool {
        false
    }

    /// The share of the work, 0 to 1, that shall count as short in [`Load::short_s`].
    fn short_share(&self) -> f64 {
        0.5
    }

    /// Share of the seats, 0 to 1, that may stay free for a few steps while many wait, so that several requests start in one
    /// step; by default none.
    fn gather_share(&self) -> f64 {
        0.0
    }

    /// Whether the policy goes by arrival when the scheduler's [`crate::RankMonitor`] distrusts the ranker; requests then
    /// look unscored to it.
    fn falls_back(&self) -> bool {
        false
    }

    /// Why a request has its key, in words for the person who waits.
    fn why(&self, view: &RequestView<'_>) -> String;
}
