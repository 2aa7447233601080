//! How long a ranker takes, and who waits for it.

use std::collections::VecDeque;

use outrank_core::{RequestId, Score, Timestamp};
use serde::{Deserialize, Serialize};

/// The cost of scoring. The default costs nothing: scores are there on arrival.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scoring {
    /// Seconds per request.
    pub request_s: f64,
    /// Whether the engine waits for it, as in the paper's code: scores are then there when a request is first ordered,
    /// and each one lengthens the step. Otherwise requests are scored one after the other beside the engine, and
    /// stand unscored in the queue until then.
    pub blocking: bool,
}

/// Scores on their way.
#[derive(Debug, Default)]
pub(crate) struct Scorer {
    scoring: Scoring,
    free_at: Timestamp,
    pending: VecDeque<(Timestamp, RequestId, Score)>,
    /// Seconds that the engine must wait before its next step.
    blocked_s: f64,
}

impl Scorer {
    pub(crate) fn new(scoring: Scoring) -> Self {
        Self { scoring, ..Self::default() }
    }

    /// A request arrives; returns its score if that is known at once.
    pub(crate) fn arrive(&mut self, now: Timestamp, id: RequestId, score: Option<Score>) -> Option<Score> {
        let score = score?;
        if self.scoring.blocking {
            self.blocked_s += self.scoring.request_s;
            return Some(score);
        }
        if self.scoring.request_s <= 0.0 {
            return Some(score);
        }
        let start = self.free_at.max(now);
        self.free_at = Timestamp::from_secs_f64(start.secs_f64() + self.scoring.request_s);
        self.pending.push_back((self.free_at, id, score));
        None
    }

    /// The next score that is ready by `now`.
    pub(crate) fn pop_ready(&mut self, now: Timestamp) -> Option<(Timestamp, RequestId, Score)> {
        let ready = self.pending.front().is_some_and(|&(at, ..)| at <= now);
        if ready { self.pending.pop_front() } else { None }
    }

    /// Seconds by which scoring lengthens the step that starts now.
    pub(crate) fn take_blocked_s(&mut self) -> f64 {
        std::mem::take(&mut self.blocked_s)
    }
}
