//! Answers to "where is my request, and why?".

use serde::{Deserialize, Serialize};

use crate::{RequestId, Score};

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In the queue, not started.
    Waiting,
    /// In the queue, after it had started and was paused.
    Paused,
    /// In the batch.
    Running,
}

/// Estimated seconds from now, from predicted lengths and measured step times.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Eta {
    /// Until it is next in the batch; 0 if it is.
    pub start_s: f64,
    /// Until its last token.
    pub finish_s: f64,
}

/// What a client is told on submission.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Requests ahead of it in the queue.
    pub position: usize,
    /// When it is expected to start and finish.
    pub eta: Eta,
}

/// Everything the scheduler knows about one request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// Which request.
    pub id: RequestId,
    /// Name of the policy that orders it.
    pub policy: String,
    /// Where it stands.
    pub state: State,
    /// Requests ahead of it in the queue; 0 when running.
    pub position: usize,
    /// Predicted output length, if it was scored.
    pub score: Option<Score>,
    /// Output tokens so far.
    pub generated_tokens: u32,
    /// Expected tokens still to come.
    pub remaining_tokens: f64,
    /// When it is expected to start and finish.
    pub eta: Eta,
    /// Seconds since it arrived.
    pub waited_s: f64,
    /// Its sort key under the policy, smaller first.
    pub key: f64,
    /// Later arrivals that started before it did.
    pub overtaken_by: u64,
    /// Times it was paused.
    pub preemptions: u32,
    /// Whether starvation prevention has promoted it.
    pub promoted: bool,
    /// Why it has its key, in words.
    pub why: String,
}
