//! The desk: who waits, who is at which upstream, and who goes next.
//!
//! One lock, held for about a microsecond: when a request arrives, when its score comes, at its first token, and when it ends.
//! Tokens in between are counted in atomics of their own ([`Progress`]), which the desk reads when it needs them. Whatever frees a
//! seat, or makes an upstream available, looks at once for who goes next ([`State::pump`]), so no seat idles while a request that
//! could take it waits, except for those that are kept free for tenants below their share (`spare_seats`).

mod choose;
mod fleet;
mod overrun;
mod report;
#[cfg(test)]
mod sharing;
mod site;
mod state;
mod tenants;
#[cfg(test)]
mod virtual_run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outrank_core::{End, Placement, Score, Timestamp};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::{ConfigError, GatewayConfig, Mode};
use crate::tenants::Class;
use crate::upstream::Upstream;
pub(crate) use report::{Known, PoolReport, SiteReport};
pub(crate) use site::Models;
use state::State;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) true_tokens: Option<u32>,
    pub(crate) limit_is_recorded: bool,
    pub(crate) score: Option<Score>,
    /// The lane of its tenant.
    pub(crate) lane: usize,
    pub(crate) class: Class,
    pub(crate) arrival: Timestamp,
    /// When its client no longer wants it.
    pub(crate) deadline: Timestamp,
    /// Requests of the same value prefer the same replica.
    pub(crate) affinity: Option<u64>,
    /// Whether its answer is to be streamed.
    pub(crate) streams: bool,
}

/// Why a request is not taken, or given up while it waits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Refused {
    /// The queue is full.
    QueueFull { limit: usize, retry_after_s: f64 },
    /// The tenant's part of the queue is full.
    TenantQueueFull { limit: usize, retry_after_s: f64 },
    /// It would wait longer than it may.
    WouldWait { wait_s: f64, retry_after_s: f64 },
    /// No upstream answers.
    NoUpstream { retry_after_s: f64 },
    /// No upstream serves the model.
    UnknownModel,
}

/// An upstream that a request may be sent to now.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) upstream: Arc<Upstream>,
    /// Priority to stamp, where the upstream orders by itself: seconds of the Unix epoch.
    pub(crate) stamp: Option<f64>,
}

/// What becomes of a request at the desk.
pub(crate) enum Admitted {
    /// It goes at once.
    Now(Turn),
    /// It waits.
    Waits(oneshot::Receiver<Result<Turn, Refused>>),
}

/// Output tokens of a request so far, counted without the lock of the desk.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU32);

impl Progress {
    pub(crate) fn set(&self, tokens: u32) {
        self.0.store(tokens, Ordering::Relaxed);
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an attempt says of the upstream.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// It did its work.
    Good,
    /// Nothing: the client left.
    None,
    /// It failed the request.
    Failed,
    /// It cannot be reached.
    Unreachable,
    /// It has too much.
    Overloaded { retry_after_s: Option<f64> },
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Ending {
    pub(crate) tokens: u32,
    pub(crate) end: End,
    pub(crate) verdict: Verdict,
    /// Seconds at the upstream.
    pub(crate) e2e_s: f64,
    /// Mean seconds between two tokens, where there were enough.
    pub(crate) per_token_s: Option<f64>,
    pub(crate) streamed: bool,
}

impl Ending {
    /// The client left, or the gateway gave it up.
    pub(crate) const ABORTED: Self = Self {
        tokens: 0,
        end: End::Aborted,
        verdict: Verdict::None,
        e2e_s: 0.0,
        per_token_s: None,
        streamed: false,
    };
}

/// The desk.
pub(crate) struct Desk {
    pub(crate) clock: Clock,
    state: Mutex<State>,
}

/// The place of a request at the desk. Dropping it gives up whatever the request holds: its place in the queue or its seat.
pub(crate) struct Place {
    desk: Arc<Desk>,
    id: u64,
    left: bool,
    pub(crate) progress: Arc<Progress>,
}

impl Desk {
    pub(crate) fn new(clock: Clock, config: Arc<GatewayConfig>) -> Self {
        Self { clock, state: Mutex::new(State::new(config)) }
    }

    /// Takes a request, or says why not. Also tells where it stands.
    pub(crate) fn submit(self: &Arc<Self>, ask: &Ask) -> Result<(Place, Admitted, Placement), Refused> {
        let progress = Arc::new(Progress::default());
        let now = self.clock.now();
        let (id, admitted, placement) =
            self.state.lock().submit(now, &self.clock, ask, Arc::clone(&progress))?;
        Ok((Place { desk: Arc::clone(self), id, left: false, progress }, admitted, placement))
    }

    /// The score of a request has come.
    pub(crate) fn scored(&self, id: u64, score: Score) {
        self.state.lock().scored(self.clock.now(), id, score);
    }

    /// Looks after what only time changes: breakers that may be tried, and requests that have waited for an upstream in vain.
    pub(crate) fn tick(&self) {
        self.state.lock().tick(self.clock.now());
    }

    /// Takes other settings and upstreams; requests that wait and run are not touched.
    pub(crate) fn reconfigure(
        &self,
        config: Arc<GatewayConfig>,
        upstreams: &[Arc<Upstream>],
    ) -> Result<(), ConfigError> {
        self.state.lock().reconfigure(self.clock.now(), config, upstreams)
    }

    /// A health check of an upstream has ended.
    pub(crate) fn probed(&self, upstream: &Upstream, up: bool, models: Option<Models>) {
        self.state.lock().probed(self.clock.now(), upstream, up, models);
    }

    /// The engine of an upstream says how many requests it works on at once, or does not.
    pub(crate) fn engine_says(&self, upstream: &Upstream, seats: Option<u32>) {
        self.state.lock().engine_says(self.clock.now(), upstream, seats);
    }

    /// Gives a tenant its share of all queues.
    pub(crate) fn set_weights(&self, weights: Vec<(usize, f64)>) {
        self.state.lock().set_weights(weights);
    }

    /// Everything known about a request.
    pub(crate) fn explain(&self, id: u64) -> Option<Known> {
        self.state.lock().explain(self.clock.now(), id)
    }

    /// Whether any upstream may be sent a request now.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.lock().is_ready(self.clock.now())
    }

    /// Whether any upstream orders by itself.
    pub(crate) fn stamps(&self) -> bool {
        self.state.lock().sites.iter().any(|site| !site.removed && site.upstream.mode == Mode::Stamp)
    }

    /// Requests that the upstreams of the first queue work on at once.
    pub(crate) fn seats(&self) -> u32 {
        self.state.lock().seats()
    }

    /// The upstreams, for metrics and people.
    pub(crate) fn sites(&self) -> Vec<SiteReport> {
        self.state.lock().sites_report(self.clock.now())
    }

    /// The queues, for metrics and people.
    pub(crate) fn pools(&self) -> Vec<PoolReport> {
        self.state.lock().pools_report()
    }

    /// Names of all models that are served.
    pub(crate) fn models(&self) -> Vec<String> {
        self.state.lock().models()
    }
}

impl Place {
    /// Names the request.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The first output has come, so many seconds after the request was sent.
    pub(crate) fn first_token(&self, ttft_s: f64) {
        self.desk.state.lock().first_token(self.desk.clock.now(), self.id, ttft_s);
    }

    /// The upstream failed the request before a byte of an answer had come; it asks for another turn.
    pub(crate) fn again(&self, verdict: Verdict) -> Result<Admitted, Refused> {
        self.desk.state.lock().again(self.desk.clock.now(), &self.desk.clock, self.id, verdict)
    }

    /// The request has ended.
    pub(crate) fn end(mut self, ending: &Ending) {
        self.leave(ending);
    }

    fn leave(&mut self, ending: &Ending) {
        if !std::mem::replace(&mut self.left, true) {
            self.desk.state.lock().leave(self.desk.clock.now(), self.id, ending);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave(&Ending::ABORTED);
    }
}
