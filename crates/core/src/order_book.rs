//! The order of requests for hosts that own their queue, their seats and their memory, such as vLLM.

mod seats;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use slab::Slab;
use thiserror::Error;

use crate::entry::{Entry, Estimates, Prediction};
use crate::scheduler::{MIN_BACKLOG_S, load_moved};
use crate::starvation::StarvationTimers;
use crate::{
    MonitorSettings, Place, Policy, Rank, RankMonitor, RankQueue, Request, RequestId, Score, ServiceModel,
    State, StepSample, Timestamp, Trust,
};

/// A policy that an [`OrderBook`] cannot serve.
#[derive(Clone, PartialEq, Debug, Error)]
#[error(
    "policy `{0}` orders by time: those who wait change places, which needs a host whose queue is the scheduler's"
)]
pub struct UnsuitedPolicy(pub &'static str);

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By itself: its length is known.
    Stopped,
    /// Cut at its limit: it would have been longer.
    Capped,
    /// Given up: nothing is known of its length.
    Aborted,
}

/// Keys of requests under a policy, and who should lose a seat to whom.
///
/// [`crate::Scheduler`] decides everything about a step; a host like vLLM leaves only the order of its own queue to others.
/// Both take keys, loads and verdicts from the same [`Policy`], estimates and [`RankMonitor`]. The host reports what it
/// did, and asks which ranks have changed and who should lose a seat. Memory stays the host's: a request that ranks ahead
/// takes a seat, never blocks alone.
#[derive(Debug)]
pub struct OrderBook {
    policy: Box<dyn Policy>,
    seats: u32,
    entries: Slab<Entry>,
    /// Slots by id; never iterated over.
    slots: HashMap<RequestId, usize, BuildHasherDefault<DefaultHasher>>,
    waiting: RankQueue,
    running: Vec<usize>,
    estimates: Estimates,
    monitor: RankMonitor,
    timers: StarvationTimers,
    /// Steps that the host has taken.
    steps: u64,
    promotions: u64,
    arrivals: u64,
    finished: u64,
    changed: Vec<(RequestId, Rank)>,
    all_changed: bool,
}

impl OrderBook {
    /// A book for a host with so many seats. `unscored_tokens` is what a request without score is taken for.
    ///
    /// # Errors
    /// [`UnsuitedPolicy`] if keys of those who wait change with time.
    pub fn new(
        policy: Box<dyn Policy>,
        seats: u32,
        service: ServiceModel,
        unscored_tokens: f64,
        monitor: MonitorSettings,
    ) -> Result<Self, UnsuitedPolicy> {
        let estimates = Estimates::first(service, unscored_tokens);
        if policy.rekey_interval_s().is_some() {
            return Err(UnsuitedPolicy(policy.name()));
        }
        Ok(Self {
            policy,
            seats: seats.max(1),
            entries: Slab::new(),
            slots: HashMap::default(),
            waiting: RankQueue::default(),
            running: Vec::new(),
            estimates,
            monitor: RankMonitor::new(monitor),
            timers: StarvationTimers::default(),
            steps: 0,
            promotions: 0,
            arrivals: 0,
            finished: 0,
            changed: Vec::new(),
            all_changed: false,
        })
    }

    /// A request joins the host's queue. Returns its rank, or `None` if its id is in use.
    pub fn submit(&mut self, now: Timestamp, request: Request, score: Option<Score>) -> Option<Rank> {
        if self.slots.contains_key(&request.id) {
            return None;
        }
        self.estimates.now = now;
        let (id, number) = (request.id, self.arrivals);
        self.arrivals += 1;
        let prediction = score.map(|score| Prediction::new(score, request.known_limit_tokens()));
        let backlog_s = self.waiting.work_s() / f64::from(self.seats);
        let slot = self.entries.insert(Entry::arrived(request, prediction, number, backlog_s));
        self.slots.insert(id, slot);
        self.count_work(slot);
        self.enqueue(slot);
        self.start_starvation_timer(slot);
        Some(self.entries[slot].rank)
    }

    /// The score of a request has come. It moves, if it still waits.
    pub fn scored(&mut self, now: Timestamp, id: RequestId, score: Score) {
        let Some(&slot) = self.slots.get(&id) else { return };
        self.estimates.now = now;
        let entry = &mut self.entries[slot];
        entry.prediction = Some(Prediction::new(score, entry.request.known_limit_tokens()));
        self.count_work(slot);
        if self.entries[slot].state != State::Running {
            self.waiting.remove(self.entries[slot].rank);
            self.enqueue(slot);
        }
        self.changed.push((id, self.entries[slot].rank));
    }

    /// The host gave a request a seat.
    pub fn started(&mut self, id: RequestId) {
        let Some(&slot) = self.slots.get(&id) else { return };
        if self.entries[slot].state == State::Running {
            return;
        }
        self.waiting.remove(self.entries[slot].rank);
        let entry = &mut self.entries[slot];
        if entry.state == State::Waiting {
            entry.ticket = entry.prediction.map(|prediction| self.monitor.start(prediction.score));
        }
        entry.state = State::Running;
        entry.computed_tokens = entry.context_tokens();
        self.running.push(slot);
    }

    /// The host took a request off its seat, by advice or for memory, and will compute it again. Returns its rank in the
    /// queue, or `None` if it had no seat.
    pub fn paused(&mut self, now: Timestamp, id: RequestId) -> Option<Rank> {
        let slot = *self.slots.get(&id)?;
        if self.entries[slot].state != State::Running {
            return None;
        }
        self.estimates.now = now;
        self.running.retain(|&other| other != slot);
        let entry = &mut self.entries[slot];
        (entry.state, entry.computed_tokens) = (State::Paused, 0);
        entry.preemptions += 1;
        self.enqueue(slot);
        self.start_starvation_timer(slot);
        Some(self.entries[slot].rank)
    }

    /// A running request has generated so many tokens by now.
    pub fn generated(&mut self, id: RequestId, tokens: u32) {
        let Some(&slot) = self.slots.get(&id) else { return };
        let entry = &mut self.entries[slot];
        entry.generated_tokens = tokens.max(entry.generated_tokens);
        if entry.state == State::Running {
            entry.computed_tokens = entry.context_tokens();
        }
    }

    /// A step of the host took so long.
    pub fn step_took(&mut self, step: &StepSample) {
        self.estimates.service.learn(step);
    }

    /// A request left after `tokens` output tokens.
    pub fn ended(&mut self, now: Timestamp, id: RequestId, tokens: u32, end: End) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.estimates.now = now;
        self.stop_starvation_timer(slot);
        if self.entries[slot].state == State::Running {
            self.running.retain(|&other| other != slot);
        } else {
            self.waiting.remove(self.entries[slot].rank);
        }
        let entry = self.entries.remove(slot);
        if end != End::Aborted {
            self.finished += 1;
            self.estimates.observe_length(tokens, self.finished);
        }
        let Some(ticket) = entry.ticket else { return };
        if end != End::Stopped {
            self.monitor.leave(ticket);
            return;
        }
        let open = self.running.iter().map(|&slot| &self.entries[slot]);
        let open = open.filter_map(|entry| Some((entry.ticket?, entry.generated_tokens)));
        if self.monitor.finish(ticket, tokens, &open) && self.policy.falls_back() {
            self.estimates.trust = self.monitor.trust();
            self.rerank_all();
        }
    }

    /// Follows the load, promotes who starves, and returns the requests whose rank has changed since the last call, with
    /// their rank; a request may come twice, and its last rank counts.
    pub fn changed(&mut self, now: Timestamp) -> Vec<(RequestId, Rank)> {
        self.estimates.now = now;
        self.follow_load();
        self.promote_starving();
        if std::mem::take(&mut self.all_changed) {
            self.changed.clear();
            return self
                .waiting
                .iter()
                .map(|place| (self.entries[place.slot].request.id, place.rank))
                .collect();
        }
        std::mem::take(&mut self.changed)
    }

    /// Requests that wait and that run, as reported.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Requests that ended with their answer.
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// Promotions by starvation prevention so far.
    pub fn promotions(&self) -> u64 {
        self.promotions
    }

    /// Whether the policy reads the tokens of running requests in every step.
    pub fn follows_every_token(&self) -> bool {
        self.policy.preemption(self.estimates.load) == crate::Preemption::Always
    }

    /// Measured step costs.
    pub fn service(&self) -> ServiceModel {
        self.estimates.service
    }

    /// Seconds until all who wait have been served, as last followed.
    pub fn backlog_s(&self) -> f64 {
        self.estimates.load.backlog_s
    }

    /// Whether scores order the queue now.
    pub fn trust(&self) -> Trust {
        self.estimates.trust
    }

    /// The verdict on the ranker, and on what it rests.
    pub fn monitor(&self) -> &RankMonitor {
        &self.monitor
    }

    fn refresh_rank(&mut self, slot: usize) -> Rank {
        let rank = self.entries[slot].rank_now(&*self.policy, &self.estimates);
        let entry = &mut self.entries[slot];
        (entry.rank, entry.ranked_at_tokens) = (rank, entry.generated_tokens);
        rank
    }

    fn enqueue(&mut self, slot: usize) {
        let rank = self.refresh_rank(slot);
        let work_s = self.entries[slot].view(&self.estimates).remaining_service_s();
        self.waiting.insert(Place { rank, slot, work_s });
    }

    fn count_work(&mut self, slot: usize) {
        if self.policy.follows_load() {
            self.estimates.count(&self.entries[slot]);
        }
    }

    fn follow_load(&mut self) {
        if !self.policy.follows_load() {
            return;
        }
        let backlog_s = self.waiting.work_s().max(0.0) / f64::from(self.seats);
        if load_moved(self.estimates.load.backlog_s + MIN_BACKLOG_S, backlog_s + MIN_BACKLOG_S) {
            self.estimates.load = self.estimates.load(backlog_s, self.policy.short_share());
            self.rerank_all();
        }
    }

    fn rerank_all(&mut self) {
        let slots: Vec<usize> = self.waiting.iter().map(|place| place.slot).collect();
        self.waiting = RankQueue::default();
        slots.into_iter().for_each(|slot| self.enqueue(slot));
        for at in 0..self.running.len() {
            self.refresh_rank(self.running[at]);
        }
        self.all_changed = true;
    }
}

#[cfg(test)]
#[path = "order_book_tests.rs"]
mod tests;
