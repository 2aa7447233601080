//! Who loses a seat to whom.

use super::Scheduler;
use crate::{Hysteresis, Place, Preemption, Rank};

impl Scheduler {
    /// Pauses running requests so that waiting ones of better rank can be admitted, as far as the policy wants.
    /// A victim is paused only if that lets the waiting request in.
    pub(super) fn make_room(&mut self) {
        let limits = match self.policy.preemption(self.estimates.load) {
            Preemption::Never => return,
            Preemption::Always => None,
            Preemption::Limited(hysteresis) => Some(hysteresis),
        };
        let Some(head) = self.waiting.first() else { return };
        if self.running.is_empty() || (limits.is_some() && self.has_room_for(head.slot)) {
            return;
        }
        let worst_first = self.rank_running(limits);
        for slot in self.choose_victims(&worst_first, limits) {
            self.pause(slot);
        }
    }

    fn has_room_for(&self, slot: usize) -> bool {
        let free_seat = self.running.len() < self.config.capacity.seats as usize;
        free_seat && self.kv.admits(self.entries[slot].context_blocks())
    }

    /// Running requests to pause: each waiting request in order of rank takes a free seat and free blocks, or
    /// those of the worst running requests that it may displace.
    fn choose_victims(&self, worst_first: &[(Rank, usize)], limits: Option<Hysteresis>) -> Vec<usize> {
        let capacity = self.config.capacity;
        let mut free_seats = capacity.seats as usize - self.running.len();
        let mut free_blocks = self.kv.free_blocks();
        let mut chosen = 0;
        for waiting in self.waiting.iter() {
            let need_blocks = self.entries[waiting.slot].context_blocks();
            let wanted_blocks = need_blocks + capacity.watermark_blocks;
            let mut tentative = chosen;
            while free_seats == 0 || free_blocks < wanted_blocks {
                let victim = worst_first.get(tentative);
                let Some(&(_, slot)) = victim.filter(|&&victim| self.displaces(waiting, victim, limits))
                else {
                    return worst_first[..chosen].iter().map(|&(_, slot)| slot).collect();
                };
                free_seats += 1;
                free_blocks += self.entries[slot].kv_blocks;
                tentative += 1;
            }
            chosen = tentative;
            free_seats -= 1;
            free_blocks -= need_blocks;
        }
        worst_first[..chosen].iter().map(|&(_, slot)| slot).collect()
    }

    /// Running requests that may be paused, the worst rank first, and no more of them than may be in one step.
    fn rank_running(&mut self, limits: Option<Hysteresis>) -> Vec<(Rank, usize)> {
        let Some(limits) = limits else {
            let mut ranked: Vec<_> = self.running.iter().map(|&slot| (self.rank_of(slot), slot)).collect();
            ranked.sort_unstable_by(|a, b| b.cmp(a));
            return ranked;
        };
        let mut ranked = Vec::with_capacity(self.running.len());
        for at in 0..self.running.len() {
            let slot = self.running[at];
            let entry = &self.entries[slot];
            if entry.rank_is_stale() {
                self.refresh_rank(slot);
            }
            let entry = &self.entries[slot];
            if entry.preemptions < limits.max_per_request {
                ranked.push((entry.rank, slot));
            }
        }
        let wanted = limits.max_per_step as usize;
        if ranked.len() > wanted {
            ranked.select_nth_unstable_by(wanted, |a, b| b.cmp(a));
            ranked.truncate(wanted);
        }
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked
    }

    /// Whether `waiting` may take the seat of a running request.
    fn displaces(&self, waiting: &Place, victim: (Rank, usize), limits: Option<Hysteresis>) -> bool {
        let (rank, slot) = victim;
        let Some(limits) = limits else { return waiting.rank < rank };
        let (_, cost_s) = self.switch_cost(slot);
        let margin = limits.min_gain + limits.switch_cost_factor * cost_s;
        waiting.rank.band == rank.band && waiting.rank.key.value() + margin < rank.key.value()
    }
}
