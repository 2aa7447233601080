//! What is known about the requests that are under way and those that ended lately.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use outrank_core::Score;
use outrank_http::{Open, Outcome, Recorded};
use parking_lot::Mutex;

use crate::desk::Progress;
use crate::scan::Finish;
use crate::tenants::Class;

/// One request.
#[derive(Debug)]
pub(crate) struct Record {
    /// Unique.
    pub(crate) id: u64,
    /// Value of `x-request-id`; a client may use one twice.
    pub(crate) request_id: String,
    pub(crate) model: String,
    pub(crate) class: Class,
    pub(crate) tenant: Option<Arc<str>>,
    /// When it was accepted, in seconds since the Unix epoch.
    pub(crate) created: f64,
    /// When it was expected to end, in seconds after it was accepted.
    pub(crate) eta_finish_s: f64,
    /// The desk's name of it.
    pub(crate) desk_id: AtomicU64,
    pub(crate) facts: Mutex<Facts>,
    /// Wakes who relays its answer, so that it sees that the gateway stops.
    pub(crate) waker: AtomicWaker,
    pub(crate) stop: AtomicBool,
}

/// What becomes known of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) score: Option<Score>,
    pub(crate) upstream: Option<String>,
    pub(crate) output_tokens: u32,
    pub(crate) finish: Option<Finish>,
    pub(crate) queue_s: Option<f64>,
    pub(crate) ttft_s: Option<f64>,
    pub(crate) e2e_s: Option<f64>,
    pub(crate) attempts: u32,
    pub(crate) outcome: Option<Outcome>,
    /// `None` while it waits, when it has ended, and where nothing is to be learned from its answer.
    pub(crate) running: Option<Running>,
}

/// What is to be learned from a request that runs.
#[derive(Clone)]
pub(crate) struct Running {
    /// Its prompt, as it was scored.
    pub(crate) text: Arc<str>,
    /// Output limit in tokens, as far as predictions may know it.
    pub(crate) limit_tokens: u32,
    pub(crate) arrival: Instant,
    pub(crate) progress: Arc<Progress>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prompts are never printed.
        f.debug_struct("Running").field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// All records that can be asked for.
pub(crate) type Records = outrank_http::Records<Record>;
/// The record of a request that is under way.
pub(crate) type OpenRecord = outrank_http::OpenRecord<Record>;

impl Recorded for Record {
    type Id = u64;

    fn id(&self) -> &u64 {
        &self.id
    }

    fn request_id(&self) -> &str {
        &self.request_id
    }
}

impl Record {
    /// How far it is, if it runs, arrived since then, and its answer will be learned from.
    pub(crate) fn open_since(&self, since: Instant) -> Option<Open> {
        let facts = self.facts.lock();
        let it = facts.running.as_ref().filter(|it| it.arrival >= since)?;
        Some(Open { text: Arc::clone(&it.text), tokens: it.progress.tokens(), limit_tokens: it.limit_tokens })
    }

    /// Tells the request to stop.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}
