//! Counts of the engine for metrics.

use outrank_core::StepSample;
use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets of [`EngineStats::step_buckets`], in seconds; the last bucket has none.
pub const STEP_BOUNDS_S: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// What the engine has done since it started.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EngineStats {
    /// Forward passes.
    pub steps: u64,
    /// Context tokens processed by prefills ([`StepSample::prefill_tokens`]): prompts, and contexts computed again.
    pub prefill_tokens: u64,
    /// Tokens sampled.
    pub output_tokens: u64,
    /// Sequences copied to host memory.
    pub swapped_out: u64,
    /// Sequences copied back from host memory.
    pub swapped_in: u64,
    /// Bytes of sequences in host memory now.
    pub swapped_bytes: u64,
    /// Requests that failed in the engine.
    pub failed: u64,
    /// Sum of step times in seconds.
    pub step_sum_s: f64,
    /// Steps by time; bucket `i` holds those of at most `STEP_BOUNDS_S[i]`, and more than the bound before.
    pub step_buckets: [u64; STEP_BOUNDS_S.len() + 1],
}

impl EngineStats {
    pub(crate) fn record_step(&mut self, step: &StepSample) {
        self.steps += 1;
        self.prefill_tokens += u64::from(step.prefill_tokens);
        self.step_sum_s += step.took_s;
        self.step_buckets[STEP_BOUNDS_S.partition_point(|&bound| bound < step.took_s)] += 1;
    }
}
