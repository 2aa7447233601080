use serde::{Deserialize, Serialize};

use crate::{Key, Load, Policy, Preemption, RequestView, Starvation};

/// The paper's policy: Algorithm 1 of "Efficient LLM Scheduling by Learning to Rank" (NeurIPS 2024).
///
/// `key = predicted total length`, shorter first, over waiting and running requests together, so it preempts in
/// every step; a request that misses `threshold_steps` batches in a row is promoted ahead of all that are not,
/// for a quantum of `quantum_steps` steps in the batch. The key does not change while a request generates. It
/// approximates shortest-job-first; it hurts long requests, whose wait is bounded only in steps, and pays for
/// every switch. Requests without a score go last among equals of the mean length, in order of arrival.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ltr {
    /// Steps out of the batch after which a request is promoted (200 in the paper's scripts).
    pub threshold_steps: u64,
    /// Steps in the batch that a promotion lasts (10 in the paper's scripts).
    pub quantum_steps: u32,
}

impl Default for Ltr {
    fn default() -> Self {
        Self { threshold_steps: 200, quantum_steps: 10 }
    }
}

impl Policy for Ltr {
    fn name(&self) -> &'static str {
        "ltr"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(view.score.map_or(view.unscored.tokens, |score| f64::from(score.median_tokens())))
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn starvation(&self) -> Option<Starvation> {
        Some(Starvation { threshold_steps: self.threshold_steps, quantum_steps: self.quantum_steps })
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!(
            "shortest predicted answer first: {:.0} tokens predicted; promoted after {} steps without a turn",
            self.key(view).value(),
            self.threshold_steps
        )
    }
}
