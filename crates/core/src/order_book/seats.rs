//! Who should lose a seat to whom, and who has waited for too many steps.

use super::OrderBook;
use crate::{Hysteresis, Place, Preemption, Rank, RequestId, State, Timestamp};

impl OrderBook {
    /// Running requests that should lose their seat to those first in the queue, the worst first, while `free_seats` are
    /// free. A policy that limits preemption ([`Hysteresis`]) takes none then; one that always preempts leaves the free
    /// seats to the first in the queue, and takes one for each that follows while it ranks ahead.
    pub fn victims(&mut self, now: Timestamp, free_seats: usize) -> Vec<RequestId> {
        self.estimates.now = now;
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let chosen: Vec<usize> = match self.policy.preemption(self.estimates.load) {
            Preemption::Never => return Vec::new(),
            Preemption::Always => {
                let worst_first = self.rank_all_running();
                let pairs = self.waiting.iter().skip(free_seats).zip(worst_first);
                pairs.take_while(|&(place, (rank, _))| place.rank < rank).map(|(_, (_, slot))| slot).collect()
            }
            Preemption::Limited(_) if free_seats > 0 => return Vec::new(),
            Preemption::Limited(limits) => {
                let worst_first = self.rank_running(limits);
                let pairs = self.waiting.iter().zip(worst_first);
                let taken = pairs.take_while(|&(place, victim)| self.displaces(place, victim, limits));
                taken.map(|(_, (_, slot))| slot).collect()
            }
        };
        chosen.into_iter().map(|slot| self.entries[slot].request.id).collect()
    }

    /// To be asked before each step with the seats that are free: whether they wait for others to become free, so that several
    /// requests start in one step ([`crate::Policy::gather_share`]). Nobody takes a seat in this step then.
    pub fn gathers(&mut self, free_seats: usize) -> bool {
        self.gather.holds(self.policy.gather_share(), self.seats as usize, free_seats, self.waiting.len())
    }

    /// The host ran a step with those who have a seat in its batch: a promotion lasts for a quantum of such steps.
    pub fn stepped(&mut self) {
        self.steps += 1;
        if self.policy.starvation().is_none() {
            return;
        }
        for at in 0..self.running.len() {
            let slot = self.running[at];
            let entry = &mut self.entries[slot];
            if entry.promoted {
                entry.quantum_steps = entry.quantum_steps.saturating_sub(1);
                entry.promoted = entry.quantum_steps > 0;
            }
            self.stop_starvation_timer(slot);
        }
    }

    /// Promotes those who missed the threshold of steps; a timer starts anew for as long as they wait.
    pub(super) fn promote_starving(&mut self) {
        let Some(starvation) = self.policy.starvation() else { return };
        while let Some(slot) = self.timers.pop_due(self.steps) {
            self.promotions += 1;
            let entry = &mut self.entries[slot];
            let was_promoted = std::mem::replace(&mut entry.promoted, true);
            entry.quantum_steps = starvation.quantum_steps;
            entry.starves_at_step = None;
            if entry.state != State::Running && !was_promoted {
                self.waiting.remove(self.entries[slot].lane, self.entries[slot].rank);
                self.enqueue(slot);
                self.changed.push((self.entries[slot].request.id, self.entries[slot].rank));
            }
            self.start_starvation_timer(slot);
        }
    }

    /// Unless it is in a batch before, the request is promoted after the threshold of steps, the next one included.
    pub(super) fn start_starvation_timer(&mut self, slot: usize) {
        let Some(starvation) = self.policy.starvation() else { return };
        if self.entries[slot].starves_at_step.is_none() {
            let due_step = self.steps + starvation.threshold_steps;
            self.entries[slot].starves_at_step = Some(due_step);
            self.timers.set(due_step, slot);
        }
    }

    pub(super) fn stop_starvation_timer(&mut self, slot: usize) {
        if let Some(due_step) = self.entries[slot].starves_at_step.take() {
            self.timers.clear(due_step, slot);
        }
    }

    /// Running requests, the worst rank first.
    fn rank_all_running(&mut self) -> Vec<(Rank, usize)> {
        let mut ranked = Vec::with_capacity(self.running.len());
        for at in 0..self.running.len() {
            let slot = self.running[at];
            ranked.push((self.refresh_rank(slot), slot));
        }
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked
    }

    /// Running requests that may be paused, the worst rank first, no more than may be in one step.
    fn rank_running(&mut self, limits: Hysteresis) -> Vec<(Rank, usize)> {
        let mut ranked = Vec::with_capacity(self.running.len());
        for at in 0..self.running.len() {
            let slot = self.running[at];
            let entry = &self.entries[slot];
            if entry.rank_is_stale() {
                self.refresh_rank(slot);
            }
            if self.entries[slot].preemptions < limits.max_per_request {
                ranked.push((self.entries[slot].rank, slot));
            }
        }
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.truncate(limits.max_per_step as usize);
        ranked
    }

    fn displaces(&self, waiting: &Place, victim: (Rank, usize), limits: Hysteresis) -> bool {
        let (rank, slot) = victim;
        let cost_s = f64::from(self.entries[slot].context_tokens()) * self.estimates.service.prefill_s;
        waiting.rank.key.value() + limits.min_gain + limits.switch_cost_factor * cost_s < rank.key.value()
    }
}
