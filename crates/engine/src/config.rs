//! Settings of the engine.

use std::path::PathBuf;

use outrank_core::{Capacity, MonitorSettings, SchedulerConfig, ServiceModel, SwitchCost, blocks_for};
use serde::{Deserialize, Serialize};

/// Settings of the engine. `Default` suits a small model on a few CPU cores.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Sequences in the batch at once.
    pub seats: u32,
    /// Longest context of one sequence, prompt and output together, in tokens. Memory is allocated for
    /// `seats * context_tokens`.
    pub context_tokens: u32,
    /// Threads of one forward pass; 0 takes the number of cores. Under contention fewer can be faster.
    pub threads: u32,
    /// KV memory in blocks of 16 tokens; 0 takes what all seats at full context need.
    pub kv_blocks: u32,
    /// KV blocks that admission leaves free for running requests to grow into.
    pub watermark_blocks: u32,
    /// Tokens of one step, decode and prefill together.
    pub step_tokens: u32,
    /// Prefill tokens of one step while others decode.
    pub prefill_chunk_tokens: u32,
    /// Requests waiting, at most; beyond it submissions are refused.
    pub max_queue_requests: usize,
    /// KV blocks of paused requests kept in host memory, at most.
    pub max_swapped_blocks: u32,
    /// Seconds per context token to copy KV out and back in.
    pub swap_s_per_token: f64,
    /// First guess of the step costs; measured ones replace it within seconds.
    pub service: ServiceModel,
    /// Output length that a request without prediction is taken for at first, in tokens.
    pub unscored_tokens: f64,
    /// Seconds for which smaller requests may pass a request that memory keeps waiting.
    pub max_bypass_s: f64,
    /// When to stop following the ranker.
    pub monitor: MonitorSettings,
    /// File to which one JSON line per step is appended ([`crate::StepRecord`]).
    pub step_log: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            seats: 8,
            context_tokens: 2048,
            threads: 0,
            kv_blocks: 0,
            watermark_blocks: 0,
            step_tokens: 256,
            prefill_chunk_tokens: 32,
            max_queue_requests: 1024,
            max_swapped_blocks: 4096,
            // Measured for SmolLM2-135M: 0.48 ms to save, drop and restore 200 tokens.
            swap_s_per_token: 2.5e-6,
            service: ServiceModel::default(),
            unscored_tokens: 128.0,
            max_bypass_s: 10.0,
            monitor: MonitorSettings::default(),
            step_log: None,
        }
    }
}

impl EngineConfig {
    /// KV memory in blocks, with the default resolved.
    pub fn kv_blocks(&self) -> u32 {
        let full = self.seats.saturating_mul(blocks_for(self.context_tokens));
        if self.kv_blocks == 0 { full.saturating_add(self.watermark_blocks) } else { self.kv_blocks }
    }

    /// Threads of one forward pass, with the default resolved.
    pub fn threads(&self) -> u32 {
        if self.threads > 0 {
            return self.threads;
        }
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
    }

    /// What the scheduler is told about this engine.
    pub fn scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            capacity: Capacity {
                seats: self.seats,
                kv_blocks: self.kv_blocks(),
                watermark_blocks: self.watermark_blocks,
                step_tokens: self.step_tokens,
                prefill_chunk_tokens: self.prefill_chunk_tokens,
                context_tokens: self.context_tokens,
            },
            max_queue_requests: self.max_queue_requests,
            switch_cost: SwitchCost {
                swap_s_per_token: self.swap_s_per_token,
                max_swapped_blocks: self.max_swapped_blocks,
            },
            service: self.service,
            unscored_tokens: self.unscored_tokens,
            max_bypass_s: self.max_bypass_s,
            monitor: self.monitor,
        }
    }
}
