//! Starvation prevention as the paper has it: promotion after a number of steps out of the batch.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Settings of starvation prevention; both count steps, not seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Starvation {
    /// Consecutive steps out of the batch after which a request is promoted.
    pub threshold_steps: u64,
    /// Steps in the batch that a promotion lasts.
    pub quantum_steps: u32,
}

/// Tells which requests reach the threshold, without touching those that do not: counting every waiting request
/// in every step would cost O(waiting); a timer per request costs O(log n) when it enters or leaves the batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct StarvationTimers {
    /// (step in which the request is promoted unless it was in a batch before, slot of the request).
    due: BTreeSet<(u64, usize)>,
}

impl StarvationTimers {
    /// The request in `slot` will be promoted in step `due_step`.
    pub(crate) fn set(&mut self, due_step: u64, slot: usize) {
        self.due.insert((due_step, slot));
    }

    /// The request in `slot`, whose timer was set to `due_step`, got into a batch or left.
    pub(crate) fn clear(&mut self, due_step: u64, slot: usize) {
        self.due.remove(&(due_step, slot));
    }

    /// Removes and returns a slot whose timer is due in `step`.
    pub(crate) fn pop_due(&mut self, step: u64) -> Option<usize> {
        let &(due_step, slot) = self.due.first()?;
        (due_step <= step).then(|| {
            self.due.pop_first();
            slot
        })
    }
}
