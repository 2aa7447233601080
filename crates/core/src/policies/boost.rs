use serde::{Deserialize, Serialize};

use super::Outrank;
use crate::{Hysteresis, Key, Load, Policy, Preemption, RequestView};

/// γ-Boost on what is known without a prediction: "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1" (Yu
/// and Scully, SIGMETRICS 2024, arXiv 2404.08826), brought to LLM serving as UniBoost in "Beyond Prediction:
/// Tail-Aware Scheduling for LLM Inference" (Li et al., ICML 2026, arXiv 2606.18431).
///
/// ```text
/// key      = arrival - boost(work)                               in seconds
/// boost(s) = ln(1 / (1 - exp(-γ s))) / γ
/// work     = prefill of the prompt + decode steps had, in seconds at the step costs of this host;
///            decode steps count at thresholds that double, from `threshold_tokens` on
/// ```
///
/// A large γ is FCFS, a small one least-work-first; the boost is large for little work and fades as a request runs,
/// so that nobody is kept behind old requests that turned out long. It optimises the tail (p99) of latency without
/// a ranker: a request is overtaken only by arrivals within the largest boost there is after its own. It hurts the
/// mean, which a good prediction serves better, and long prompts with short answers.
///
/// Where it differs: γ-Boost takes the true size, this the work that is certain so far. UniBoost fits γ to the tail
/// of recent latencies; here it is a setting. Its MemGuard lets a request run to the next threshold once it has a
/// seat and chooses victims by swap cost too; here the thresholds are in the key, and the limits on preemption are
/// those of [`Outrank`]: a gain in seconds that exceeds a multiple of the switch cost. Work saved by a prefix cache
/// is not counted. The authors' port to SGLang (γ = 10 per second, 64 µs a prompt token) boosts by the prompt only:
/// its default γ is for boosts of less than a second and is next to FCFS where an answer takes many.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Boost {
    /// γ, per second: about the rate at which the tail of the response time decays under FCFS.
    pub gamma_per_s: f64,
    /// Output tokens from which on they count as work: at this number, and whenever it has doubled.
    pub threshold_tokens: u32,
    /// Preempt only for a gain of at least this many seconds in the key.
    pub min_gain_s: f64,
    /// ... and of at least this multiple of the seconds that the switch costs.
    pub switch_cost_factor: f64,
    /// Requests paused in one step, at most; 0 switches preemption off.
    pub max_preemptions_per_step: u32,
    /// Times that one request may be paused.
    pub max_preemptions_per_request: u32,
}

/// Least γ, per second.
const MIN_GAMMA_PER_S: f64 = 1e-9;
/// Least work, in seconds: the boost of none would be infinite.
const MIN_WORK_S: f64 = 1e-6;

impl Default for Boost {
    fn default() -> Self {
        let outrank = Outrank::default();
        Self {
            gamma_per_s: 0.1,
            threshold_tokens: 16,
            min_gain_s: 5.0,
            switch_cost_factor: outrank.switch_cost_factor,
            max_preemptions_per_step: outrank.max_preemptions_per_step,
            max_preemptions_per_request: outrank.max_preemptions_per_request,
        }
    }
}

impl Boost {
    /// Seconds of work that are certain by now.
    fn work_s(&self, view: &RequestView<'_>) -> f64 {
        let first = self.threshold_tokens.max(1);
        let counted_tokens = match (view.generated_tokens / first).checked_ilog2() {
            Some(doublings) => f64::from(first) * f64::from(doublings).exp2(),
            None => 0.0,
        };
        view.service.service_s(view.request.prompt_tokens, counted_tokens).max(MIN_WORK_S)
    }

    fn boost_s(&self, work_s: f64) -> f64 {
        let gamma_per_s = self.gamma_per_s.max(MIN_GAMMA_PER_S);
        // 1 - exp(-γ s), exact for small γ s too.
        -(-(-gamma_per_s * work_s).exp_m1()).ln() / gamma_per_s
    }
}

impl Policy for Boost {
    fn name(&self) -> &'static str {
        "boost"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(view.request.arrival.secs_f64() - self.boost_s(self.work_s(view)))
    }

    fn rekey_interval_s(&self) -> Option<f64> {
        Some(super::COST_REKEY_S)
    }

    fn preemption(&self, _load: Load) -> Preemption {
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

    fn why(&self, view: &RequestView<'_>) -> String {
        let work_s = self.work_s(view);
        format!(
            "as if it had arrived {:.1} s earlier: {work_s:.2} s of work are certain (prompt, and {} tokens so far)",
            self.boost_s(work_s),
            view.generated_tokens
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Facts;
    use super::*;

    #[test]
    fn the_boost_is_that_of_the_formula_and_falls_with_the_work() {
        let boost = Boost::default();
        for work_s in [1e-6, 0.01, 0.5, 3.0, 40.0] {
            let naive_s = 10.0 * (1.0 / (1.0 - f64::exp(-0.1 * work_s))).ln();
            assert!((boost.boost_s(work_s) - naive_s).abs() < 1e-6, "{work_s}");
            assert!(boost.boost_s(2.0 * work_s) < boost.boost_s(work_s));
        }
        assert!(boost.boost_s(1e6).abs() < 1e-12, "much work is FCFS");
    }

    #[test]
    fn gamma_leads_from_the_least_work_first_to_the_first_come_first() {
        let key = |gamma_per_s, arrival_s, prompt_tokens| {
            let facts = Facts { arrival_s, prompt_tokens, ..Facts::default() };
            facts.key(&Boost { gamma_per_s, ..Boost::default() })
        };
        assert!(key(1e-4, 1000.0, 10) < key(1e-4, 0.0, 200), "a small one: least work first");
        assert!(key(100.0, 1.0, 10) > key(100.0, 0.0, 200), "a large one: first come first");
    }

    #[test]
    fn tokens_count_at_thresholds_that_double() {
        let work_s = |generated_tokens| {
            Facts { generated_tokens, prompt_tokens: 100, ..Facts::default() }
                .see(|view| Boost::default().work_s(view))
        };
        // A prompt token takes 0.1 ms, a step 10 ms.
        for (generated_tokens, counted) in
            [(0, 0), (15, 0), (16, 16), (31, 16), (32, 32), (63, 32), (640, 512)]
        {
            assert!((work_s(generated_tokens) - 0.01 - 0.01 * f64::from(counted)).abs() < 1e-9);
        }
    }

    #[test]
    fn settings_out_of_range_stay_finite() {
        for gamma_per_s in [0.0, -3.0, f64::NAN, f64::INFINITY] {
            let boost = Boost { gamma_per_s, threshold_tokens: 0, ..Boost::default() };
            assert!(Facts { generated_tokens: 77, ..Facts::default() }.key(&boost).is_finite());
        }
    }
}
