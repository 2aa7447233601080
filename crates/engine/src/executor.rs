//! The llama context: sequences on seats, one forward pass at a time.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{LlamaStateSeqFlags, SeqState};
use llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO;

use crate::backend::{backend, capture_errors};
use crate::{EngineError, Model, Token};

/// Cells of one sequence are allocated in multiples of this many tokens (llama.cpp pads to it).
const CONTEXT_PADDING_TOKENS: u32 = 256;
/// Keys and values are kept in different types of the same size, because of what llama.cpp's CPU backend does where they
/// are the same: it attends by tiles for 64 and more tokens of a sequence, and splits the keys of a lone sequence between
/// threads from 512 tokens on. Each rounds differently, so greedy output would depend on the batch (tests/logits.rs).
/// Measured on SmolLM2-135M: as fast (39.1 ms against 40.6 a step of 8 sequences of 400 tokens), and perplexity within
/// what any change of rounding gives. Values stay F16, for which the kernel is fastest.
const KEY_TYPE: KvCacheType = KvCacheType::BF16;
/// See [`KEY_TYPE`].
const VALUE_TYPE: KvCacheType = KvCacheType::F16;
/// Tokens that llama.cpp computes at once, at most; more only costs memory.
const MAX_UBATCH_TOKENS: u32 = 512;

/// Size of a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExecutorConfig {
    /// Sequences held at once.
    pub seats: u32,
    /// Longest sequence in tokens.
    pub context_tokens: u32,
    /// Tokens of one forward pass, at most.
    pub step_tokens: u32,
    /// Threads of one forward pass.
    pub threads: u32,
}

/// A run of tokens of one sequence to process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchSlice<'a> {
    /// The sequence.
    pub seat: u32,
    /// Position of the first token; the sequence holds exactly the positions before it.
    pub start: u32,
    /// The tokens, at least one.
    pub tokens: &'a [Token],
    /// Whether the logits after the last token are wanted.
    pub samples: bool,
}

/// A slice that could not be processed. Its sequence must be cleared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceFailure {
    /// Index of the slice in the batch.
    pub index: usize,
    /// Why, in words.
    pub reason: String,
}

/// A sequence in host memory.
pub struct SavedSequence(SeqState);

impl SavedSequence {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.byte_len()
    }
}

impl std::fmt::Debug for SavedSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SavedSequence").field(&self.bytes()).finish()
    }
}

/// A llama context whose sequences are seats. Each seat has its own KV cells (`kv_unified = false`): what a sequence
/// computes does not depend on who else is there, nor on how its prompt was cut, to the last bit with Q8_0 weights
/// (for which llama.cpp's kernels add in the same order whatever the batch; other formats were not verified).
#[derive(Debug)]
pub struct Executor<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    step_tokens: usize,
    seats: u32,
    /// Indices of the slices of the current batch, by seat.
    order: Vec<usize>,
    /// Position in the llama batch of the last token of each slice.
    last: Vec<i32>,
}

impl<'m> Executor<'m> {
    /// Allocates a context for `model`.
    ///
    /// # Errors
    /// [`EngineError::Context`] for want of memory, [`EngineError::Config`] for sizes beyond what llama.cpp counts,
    /// [`EngineError::Start`] where llama.cpp itself does not start.
    pub fn new(model: &'m Model, config: ExecutorConfig) -> Result<Self, EngineError> {
        let ExecutorConfig { seats, context_tokens, step_tokens, threads } = config;
        let too_large = || EngineError::Config(format!("{config:?} is too large for llama.cpp"));
        let backend = backend().map_err(|error| EngineError::Start(error.to_string()))?;
        let padded = context_tokens.checked_next_multiple_of(CONTEXT_PADDING_TOKENS).ok_or_else(too_large)?;
        let cells =
            padded.checked_mul(seats).filter(|&cells| i32::try_from(cells).is_ok()).ok_or_else(too_large)?;
        let threads = i32::try_from(threads).map_err(|_| too_large())?;
        let params = LlamaContextParams::default()
            .with_n_ctx(std::num::NonZeroU32::new(cells))
            .with_n_seq_max(seats)
            .with_kv_unified(false)
            .with_flash_attention_policy(LLAMA_FLASH_ATTN_TYPE_AUTO)
            .with_type_k(KEY_TYPE)
            .with_type_v(VALUE_TYPE)
            .with_n_batch(step_tokens)
            .with_n_ubatch(step_tokens.min(MAX_UBATCH_TOKENS))
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_no_perf(true);
        let (context, reason) = capture_errors(|| model.llama().new_context(backend, params));
        let context = context.map_err(|_| EngineError::Context { seats, context_tokens, reason })?;
        let step_tokens = step_tokens as usize;
        // One sequence id a token: `LlamaBatch::add` writes out of bounds if it is given more than declared.
        let batch = LlamaBatch::new(step_tokens, 1);
        Ok(Self { context, batch, step_tokens, seats, order: Vec::new(), last: Vec::new() })
    }

    /// Sequences held at once.
    pub fn seats(&self) -> u32 {
        self.seats
    }

    /// Processes all slices in one forward pass and calls `on_logits` with the index and the logits of each slice
    /// that samples. Slices may be in any order; each seat may occur once.
    ///
    /// If the pass fails as a whole, every slice is tried alone, and those that fail alone are returned: one bad
    /// sequence does not take the others with it.
    pub fn decode(
        &mut self,
        slices: &[BatchSlice<'_>],
        mut on_logits: impl FnMut(usize, &[f32]),
    ) -> Vec<SliceFailure> {
        self.order.clear();
        self.order.extend(0..slices.len());
        // llama.cpp computes consecutive seats together; every gap or step back costs a pass of its own.
        self.order.sort_unstable_by_key(|&index| slices[index].seat);
        let order = std::mem::take(&mut self.order);
        let mut failures = Vec::new();
        if let Err(reason) = self.pass(slices, &order, &mut on_logits) {
            tracing::warn!(reason, slices = slices.len(), "a step failed: trying its sequences one by one");
            for &index in &order {
                let BatchSlice { seat, start, .. } = slices[index];
                // What the failed pass may have left of the slice goes first.
                let outcome =
                    self.remove(seat, Some(start)).and_then(|()| self.pass(slices, &[index], &mut on_logits));
                if let Err(reason) = outcome {
                    failures.push(SliceFailure { index, reason });
                }
            }
        }
        self.order = order;
        failures
    }

    fn pass(
        &mut self,
        slices: &[BatchSlice<'_>],
        order: &[usize],
        on_logits: &mut impl FnMut(usize, &[f32]),
    ) -> Result<(), String> {
        self.fill(slices, order)?;
        let (result, reason) = capture_errors(|| self.context.decode(&mut self.batch));
        result.map_err(|error| format!("{error} ({reason})"))?;
        for (&index, &last) in order.iter().zip(&self.last) {
            if slices[index].samples {
                on_logits(index, self.context.get_logits_ith(last));
            }
        }
        Ok(())
    }

    fn fill(&mut self, slices: &[BatchSlice<'_>], order: &[usize]) -> Result<(), String> {
        self.batch.clear();
        self.last.clear();
        for &index in order {
            let BatchSlice { seat, start, tokens, samples } = slices[index];
            if seat >= self.seats || tokens.is_empty() {
                return Err(format!("slice {index} has seat {seat} and {} tokens", tokens.len()));
            }
            for (position, &token) in (start..).zip(tokens) {
                let wanted = samples && position + 1 == start + tokens.len() as u32;
                self.batch
                    .add(LlamaToken(token), position as i32, &[seat as i32], wanted)
                    .map_err(|_| format!("the batch exceeds {} tokens", self.step_tokens))?;
            }
            self.last.push(self.batch.n_tokens() - 1);
        }
        Ok(())
    }

    /// Empties a seat.
    ///
    /// # Errors
    /// The reason in words; the model then cannot drop sequences.
    pub fn clear(&mut self, seat: u32) -> Result<(), String> {
        self.remove(seat, None)
    }

    fn remove(&mut self, seat: u32, from: Option<u32>) -> Result<(), String> {
        match self.context.clear_kv_cache_seq(Some(seat), from, None) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("llama.cpp cannot remove part of sequence {seat}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Copies the sequence of a seat to host memory; the seat keeps it.
    ///
    /// # Errors
    /// The reason in words.
    pub fn save(&self, seat: u32) -> Result<SavedSequence, String> {
        let state = self.context.state_seq_get(seat as i32, LlamaStateSeqFlags::empty());
        state.map(SavedSequence).map_err(|error| error.to_string())
    }

    /// Puts a saved sequence onto an empty seat, not necessarily the one it came from.
    ///
    /// # Errors
    /// The reason in words; the seat is then empty.
    pub fn restore(&mut self, seat: u32, saved: &SavedSequence) -> Result<(), String> {
        let (restored, reason) = capture_errors(|| self.context.state_seq_set(&saved.0, seat as i32));
        restored.map_err(|error| {
            // The seat holds nothing that could be kept; the caller hears of the restore that failed.
            let _ = self.remove(seat, None);
            format!("{error} ({reason})")
        })
    }

    /// Moves a sequence to an empty seat.
    ///
    /// # Errors
    /// The reason in words; the sequence is then where it was.
    pub fn relocate(&mut self, from: u32, to: u32) -> Result<(), String> {
        let saved = self.save(from)?;
        self.restore(to, &saved)?;
        self.clear(from)
    }
}
