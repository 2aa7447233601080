//! What is known about a request when it arrives.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Names a request within one scheduler. The host assigns it and never reuses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// The facts of a request on arrival. They never change; what is *predicted* is a [`crate::Score`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Its name within the scheduler.
    pub id: RequestId,
    /// When it arrived at the host.
    pub arrival: Timestamp,
    /// Length of its prompt in tokens, at least 1.
    pub prompt_tokens: u32,
    /// Output limit in tokens, at least 1.
    pub max_tokens: u32,
    /// True output length in tokens, known only when a recorded trace is replayed; read by the `oracle-*`
    /// policies and by nothing else.
    pub true_tokens: Option<u32>,
    /// Whether `max_tokens` is the recorded length of a replay, not a wish of the client: predictions must not be limited
    /// by it, or they would know the answer.
    pub limit_is_recorded: bool,
    /// Who asked, for fairness between tenants and for audit.
    pub tenant: Option<Arc<str>>,
    /// Service class of the request, as named by the client.
    pub class: Option<Arc<str>>,
    /// Head start that it concedes to all later arrivals on top of what the policy says, in units of the policy's key (seconds for
    /// `outrank` and `fcfs`): how its class is put behind others, within a bound.
    pub delay_s: f64,
}

impl Request {
    /// A request with the given facts and neither true length, tenant nor class.
    pub fn new(id: u64, arrival: Timestamp, prompt_tokens: u32, max_tokens: u32) -> Self {
        Self {
            id: RequestId(id),
            arrival,
            prompt_tokens,
            max_tokens,
            true_tokens: None,
            limit_is_recorded: false,
            tenant: None,
            class: None,
            delay_s: 0.0,
        }
    }

    /// Output limit in tokens as far as a prediction may know it.
    pub fn known_limit_tokens(&self) -> u32 {
        if self.limit_is_recorded { u32::MAX } else { self.max_tokens }
    }
}
