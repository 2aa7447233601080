//! One step of work, as the scheduler orders it and the host executes it.

use serde::{Deserialize, Serialize};

use crate::RequestId;

/// What the host does in one step, in this order: pauses, then seats, then the batch in one forward pass.
/// A plan is a promise: the next call of `plan` assumes that this one was executed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Number of this step, from 1.
    pub step: u64,
    /// Running requests that leave the batch and give up their seat.
    pub pause: Vec<Pause>,
    /// Requests that take a seat, new or resumed.
    pub seat: Vec<Seated>,
    /// The batch: what each seated request processes in this step. Ids are unique.
    pub batch: Vec<Slice>,
}

impl Plan {
    /// Whether there is nothing to do: the host may sleep until the next submission.
    pub fn is_idle(&self) -> bool {
        self.pause.is_empty() && self.seat.is_empty() && self.batch.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.pause.clear();
        self.seat.clear();
        self.batch.clear();
    }
}

/// How the KV of a paused request is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchMethod {
    /// Copied to host memory and restored when it resumes.
    Swap,
    /// Dropped; prompt and output so far are prefilled again when it resumes.
    Recompute,
}

/// A running request that gives up its seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    /// Which one.
    pub id: RequestId,
    /// What becomes of its KV.
    pub method: SwitchMethod,
}

/// A request that takes a seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seated {
    /// Which one.
    pub id: RequestId,
    /// Whether the host restores KV that it swapped out before; otherwise the seat starts empty.
    pub restore: bool,
}

/// A run of context tokens of one request that is processed in this step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Which request.
    pub id: RequestId,
    /// First context position processed (0-based). The context is the prompt followed by the output so far.
    pub start: u32,
    /// Number of positions processed, at least 1.
    pub tokens: u32,
    /// Whether the last position is the end of the context, so that its logits give the next output token.
    pub samples: bool,
}
