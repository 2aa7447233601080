//! Estimates for people: position, time to start, time to finish, and why.

use super::Scheduler;
use crate::{Eta, Explanation, Placement, RequestId, State, Timestamp};

impl Scheduler {
    /// Everything known about a request, or `None` if it has left or never came.
    pub fn explain(&self, now: Timestamp, id: RequestId) -> Option<Explanation> {
        let slot = *self.slots.get(&id)?;
        let (policy, placement) = (&*self.policy, self.placement(now, slot));
        Some(self.entries[slot].explain(now, policy, &self.estimates, placement, &self.overtakes))
    }

    /// Position and expected times. The estimate assumes that nobody else arrives and that seats stay as busy as
    /// they are: the first in the queue follow the running requests that end first, everyone else starts when
    /// the work ahead, spread over all seats, is done.
    pub(super) fn placement(&self, _now: Timestamp, slot: usize) -> Placement {
        let entry = &self.entries[slot];
        let own_s = self.work_s(slot);
        if entry.state == State::Running {
            return Placement { position: 0, eta: Eta { start_s: 0.0, finish_s: own_s } };
        }
        let (position, work_ahead_s) = self.waiting.ahead_of(entry.rank);
        let seats = self.config.capacity.seats as usize;
        let free_seats = seats - self.running.len();
        let start_s = if position < free_seats {
            0.0
        } else {
            let mut left_s: Vec<f64> = self.running.iter().map(|&slot| self.work_s(slot)).collect();
            let nth = position - free_seats;
            if nth < left_s.len() {
                *left_s.select_nth_unstable_by(nth, f64::total_cmp).1
            } else {
                (left_s.iter().sum::<f64>() + work_ahead_s.max(0.0)) / seats as f64
            }
        };
        Placement { position, eta: Eta { start_s, finish_s: start_s + own_s } }
    }
}
