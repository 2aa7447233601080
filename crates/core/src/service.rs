//! What work costs on this host, in seconds, as measured.

use serde::{Deserialize, Serialize};

use crate::{StepSample, SwitchMethod};

/// Weight of the newest step in the running means: an average over about the last 50 steps.
const NEWEST_WEIGHT: f64 = 0.02;

/// Step costs of the host: a running mean that starts from a guess and follows [`crate::Event::StepTook`].
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceModel {
    /// Seconds of one step without prefill: what one output token costs a request in the batch.
    pub decode_s: f64,
    /// Seconds that one prefill token adds to a step.
    pub prefill_s: f64,
}

impl Default for ServiceModel {
    /// A small model on two CPU cores; real steps replace it within seconds.
    fn default() -> Self {
        Self { decode_s: 0.02, prefill_s: 0.001 }
    }
}

impl ServiceModel {
    /// Seconds of service that a request needs: its prefill and `output_tokens` steps.
    pub fn service_s(&self, prefill_tokens: u32, output_tokens: f64) -> f64 {
        f64::from(prefill_tokens) * self.prefill_s + output_tokens * self.decode_s
    }

    /// Learns from an executed step.
    pub(crate) fn learn(&mut self, step: &StepSample) {
        let StepSample { prefill_tokens, decodes, took_s, .. } = *step;
        if prefill_tokens == 0 {
            self.decode_s += NEWEST_WEIGHT * (took_s - self.decode_s);
            return;
        }
        let base_s = if decodes > 0 { self.decode_s } else { 0.0 };
        let per_token_s = ((took_s - base_s) / f64::from(prefill_tokens)).max(0.0);
        self.prefill_s += NEWEST_WEIGHT * (per_token_s - self.prefill_s);
    }
}

/// What it costs the host to pause and later resume a request.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct SwitchCost {
    /// Seconds per context token to copy KV out and back in; infinite where the host cannot swap.
    pub swap_s_per_token: f64,
    /// KV that swapped requests may occupy outside the ledger, in blocks; beyond it they are recomputed.
    pub max_swapped_blocks: u32,
}

impl SwitchCost {
    /// A host that cannot swap, such as vLLM.
    pub const RECOMPUTE_ONLY: Self = Self { swap_s_per_token: f64::INFINITY, max_swapped_blocks: 0 };

    /// The cheaper way to pause a request with `context_tokens`, and its cost in seconds.
    pub(crate) fn cheapest(
        &self,
        context_tokens: u32,
        prefill_s: f64,
        may_swap: bool,
    ) -> (SwitchMethod, f64) {
        let swap_s = self.swap_s_per_token * f64::from(context_tokens);
        let recompute_s = prefill_s * f64::from(context_tokens);
        if may_swap && swap_s <= recompute_s {
            (SwitchMethod::Swap, swap_s)
        } else {
            (SwitchMethod::Recompute, recompute_s)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_converges_to_the_measured_step_costs() {
        let mut model = ServiceModel { decode_s: 1.0, prefill_s: 1.0 };
        for _ in 0..1000 {
            model.learn(&StepSample { decodes: 8, took_s: 0.020, ..StepSample::default() });
            let mixed = StepSample { decodes: 8, prefill_tokens: 32, took_s: 0.052, ..StepSample::default() };
            model.learn(&mixed);
        }
        assert!((model.decode_s - 0.020).abs() < 1e-4, "{model:?}");
        assert!((model.prefill_s - 0.001).abs() < 1e-5, "{model:?}");
    }

    #[test]
    fn swapping_wins_where_it_is_cheaper_and_room_is_left() {
        let cost = SwitchCost { swap_s_per_token: 2.5e-6, max_swapped_blocks: 100 };
        assert_eq!(cost.cheapest(200, 1e-3, true).0, SwitchMethod::Swap);
        assert_eq!(cost.cheapest(200, 1e-3, false).0, SwitchMethod::Recompute);
        assert_eq!(SwitchCost::RECOMPUTE_ONLY.cheapest(200, 1e-3, true).0, SwitchMethod::Recompute);
    }
}
