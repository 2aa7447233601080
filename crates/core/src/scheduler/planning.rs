//! One step: promote, make room, decode, prefill, admit.

use super::Scheduler;
#[cfg(doc)]
use crate::gather::Gather;
use crate::{Plan, Rank, Seated, Slice, State, Timestamp, blocks_for};

/// Waiting requests that admission looks at in one step beyond those it admits.
const MAX_ADMISSION_SCAN: usize = 64;

/// Tokens that the step may still process.
struct Budget {
    tokens: u32,
    prefill_tokens: u32,
}

impl Budget {
    /// Tokens that a request with so many pending ones may process.
    fn tokens_for(&self, pending_tokens: u32) -> u32 {
        let limit = if pending_tokens == 1 { self.tokens } else { self.tokens.min(self.prefill_tokens) };
        pending_tokens.min(limit)
    }
}

impl Scheduler {
    /// Plans the next step. The host executes it before it asks for another, and reports tokens and ends in
    /// between; an idle plan means that there is nothing to do until the next submission.
    pub fn plan(&mut self, now: Timestamp) -> &Plan {
        self.plan.clear();
        self.counters.steps += 1;
        self.plan.step = self.counters.steps;
        self.estimates.now = now;
        self.rekey(now);
        self.follow_load();
        self.promote_starving();
        self.make_room();
        let paused = self.plan.pause.len();
        let mut budget = self.decode();
        let memory_ran_out = self.plan.pause.len() > paused;
        self.prefill_and_admit(now, &mut budget, memory_ran_out);
        self.account_starvation();
        &self.plan
    }

    /// Promotes requests whose starvation timer ran out; a timer starts anew for as long as they wait.
    fn promote_starving(&mut self) {
        let Some(starvation) = self.policy.starvation() else { return };
        let step = self.plan.step;
        while let Some(slot) = self.timers.pop_due(step) {
            self.counters.promotions += 1;
            let entry = &mut self.entries[slot];
            let was_promoted = std::mem::replace(&mut entry.promoted, true);
            entry.quantum_steps = starvation.quantum_steps;
            entry.starves_at_step = None;
            if entry.state != State::Running && !was_promoted {
                self.requeue(slot);
            }
            self.start_starvation_timer(slot, step);
        }
    }

    /// Gives every decoding request its token, first of all: a token gap hurts more than a later first token.
    fn decode(&mut self) -> Budget {
        if (self.kv.free_blocks() as usize) < self.running.len() {
            // Memory may run out: serve in order of rank and evict from the other end.
            let mut ranked: Vec<_> = self.running.iter().map(|&slot| (self.rank_of(slot), slot)).collect();
            ranked.sort_unstable();
            self.running = ranked.into_iter().map(|(_, slot)| slot).collect();
        }
        let mut at = 0;
        while at < self.running.len() {
            let slot = self.running[at];
            if self.entries[slot].pending_tokens() == 1 && !self.grow(slot) {
                // Evict the worst; the loop ends when that is this request itself.
                if let Some(&worst) = self.running.last() {
                    self.pause(worst);
                }
                continue;
            }
            if self.entries[slot].pending_tokens() == 1 {
                self.process(slot, 1);
            }
            at += 1;
        }
        let tokens = self.config.capacity.step_tokens - self.plan.batch.len() as u32;
        let chunked = !self.plan.batch.is_empty();
        let prefill_tokens = if chunked { self.config.capacity.prefill_chunk_tokens } else { tokens };
        Budget { tokens, prefill_tokens }
    }

    /// Spends what is left of the step in order of rank, on prefills under way and on waiting requests, which take a seat for
    /// it while seats and memory last: a long prompt holds up no short one that comes later. Who would get nothing in this
    /// step stays in the queue, where shorter ones that come meanwhile can pass, unless a seat was cleared for it. Smaller
    /// requests may pass a head that memory keeps waiting, but not for longer than `max_bypass_s`. In a step in which seats
    /// gather ([`Gather`]) nobody takes one, nor in one in which memory ran out: what the evicted one left is for those who run, and
    /// whoever took it would be evicted next.
    fn prefill_and_admit(&mut self, now: Timestamp, budget: &mut Budget, memory_ran_out: bool) {
        let step = self.plan.step;
        let (mut skipped, mut cleared) = (0, self.plan.pause.len());
        let mut under_way = self.prefills_under_way().into_iter().peekable();
        let mut cursor = self.waiting.first();
        if memory_ran_out || (self.gathers() && cleared == 0 && under_way.peek().is_none()) {
            cursor = None;
        }
        while let Some(place) = cursor {
            let on_seat = self.entries[place.slot].rank_on_seat(&*self.policy, &self.estimates);
            while let Some((_, slot)) = under_way.next_if(|&(rank, _)| rank < on_seat) {
                self.prefill(slot, self.entries[slot].pending_tokens(), budget);
            }
            let full = self.running.len() >= self.config.capacity.seats as usize;
            let entry = &self.entries[place.slot];
            let (need_blocks, pending_tokens) = (entry.context_blocks(), entry.pending_tokens());
            let unserved = budget.tokens_for(pending_tokens) == 0;
            if full || (unserved && cleared == 0) || skipped > MAX_ADMISSION_SCAN {
                break;
            }
            if entry.paused_at_step == step {
                skipped += 1;
            } else if self.kv.admits(need_blocks) {
                cleared = cleared.saturating_sub(usize::from(unserved));
                self.seat(place.slot, need_blocks);
                self.prefill(place.slot, pending_tokens, budget);
            } else if self.may_bypass(now, place.slot) {
                skipped += 1;
            } else {
                break;
            }
            cursor = self.waiting.iter_after(place.rank).next().copied();
        }
        for (_, slot) in under_way {
            self.prefill(slot, self.entries[slot].pending_tokens(), budget);
        }
    }

    /// Whether free seats wait for others.
    fn gathers(&mut self) -> bool {
        let seats = self.config.capacity.seats as usize;
        let free = seats.saturating_sub(self.running.len());
        self.gather.holds(self.policy.gather_share(), seats, free, self.waiting.len())
    }

    /// Requests on a seat whose context is not computed yet, in order of rank.
    fn prefills_under_way(&self) -> Vec<(Rank, usize)> {
        let pending = self.running.iter().filter(|&&slot| self.entries[slot].pending_tokens() > 0);
        let mut ranked: Vec<_> = pending.map(|&slot| (self.rank_of(slot), slot)).collect();
        ranked.sort_unstable();
        ranked
    }

    /// Whether requests behind this one may start before it although it is its turn.
    fn may_bypass(&mut self, now: Timestamp, slot: usize) -> bool {
        let id = self.entries[slot].request.id;
        if self.waiting.first().is_some_and(|head| head.slot != slot) {
            return true;
        }
        let since = match self.head_blocked {
            Some((blocked, since)) if blocked == id => since,
            _ => {
                self.head_blocked = Some((id, now));
                now
            }
        };
        now.since(since).as_secs_f64() < self.config.max_bypass_s
    }

    /// Gives a waiting request a seat and the blocks of its context.
    fn seat(&mut self, slot: usize, blocks: u32) {
        self.waiting.remove(self.entries[slot].rank);
        let taken = self.kv.take(blocks);
        debug_assert!(taken, "admission checked that the blocks are free");
        if self.entries[slot].state == State::Waiting {
            let overtaken_by = self.overtakes.start(self.entries[slot].number);
            self.entries[slot].overtaken_by = overtaken_by;
            self.counters.overtakes += overtaken_by;
            let prediction = self.entries[slot].prediction;
            self.entries[slot].ticket = prediction.map(|prediction| self.monitor.start(prediction.score));
        }
        let restore = self.entries[slot].swapped_blocks > 0;
        self.drop_swapped(slot);
        let entry = &mut self.entries[slot];
        entry.kv_blocks = blocks;
        entry.state = State::Running;
        self.plan.seat.push(Seated { id: entry.request.id, restore });
        self.running.push(slot);
    }

    /// Lets a request process up to `pending_tokens`, as far as the budget allows.
    fn prefill(&mut self, slot: usize, pending_tokens: u32, budget: &mut Budget) {
        let tokens = budget.tokens_for(pending_tokens);
        if tokens == 0 {
            return;
        }
        budget.tokens -= tokens;
        budget.prefill_tokens = budget.prefill_tokens.saturating_sub(tokens);
        self.process(slot, tokens);
    }

    /// Takes the block that the next token of a decoding request needs, if it needs one.
    fn grow(&mut self, slot: usize) -> bool {
        let entry = &mut self.entries[slot];
        let missing = blocks_for(entry.context_tokens()).saturating_sub(entry.kv_blocks);
        let taken = self.kv.take(missing);
        if taken {
            entry.kv_blocks += missing;
        }
        taken
    }

    /// Enters the next `tokens` context positions of a request into the batch.
    fn process(&mut self, slot: usize, tokens: u32) {
        let entry = &mut self.entries[slot];
        let start = entry.computed_tokens;
        entry.computed_tokens += tokens;
        entry.batched_at_step = self.plan.step;
        let samples = entry.pending_tokens() == 0;
        self.plan.batch.push(Slice { id: entry.request.id, start, tokens, samples });
    }

    /// Stops the timers of requests in the batch and spends their quantum; starts the timers of those that lost
    /// their seat or got nothing on it. Waiting requests need no touch: their timers run.
    fn account_starvation(&mut self) {
        if self.policy.starvation().is_none() {
            return;
        }
        let step = self.plan.step;
        for at in 0..self.running.len() {
            let slot = self.running[at];
            let entry = &mut self.entries[slot];
            if entry.batched_at_step == step {
                if entry.promoted {
                    entry.quantum_steps = entry.quantum_steps.saturating_sub(1);
                    entry.promoted = entry.quantum_steps > 0;
                }
                self.stop_starvation_timer(slot);
            } else if entry.starves_at_step.is_none() {
                self.start_starvation_timer(slot, step);
            }
        }
        for at in 0..self.plan.pause.len() {
            let slot = self.slots[&self.plan.pause[at].id];
            if self.entries[slot].starves_at_step.is_none() {
                self.start_starvation_timer(slot, step);
            }
        }
    }
}
