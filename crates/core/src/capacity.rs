//! What the host can run at once.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Tokens in one KV block, the unit in which KV memory is accounted (vLLM's default block size).
pub const BLOCK_TOKENS: u32 = 16;

/// What the host can run in one step and hold at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capacity {
    /// Sequences that may be in the batch at once.
    pub seats: u32,
    /// KV memory, in blocks of [`BLOCK_TOKENS`] tokens.
    pub kv_blocks: u32,
    /// Blocks that admission leaves free, so that running requests can grow before one must be evicted.
    pub watermark_blocks: u32,
    /// Tokens that one step may process, decode and prefill together.
    pub step_tokens: u32,
    /// Prefill tokens that one step may process while others decode (chunked prefill): it bounds the gap that a
    /// long prompt opens between the tokens of everyone else. Alone, a prefill may use all of `step_tokens`.
    pub prefill_chunk_tokens: u32,
    /// Longest context of one sequence, prompt and output together, in tokens.
    pub context_tokens: u32,
}

/// A capacity under which nothing, or not everything accepted, could run.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct CapacityError(String);

impl Capacity {
    /// Checks that every request which fits `context_tokens` can run alone.
    ///
    /// # Errors
    /// [`CapacityError`] naming the setting to change.
    pub fn check(&self) -> Result<(), CapacityError> {
        let fail = |message: String| Err(CapacityError(message));
        if self.seats == 0 || self.context_tokens < 2 || self.prefill_chunk_tokens == 0 {
            return fail("seats, prefill_chunk_tokens and context_tokens must be at least 1, 1 and 2".into());
        }
        if self.step_tokens <= self.seats {
            let (budget, seats) = (self.step_tokens, self.seats);
            return fail(format!(
                "step_tokens = {budget} must exceed seats = {seats}, or prefill never gets a turn"
            ));
        }
        let need = crate::blocks_for(self.context_tokens) + self.watermark_blocks;
        if need > self.kv_blocks {
            let have = self.kv_blocks;
            return fail(format!(
                "kv_blocks = {have} cannot hold one context and the watermark ({need} blocks): \
                 raise kv_blocks or lower context_tokens"
            ));
        }
        Ok(())
    }
}
