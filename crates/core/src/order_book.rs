//! The order of requests for hosts that own their queue, their seats and their memory, such as vLLM.

mod seats;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use slab::Slab;
use thiserror::Error;

use crate::entry::{Entry, Estimates, Prediction};
use crate::gather::Gather;
use crate::scheduler::{MIN_BACKLOG_S, load_moved};
use crate::starvation::StarvationTimers;
use crate::{
    Eta, Explanation, Key, Lanes, MonitorSettings, OvertakeLog, Place, Placement, Policy, Preemption, Rank,
    RankMonitor, Request, RequestId, Score, ServiceModel, State, StepSample, Timestamp, Trust,
};

/// Estimates for people may be so old, in seconds, where more than [`FEW_RUNNING`] run ...
const ESTIMATES_S: f64 = 0.05;
/// ... and are always fresh where fewer do.
const FEW_RUNNING: usize = 64;
/// Output tokens that a prompt token counts as when tenants are charged.
const PROMPT_TOKEN_CHARGE: f64 = 0.1;

/// Weight of the newest request in the mean charge.
const NEWEST_CHARGE_WEIGHT: f64 = 0.02;

/// A policy that an [`OrderBook`] cannot serve.
#[derive(Clone, PartialEq, Debug, Error)]
#[error("policy `{0}` needs a host that reports every step, or one that leaves its queue to the scheduler")]
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
/// did, and asks which keys have changed, or, if it keeps no queue of its own, who goes next.
#[derive(Debug)]
pub struct OrderBook {
    policy: Box<dyn Policy>,
    seats: u32,
    entries: Slab<Entry>,
    /// Slots by id; never iterated over.
    slots: HashMap<RequestId, usize, BuildHasherDefault<DefaultHasher>>,
    waiting: Lanes,
    /// What a tenant is charged for a request, on average; 0 before the first.
    mean_charge_tokens: f64,
    running: Vec<usize>,
    estimates: Estimates,
    monitor: RankMonitor,
    gather: Gather,
    timers: StarvationTimers,
    /// Steps that the host has taken.
    steps: u64,
    promotions: u64,
    overtakes: OvertakeLog,
    overtake_pairs: u64,
    left: RunningLeft,
    finished: u64,
    changed: Vec<(RequestId, Rank)>,
    all_changed: bool,
}

/// What those who run still need, as last looked at.
#[derive(Clone, Debug, Default)]
struct RunningLeft {
    /// Seconds, in order.
    sorted_s: Vec<f64>,
    sum_s: f64,
    /// How many of them have a score that is trusted.
    scored: usize,
    taken_at: Timestamp,
    stale: bool,
}

impl OrderBook {
    /// A book for a host with so many seats. `unscored_tokens` is what a request without score is taken for.
    ///
    /// # Errors
    /// [`UnsuitedPolicy`] if the policy preempts at every step or promotes (see [`Self::stepped_by`]), or if keys of those who
    /// wait change with time.
    pub fn new(
        policy: Box<dyn Policy>,
        seats: u32,
        service: ServiceModel,
        unscored_tokens: f64,
        monitor: MonitorSettings,
    ) -> Result<Self, UnsuitedPolicy> {
        let load = Estimates::first(service, unscored_tokens).load;
        if policy.starvation().is_some() || policy.preemption(load) == Preemption::Always {
            return Err(UnsuitedPolicy(policy.name()));
        }
        Self::stepped_by(policy, seats, service, unscored_tokens, monitor)
    }

    /// A book for a host that asks for [`Self::changed`] and [`Self::victims`] before each of its steps and reports it with
    /// [`Self::stepped`]. Memory stays the host's: a request that ranks ahead takes a seat, never blocks alone.
    ///
    /// # Errors
    /// [`UnsuitedPolicy`] if keys of those who wait change with time.
    pub fn stepped_by(
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
            waiting: Lanes::default(),
            mean_charge_tokens: 0.0,
            running: Vec::new(),
            estimates,
            monitor: RankMonitor::new(monitor),
            gather: Gather::default(),
            timers: StarvationTimers::default(),
            steps: 0,
            promotions: 0,
            overtakes: OvertakeLog::default(),
            overtake_pairs: 0,
            left: RunningLeft::default(),
            finished: 0,
            changed: Vec::new(),
            all_changed: false,
        })
    }

    /// A request joins the host's queue. Returns its key, or `None` if its id is in use.
    pub fn submit(&mut self, now: Timestamp, request: Request, score: Option<Score>) -> Option<Key> {
        self.submit_in(0, now, request, score)
    }

    /// Like [`Self::submit`], in the lane of a tenant: [`Lanes`] says how tenants share.
    pub fn submit_in(
        &mut self,
        lane: usize,
        now: Timestamp,
        request: Request,
        score: Option<Score>,
    ) -> Option<Key> {
        if self.slots.contains_key(&request.id) {
            return None;
        }
        self.estimates.now = now;
        let (id, number) = (request.id, self.overtakes.arrive());
        let prediction = score.map(|score| Prediction::new(score, request.known_limit_tokens()));
        let backlog_s = self.waiting.work_s() / f64::from(self.seats);
        let entry = Entry { lane, ..Entry::arrived(request, prediction, number, backlog_s) };
        let slot = self.entries.insert(entry);
        self.slots.insert(id, slot);
        self.count_work(slot);
        self.enqueue(slot);
        self.start_starvation_timer(slot);
        Some(self.entries[slot].rank.key)
    }

    /// The score of a request has come. It moves, if it still waits.
    pub fn scored(&mut self, now: Timestamp, id: RequestId, score: Score) {
        let Some(&slot) = self.slots.get(&id) else { return };
        self.estimates.now = now;
        let entry = &mut self.entries[slot];
        entry.prediction = Some(Prediction::new(score, entry.request.known_limit_tokens()));
        self.count_work(slot);
        if self.entries[slot].state != State::Running {
            self.waiting.remove(self.entries[slot].lane, self.entries[slot].rank);
            self.enqueue(slot);
            self.changed.push((id, self.entries[slot].rank));
        }
    }

    /// Who should be given the next free seat.
    pub fn next(&mut self, now: Timestamp) -> Option<(RequestId, Key)> {
        self.next_but(now, &[])
    }

    /// Who should be given the next free seat that these lanes may not have.
    pub fn next_but(&mut self, now: Timestamp, lanes: &[usize]) -> Option<(RequestId, Key)> {
        self.estimates.now = now;
        self.follow_load();
        // A host that asks who goes next has no queue of its own to keep up to date.
        self.changed.clear();
        self.all_changed = false;
        let (_, place) = self.waiting.first_but(lanes)?;
        Some((self.entries[place.slot].request.id, place.rank.key))
    }

    /// The host gave a request a seat.
    pub fn started(&mut self, id: RequestId) {
        let Some(&slot) = self.slots.get(&id) else { return };
        if self.entries[slot].state == State::Running {
            return;
        }
        self.waiting.remove(self.entries[slot].lane, self.entries[slot].rank);
        let predicted_tokens = self.entries[slot].view(&self.estimates).predicted_tokens;
        let entry = &mut self.entries[slot];
        if entry.state == State::Waiting {
            entry.ticket = entry.prediction.map(|prediction| self.monitor.start(prediction.score));
            entry.overtaken_by = self.overtakes.start(entry.number);
            self.overtake_pairs += entry.overtaken_by;
        }
        entry.charged_tokens = predicted_tokens;
        let charge_tokens = charge(&entry.request, predicted_tokens);
        self.waiting.charge(entry.lane, charge_tokens);
        let first = self.mean_charge_tokens == 0.0;
        let weight = if first { 1.0 } else { NEWEST_CHARGE_WEIGHT };
        self.mean_charge_tokens += weight * (charge_tokens - self.mean_charge_tokens);
        // What all seats hold: a tenant that has been idle would have its part of them free, had it that part to itself.
        self.waiting.set_credit(self.mean_charge_tokens * f64::from(self.seats));
        entry.state = State::Running;
        self.left.stale = true;
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
        self.left.stale = true;
        self.running.retain(|&other| other != slot);
        let entry = &mut self.entries[slot];
        (entry.state, entry.computed_tokens) = (State::Paused, 0);
        entry.preemptions += 1;
        let charged_tokens = std::mem::take(&mut entry.charged_tokens);
        self.waiting.charge(entry.lane, -charge(&entry.request, charged_tokens));
        self.enqueue(slot);
        self.start_starvation_timer(slot);
        Some(self.entries[slot].rank)
    }

    /// A running request has generated so many tokens by now.
    pub fn generated(&mut self, id: RequestId, tokens: u32) {
        let Some(&slot) = self.slots.get(&id) else { return };
        let entry = &mut self.entries[slot];
        self.left.stale |= tokens > entry.generated_tokens;
        entry.generated_tokens = tokens.max(entry.generated_tokens);
        if entry.state == State::Running {
            entry.computed_tokens = entry.context_tokens();
            // Who was taken for short and is not pays as he goes.
            let overrun_tokens = f64::from(entry.generated_tokens) - entry.charged_tokens;
            if overrun_tokens > 0.0 {
                entry.charged_tokens += overrun_tokens;
                self.waiting.charge(entry.lane, overrun_tokens);
            }
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
            self.left.stale = true;
            let entry = &self.entries[slot];
            let used_tokens = f64::from(tokens.max(entry.generated_tokens));
            self.waiting.charge(entry.lane, used_tokens - entry.charged_tokens);
        } else {
            self.waiting.remove(self.entries[slot].lane, self.entries[slot].rank);
            if self.entries[slot].state == State::Waiting {
                self.overtakes.leave(self.entries[slot].number);
            }
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

    /// Follows the load, promotes who starves, and returns the requests without a seat whose rank has changed since the last
    /// call, with their rank; a request may come twice, and its last rank counts.
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

    /// The host has more or fewer seats now.
    pub fn set_seats(&mut self, seats: u32) {
        self.seats = seats.max(1);
    }

    /// Gives a tenant its share.
    pub fn set_weight(&mut self, lane: usize, weight: f64) {
        self.waiting.set_weight(lane, weight);
    }

    /// Requests that wait in a lane.
    pub fn waiting_in(&self, lane: usize) -> usize {
        self.waiting.len_of(lane)
    }

    /// Expected output tokens still to come of a request; 0 if it has left.
    pub fn remaining_tokens(&self, id: RequestId) -> f64 {
        self.slots.get(&id).map_or(0.0, |&slot| self.entries[slot].view(&self.estimates).remaining_tokens())
    }

    /// Where a request stands, or `None` if it has left. The estimate is that of [`crate::Scheduler::explain`].
    pub fn placement(&mut self, id: RequestId) -> Option<Placement> {
        let slot = *self.slots.get(&id)?;
        Some(self.placement_of(slot))
    }

    /// Seconds until a request is likely to start, or `None` if it has left. Like the estimate of [`Self::placement`] where the lengths
    /// of most who run are predicted. Where they are not, all seem to end together, and the first of many ends long before the mean: then
    /// seats are taken to come free evenly.
    pub fn likely_start_s(&mut self, id: RequestId) -> Option<f64> {
        let slot = *self.slots.get(&id)?;
        let start_s = self.placement_of(slot).eta.start_s;
        let (running, entry) = (self.running.len(), &self.entries[slot]);
        if start_s <= 0.0 || 2 * self.left.scored >= running {
            return Some(start_s);
        }
        let (_, ahead_s) = self.ahead_of(entry, self.work_s(slot));
        let even_s = (self.left.sum_s / running as f64 + ahead_s.max(0.0)) / f64::from(self.seats);
        Some(start_s.min(even_s))
    }

    /// Everything known about a request, or `None` if it has left or never came.
    pub fn explain(&mut self, now: Timestamp, id: RequestId) -> Option<Explanation> {
        let slot = *self.slots.get(&id)?;
        self.estimates.now = now;
        let placement = self.placement_of(slot);
        let (policy, entry) = (&*self.policy, &self.entries[slot]);
        Some(entry.explain(now, policy, &self.estimates, placement, &self.overtakes))
    }

    /// Seconds until all who wait now have been served, and those who run.
    pub fn drain_s(&mut self) -> f64 {
        self.refresh_left();
        (self.left.sum_s + self.waiting.work_s().max(0.0)) / f64::from(self.seats)
    }

    /// Pairs in which a later arrival started before an earlier one, since the start.
    pub fn overtakes(&self) -> u64 {
        self.overtake_pairs
    }

    /// Name of the policy.
    pub fn policy_name(&self) -> &'static str {
        self.policy.name()
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
        self.policy.preemption(self.estimates.load) == Preemption::Always
    }

    /// Requests that wait and that run, as reported.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Who runs: tokens so far as reported, and the limit as far as a prediction may know it.
    pub fn running(&self) -> impl Iterator<Item = (RequestId, u32, u32)> {
        self.running.iter().map(|&slot| {
            let entry = &self.entries[slot];
            (entry.request.id, entry.generated_tokens, entry.request.known_limit_tokens())
        })
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
        let place = self.place(slot);
        self.waiting.insert(self.entries[slot].lane, place);
    }

    /// The place of a request under its rank of now.
    fn place(&mut self, slot: usize) -> Place {
        let rank = self.refresh_rank(slot);
        Place { rank, slot, work_s: self.work_s(slot) }
    }

    /// Expected seconds of service that a request still needs.
    fn work_s(&self, slot: usize) -> f64 {
        self.entries[slot].view(&self.estimates).remaining_service_s()
    }

    /// Looks at what those who run still need, unless that was done lately.
    fn refresh_left(&mut self) {
        let RunningLeft { taken_at, stale, .. } = self.left;
        let fresh_s = if self.running.len() > FEW_RUNNING { ESTIMATES_S } else { 0.0 };
        if !stale || self.estimates.now.since(taken_at).as_secs_f64() < fresh_s {
            return;
        }
        let mut sorted_s = std::mem::take(&mut self.left.sorted_s);
        sorted_s.clear();
        sorted_s.extend(self.running.iter().map(|&slot| self.work_s(slot)));
        sorted_s.sort_unstable_by(f64::total_cmp);
        let sum_s = sorted_s.iter().sum();
        let has_score = |&&slot: &&usize| self.entries[slot].view(&self.estimates).score.is_some();
        let scored = self.running.iter().filter(has_score).count();
        self.left = RunningLeft { sorted_s, sum_s, scored, taken_at: self.estimates.now, stale: false };
    }

    fn placement_of(&mut self, slot: usize) -> Placement {
        self.refresh_left();
        let entry = &self.entries[slot];
        let own_s = self.work_s(slot);
        if entry.state == State::Running {
            return Placement { position: 0, eta: Eta { start_s: 0.0, finish_s: own_s } };
        }
        let (position, ahead_s) = self.ahead_of(entry, own_s);
        let free_seats = (self.seats as usize).saturating_sub(self.running.len());
        let start_s = if position < free_seats {
            0.0
        } else {
            let nth = position - free_seats;
            let all_s = (self.left.sum_s + ahead_s.max(0.0)) / f64::from(self.seats);
            self.left.sorted_s.get(nth).copied().unwrap_or(all_s)
        };
        Placement { position, eta: Eta { start_s, finish_s: start_s + own_s } }
    }

    /// Requests that are expected to go before one that waits and has so much work, and theirs in seconds.
    fn ahead_of(&self, entry: &Entry, own_s: f64) -> (usize, f64) {
        self.waiting.ahead_of(entry.lane, entry.rank, own_s, self.estimates.service.decode_s)
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
        self.waiting.clear();
        for slot in slots {
            let place = self.place(slot);
            self.waiting.restore(self.entries[slot].lane, place);
        }
        for at in 0..self.running.len() {
            self.refresh_rank(self.running[at]);
        }
        self.all_changed = true;
    }
}

/// What a tenant is charged for a request with so many output tokens.
fn charge(request: &Request, output_tokens: f64) -> f64 {
    PROMPT_TOKEN_CHARGE * f64::from(request.prompt_tokens) + output_tokens
}

#[cfg(test)]
#[path = "order_book_tests.rs"]
mod tests;
