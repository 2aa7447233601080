//! Who sits where: pauses, seats, moves, the forward pass itself, and leaving.

use std::time::Instant;

use outrank_core::{Event, Pause, RequestId, Seated, Slice, SwitchMethod};

use super::{Outcome, Worker};
use crate::executor::BatchSlice;

impl Worker<'_> {
    /// Takes a request off its seat, with its KV in host memory or without.
    pub(super) fn pause(&mut self, pause: Pause) {
        let id = pause.id;
        let Some(seat) = self.jobs.get_mut(&id).and_then(|job| {
            job.preemptions += 1;
            job.seat
        }) else {
            return;
        };
        if pause.method == SwitchMethod::Swap {
            match self.executor.save(seat) {
                Ok(saved) => {
                    self.stats.swapped_out += 1;
                    self.stats.swapped_bytes += saved.bytes() as u64;
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.saved = Some(saved);
                    }
                }
                Err(reason) => {
                    tracing::warn!(id = id.0, reason, "cannot swap out: recomputing instead");
                    self.scheduler.observe(self.now(), Event::SwapLost(id));
                }
            }
        }
        self.vacate(id);
    }

    /// Gives a request the lowest free seat and restores its KV if it was swapped out. Returns whether it can go on from
    /// there; otherwise the scheduler knows that its context, prompt and output so far, is to be computed anew.
    pub(super) fn seat(&mut self, seated: Seated, now: Instant) -> bool {
        let id = seated.id;
        let free = self.seats.iter().position(Option::is_none);
        let (Some(seat), Some(job)) = (free, self.jobs.get_mut(&id)) else {
            self.fail(id, "the scheduler seated more requests than there are seats");
            return false;
        };
        job.sit(seat as u32, now);
        let saved = job.saved.take();
        self.seats[seat] = Some(id);
        if let Some(saved) = &saved {
            self.stats.swapped_bytes -= saved.bytes() as u64;
        }
        if !seated.restore {
            return true;
        }
        let restored = match &saved {
            Some(saved) => self.executor.restore(seat as u32, saved),
            None => Err("nothing was saved".to_owned()),
        };
        if let Err(reason) = restored {
            tracing::warn!(id = id.0, reason, "cannot restore a paused request: computing its context again");
            self.scheduler.observe(self.now(), Event::SwapLost(id));
            return false;
        }
        self.stats.swapped_in += 1;
        true
    }

    /// Moves sequences so that the taken seats are the lowest ones: llama.cpp computes consecutive seats together,
    /// and each gap would cost every step a pass over the weights.
    pub(super) fn close_gaps(&mut self) {
        while let Some(gap) = self.seats.iter().position(Option::is_none)
            && let Some(last) = self.seats.iter().rposition(Option::is_some)
            && gap < last
        {
            if let Err(reason) = self.executor.relocate(last as u32, gap as u32) {
                // The sequence is where it was; a gap only costs time.
                tracing::warn!(reason, "cannot move a sequence to a free seat");
                return;
            }
            self.seats.swap(gap, last);
            if let Some(job) = self.seats[gap].and_then(|id| self.jobs.get_mut(&id)) {
                job.seat = Some(gap as u32);
            }
        }
    }

    /// Runs the batch and lets each request that samples draw its token.
    pub(super) fn decode(&mut self, slices: &[Slice]) -> Vec<(RequestId, Outcome)> {
        let mut members = Vec::with_capacity(slices.len());
        let mut tokens = Vec::new();
        for slice in slices {
            // A request that failed has left since the plan was made.
            let Some((job, seat)) = self.jobs.get(&slice.id).and_then(|job| Some((job, job.seat?))) else {
                continue;
            };
            tokens
                .extend_from_slice(&job.context[slice.start as usize..(slice.start + slice.tokens) as usize]);
            members.push((slice, seat));
        }
        let mut rest = tokens.as_slice();
        let batch: Vec<BatchSlice<'_>> = members
            .iter()
            .map(|&(slice, seat)| {
                let (tokens, others) = rest.split_at(slice.tokens as usize);
                rest = others;
                BatchSlice { seat, start: slice.start, tokens, samples: slice.samples }
            })
            .collect();
        let mut outcomes = Vec::with_capacity(batch.len());
        let (model, jobs) = (self.model, &mut self.jobs);
        let failures = self.executor.decode(&batch, |index, logits| {
            let id = members[index].0.id;
            let Some(job) = jobs.get_mut(&id) else { return };
            outcomes.push((
                id,
                if logits.iter().any(|logit| logit.is_nan()) {
                    Outcome::Failed(
                        "the model computed logits that are no numbers: its file may be damaged".into(),
                    )
                } else {
                    Outcome::Token(job.advance(model, logits, Instant::now()))
                },
            ));
        });
        outcomes.extend(failures.into_iter().map(|it| (members[it.index].0.id, Outcome::Failed(it.reason))));
        outcomes
    }

    /// Fails a request and forgets it.
    pub(super) fn fail(&mut self, id: RequestId, reason: &str) {
        tracing::warn!(id = id.0, reason, "request failed");
        self.stats.failed += 1;
        if let Some(job) = self.jobs.get(&id) {
            job.fail(reason);
        }
        self.leave(id, Event::Cancelled(id));
    }

    /// Forgets a request here and in the scheduler, and frees all it holds.
    pub(super) fn leave(&mut self, id: RequestId, event: Event) {
        self.vacate(id);
        if let Some(saved) = self.jobs.remove(&id).and_then(|job| job.saved) {
            self.stats.swapped_bytes -= saved.bytes() as u64;
        }
        self.scheduler.observe(self.now(), event);
    }

    /// Empties the seat of a request, if it has one.
    fn vacate(&mut self, id: RequestId) {
        let Some(seat) = self.jobs.get_mut(&id).and_then(|job| job.seat.take()) else { return };
        self.seats[seat as usize] = None;
        if let Err(reason) = self.executor.clear(seat) {
            tracing::error!(reason, seat, "cannot clear a seat");
        }
    }
}
