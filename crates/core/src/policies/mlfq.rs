use serde::{Deserialize, Serialize};

use crate::{Key, Load, Policy, Preemption, RequestView, Starvation};

/// Skip-join multi-level feedback queue, from FastServe ("Fast Distributed Inference Serving for Large Language
/// Models", Wu et al., 2023, arXiv 2305.05920). It reads no prediction.
///
/// ```text
/// quantum of level i = base_quantum · factor^i
/// a request joins the first level whose quantum holds its prefill (it skips those above), and sinks a level each time
/// its service there exceeds the quantum: prefill + generated tokens · decode step
/// key = level, ties in order of arrival
/// ```
///
/// It approximates least-attained-service: short answers finish before they sink, so mean and median latency gain
/// where lengths vary much. It hurts long requests, which new arrivals displace all the time, and pays a switch for
/// every level.
///
/// Where it differs: FastServe counts the service in a level from zero, in wall-clock time of whole iterations, and
/// puts who sinks at the head of the level below; here the levels are cut from the total service, at the step costs
/// measured on this host, and a level is in order of arrival. FastServe's starving requests (not run for 3 s,
/// looked for every 1,000 iterations) go to the head of the top level; here the scheduler promotes after
/// `threshold_steps` steps in a row without a turn (150 steps of 20 ms are 3 s), ahead of all others, for
/// `quantum_steps` steps. FastServe swaps KV ahead of need, which is left out. The quantum of 0.03 s and the factor
/// of 2 (or 10) are those of the paper that `ltr` follows, whose code has everyone join the top level: it does not
/// skip.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mlfq {
    /// Seconds of service in the top level (0.03 in the paper's scripts, 0.01 in FastServe).
    pub base_quantum_s: f64,
    /// Quantum of a level over that of the one above, at least 1 (2 or 10 in the paper's scripts, 2 in FastServe).
    pub factor: f64,
    /// Steps out of the batch after which a request is promoted.
    pub threshold_steps: u64,
    /// Steps in the batch that a promotion lasts.
    pub quantum_steps: u32,
}

/// Levels at most; the last holds all who sink further.
const MAX_LEVELS: u32 = 64;
/// Shortest quantum of the top level, in seconds.
const MIN_QUANTUM_S: f64 = 1e-6;

impl Default for Mlfq {
    fn default() -> Self {
        Self { base_quantum_s: 0.03, factor: 2.0, threshold_steps: 150, quantum_steps: 2 }
    }
}

impl Mlfq {
    fn level(&self, view: &RequestView<'_>) -> u32 {
        // The whole prefill counts as had from the start: it fits the first quantum anyway, and a request that is
        // paused in its prefill must not rise again for having lost what it computed.
        let prefill_s = view.service.service_s(view.request.prompt_tokens, 0.0);
        // By the first estimate of a step, which never changes: with the running one, a request that has sunk would rise
        // whenever steps get shorter, and lose its seat again.
        let decode_s = view.unscored.service_s / view.unscored.tokens;
        let mut left_s = prefill_s + f64::from(view.generated_tokens) * decode_s;
        let (mut level, mut quantum_s) = (0, self.base_quantum_s.max(MIN_QUANTUM_S));
        let mut joined = false;
        while level + 1 < MAX_LEVELS {
            joined |= prefill_s <= quantum_s;
            if joined {
                if left_s <= quantum_s {
                    break;
                }
                left_s -= quantum_s;
            }
            level += 1;
            quantum_s *= self.factor.max(1.0);
        }
        level
    }
}

impl Policy for Mlfq {
    fn name(&self) -> &'static str {
        "mlfq"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(f64::from(self.level(view)))
    }

    fn rekey_interval_s(&self) -> Option<f64> {
        Some(super::COST_REKEY_S)
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn starvation(&self) -> Option<Starvation> {
        Some(Starvation { threshold_steps: self.threshold_steps, quantum_steps: self.quantum_steps })
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!(
            "least service first, in levels: level {} after {} tokens; promoted after {} steps without a turn",
            self.level(view),
            view.generated_tokens,
            self.threshold_steps
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Facts;
    use super::*;

    /// A prefill token takes 0.1 ms, a step 10 ms.
    fn level(policy: Mlfq, prompt_tokens: u32, generated_tokens: u32) -> u32 {
        Facts { prompt_tokens, generated_tokens, ..Facts::default() }.see(|view| policy.level(view))
    }

    #[test]
    fn a_long_prompt_skips_the_levels_whose_quantum_does_not_hold_its_prefill() {
        let joined =
            [1, 299, 301, 599, 601, 1201].map(|prompt_tokens| level(Mlfq::default(), prompt_tokens, 0));
        assert_eq!(joined, [0, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn a_request_sinks_a_level_whenever_it_exceeds_the_quantum() {
        // Quanta of 30, 60, 120 ms, less 1 ms of prefill: levels end after 2, 8 and 20 tokens.
        let sunk =
            [0, 2, 3, 8, 9, 20, 21].map(|generated_tokens| level(Mlfq::default(), 10, generated_tokens));
        assert_eq!(sunk, [0, 0, 1, 1, 2, 2, 3]);
        let steep = Mlfq { factor: 10.0, ..Mlfq::default() };
        assert_eq!([2, 3, 32, 33].map(|generated_tokens| level(steep, 10, generated_tokens)), [0, 1, 1, 2]);
    }

    #[test]
    fn a_request_paused_in_its_prefill_keeps_its_level() {
        let facts = Facts { prompt_tokens: 500, ..Facts::default() };
        facts.see(|fresh| {
            let nearly_done = RequestView { prefill_tokens: 20, ..*fresh };
            assert_eq!(Mlfq::default().level(fresh), Mlfq::default().level(&nearly_done));
        });
    }

    #[test]
    fn no_setting_makes_more_levels_than_there_are() {
        for (base_quantum_s, factor) in [(0.0, 1.0), (f64::NAN, f64::NAN), (-1.0, 0.0), (1e-9, 1.0)] {
            let policy = Mlfq { base_quantum_s, factor, ..Mlfq::default() };
            assert_eq!(level(policy, 1000, 1_000_000), MAX_LEVELS - 1);
        }
        assert_eq!(level(Mlfq { factor: f64::INFINITY, ..Mlfq::default() }, 10, 1_000_000), 1);
    }
}
