use serde::{Deserialize, Serialize};

use crate::{Hysteresis, Key, Policy, Preemption, RequestView};

/// The virtual deadline, the default policy:
///
/// ```text
/// key = arrival + min(stretch · expected remaining service, patience)      in seconds
/// ```
///
/// `stretch = 0` is FCFS, a large one shortest-job-first. **The bound:** a request is overtaken only by arrivals
/// within `patience` after its own, and a waiting one only by arrivals within `stretch ·` its own expected
/// service: who asks for little waits little, and nobody starves, whatever the ranker says. Optimises mean
/// latency per token under that bound; long requests pay for short ones, up to `patience`.
///
/// While a request runs its key sinks with what is predicted to remain, so it is the harder to displace the further it
/// is. What is predicted to remain never grows: a request that outlives its prediction keeps its seat (to pause it then
/// measured worse, because many are about to end). A waiting request displaces a running one only where that pays: the gain must exceed
/// `min_gain_s` and a multiple of the cost of switching, a few requests a step, a few times a request.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outrank {
    /// Seconds of waiting that a second of expected service is worth.
    pub stretch: f64,
    /// Longest head start that any later arrival may have, in seconds.
    pub patience_s: f64,
    /// Preempt only for a gain of at least this many seconds in the key.
    pub min_gain_s: f64,
    /// ... and of at least this multiple of the seconds that the switch costs.
    pub switch_cost_factor: f64,
    /// Requests paused in one step, at most; 0 switches preemption off.
    pub max_preemptions_per_step: u32,
    /// Times that one request may be paused.
    pub max_preemptions_per_request: u32,
    pub index: u32,
    pub shape: u32,
    pub patience_factor: f64,
    pub tail: f64,
    pub refresh: u32,
}

impl Default for Outrank {
    fn default() -> Self {
        Self {
            stretch: 10.0,
            patience_s: 120.0,
            min_gain_s: 5.0,
            switch_cost_factor: 20.0,
            max_preemptions_per_step: 1,
            max_preemptions_per_request: 2,
            index: 0,
            shape: 0,
            patience_factor: 0.0,
            tail: 0.0,
            refresh: 8,
        }
    }
}

impl Outrank {
    /// Seconds by which later arrivals may be ahead of this request.
    fn head_start_s(&self, view: &RequestView<'_>) -> f64 {
        let service_s = match view.score {
            Some(score) => {
                let tokens = match self.index {
                    0 => predicted_left_tokens(view),
                    1 => view.remaining_tokens(),
                    2 => score.gittins_tokens(view.generated_tokens),
                    3 => f64::from(score.median_tokens()),
                    _ => view.predicted_tokens,
                };
                view.service.service_s(view.prefill_tokens, tokens)
            }
            None => view.unscored.service_s,
        };
        let patience_s = self.patience_s + self.patience_factor * view.backlog_at_arrival_s;
        let x = self.stretch * service_s / patience_s.max(1e-9);
        let shaped = match self.shape {
            0 => x.min(1.0),
            1 => 1.0 - (-x).exp(),
            _ => x / (1.0 + x),
        };
        patience_s * shaped - self.tail * service_s
    }
}

/// The prediction less what has come: it never grows.
fn predicted_left_tokens(view: &RequestView<'_>) -> f64 {
    (view.predicted_tokens - f64::from(view.generated_tokens)).max(1.0)
}

impl Policy for Outrank {
    fn name(&self) -> &'static str {
        "outrank"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(view.request.arrival.secs_f64() + self.head_start_s(view))
    }

    fn preemption(&self) -> Preemption {
        if self.max_preemptions_per_step == 0 {
            return Preemption::Never;
        }
        Preemption::Limited(Hysteresis {
            min_gain: self.min_gain_s,
            switch_cost_factor: self.switch_cost_factor,
            max_per_step: self.max_preemptions_per_step,
            max_per_request: self.max_preemptions_per_request,
        })
    }

    fn falls_back(&self) -> bool {
        true
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        let head_start_s = self.head_start_s(view);
        let (tokens, basis) = match view.score {
            Some(_) => (predicted_left_tokens(view), "predicted"),
            None => (view.unscored.tokens, "assumed (no score)"),
        };
        format!(
            "{tokens:.0} tokens {basis} to come: only arrivals within {head_start_s:.1} s after its own may \
             overtake it (stretch {}, patience {} s)",
            self.stretch, self.patience_s
        )
    }
}
