//! A log of steps: what each forward pass held and how long it took. Cost models of the simulator are fitted to it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use outrank_core::Slice;
use serde::{Deserialize, Serialize};

/// One forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the plan that it executed.
    pub step: u64,
    /// Context tokens processed beyond the decodes.
    pub prefill_tokens: u32,
    /// Sequences that prefilled.
    pub prefill_seqs: u32,
    /// Sequences that processed their one newest token.
    pub decode_seqs: u32,
    /// Context of all sequences in the batch after the step, in tokens.
    pub context_tokens: u64,
    /// Longest context in the batch after the step, in tokens.
    pub max_context_tokens: u32,
    /// Sequences that gave up their seat before the step.
    pub paused: u32,
    /// Sequences restored from host memory before the step.
    pub restored: u32,
    /// Time of pauses, restores and moves before the step, in microseconds.
    pub switch_us: u64,
    /// Time of the forward pass and the sampling, in microseconds.
    pub duration_us: u64,
    /// End of the step on the engine's clock, in microseconds since its start.
    pub ended_us: u64,
}

impl StepRecord {
    /// Counts a slice of the batch, which either decodes one token or prefills.
    pub(crate) fn add(&mut self, slice: &Slice, decodes: bool) {
        let end = slice.start + slice.tokens;
        self.decode_seqs += u32::from(decodes);
        self.prefill_seqs += u32::from(!decodes);
        self.prefill_tokens += if decodes { 0 } else { slice.tokens };
        self.context_tokens += u64::from(end);
        self.max_context_tokens = self.max_context_tokens.max(end);
    }
}

/// The file that records go to.
#[derive(Debug)]
pub(crate) struct StepLog {
    out: BufWriter<File>,
}

impl StepLog {
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { out: BufWriter::new(File::create(path)?) })
    }

    /// Appends one line. A full disk must not stop serving: errors are reported once by [`Self::flush`].
    pub(crate) fn write(&mut self, record: &StepRecord) {
        let written = serde_json::to_writer(&mut self.out, record).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|()| self.out.write_all(b"\n")) {
            tracing::warn!(%error, "step log");
        }
    }

    pub(crate) fn flush(&mut self) {
        if let Err(error) = self.out.flush() {
            tracing::warn!(%error, "step log");
        }
    }
}
