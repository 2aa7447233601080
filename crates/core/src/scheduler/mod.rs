//! The scheduler: who is known, who waits, who runs.

mod estimate;
mod planning;
mod preemption;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use serde::{Deserialize, Serialize};
use slab::Slab;
use thiserror::Error;

use crate::entry::{Entry, Estimates, Prediction};
use crate::gather::Gather;
use crate::starvation::StarvationTimers;
use crate::{
    Capacity, CapacityError, Event, KvLedger, LOAD_STEP, MonitorSettings, OvertakeLog, Place, Placement,
    Plan, Policy, Rank, RankMonitor, RankQueue, Request, RequestId, Score, ServiceModel, State, StepSample,
    SwitchCost, SwitchMethod, Timestamp, Trust,
};

/// Backlogs below this are all alike, in seconds.
pub(crate) const MIN_BACKLOG_S: f64 = 0.05;
/// Whether the load has moved far enough for keys to follow it.
pub(crate) fn load_moved(before_s: f64, now_s: f64) -> bool {
    let moved = now_s / before_s;
    moved >= LOAD_STEP || moved <= 1.0 / LOAD_STEP
}

/// What a host tells the scheduler once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SchedulerConfig {
    /// What the host can run.
    pub capacity: Capacity,
    /// Requests that may wait beyond those that free seats are about to take; more are rejected.
    pub max_queue_requests: usize,
    /// What it costs to pause and resume a request.
    pub switch_cost: SwitchCost,
    /// First guess of the step costs.
    pub service: ServiceModel,
    /// First guess of the mean output length, in tokens: what a request without score is taken for when it is ordered.
    pub unscored_tokens: f64,
    /// Seconds for which smaller requests may pass a head that memory keeps waiting; then it goes first, and
    /// seats stay empty until it fits.
    pub max_bypass_s: f64,
    /// When to stop following the ranker, for policies that fall back.
    pub monitor: MonitorSettings,
}

/// Why a request was not accepted. Nothing of it is kept.
#[derive(Clone, Copy, PartialEq, Debug, Error)]
pub enum Rejection {
    /// The queue is full.
    #[error("the queue is full ({limit} requests wait): try again in {retry_after_s:.0} s")]
    QueueFull {
        /// Requests that may wait.
        limit: usize,
        /// When a retry makes sense, in seconds.
        retry_after_s: f64,
    },
    /// Prompt and output limit together exceed the context.
    #[error(
        "{prompt_tokens} prompt tokens and up to {max_tokens} output tokens exceed the context of \
         {context_tokens} tokens: shorten the prompt or lower max_tokens"
    )]
    TooLong {
        /// Length of the prompt.
        prompt_tokens: u32,
        /// Output limit asked for.
        max_tokens: u32,
        /// What a sequence may hold.
        context_tokens: u32,
    },
    /// There is no prompt, or no output is wanted.
    #[error("a request needs at least one prompt token and one output token")]
    Empty,
    /// The id belongs to a request that has not left.
    #[error("request id {} is in use", .0.0)]
    DuplicateId(RequestId),
}

/// Counts for metrics. Totals count from the start of the scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Requests in the queue now.
    pub waiting: usize,
    /// Requests with a seat now.
    pub running: usize,
    /// KV blocks held now.
    pub kv_used_blocks: u32,
    /// KV blocks in all.
    pub kv_total_blocks: u32,
    /// Plans made.
    pub steps: u64,
    /// Requests accepted.
    pub submitted: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Times a running request was paused, for another or for memory.
    pub preemptions: u64,
    /// Context tokens whose KV was dropped and had to be computed again.
    pub recomputed_tokens: u64,
    /// Promotions by starvation prevention.
    pub promotions: u64,
    /// Pairs in which a later arrival started before an earlier one.
    pub overtakes: u64,
}

/// Orders requests and plans each step of a host. See the [crate documentation](crate).
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    policy: Box<dyn Policy>,
    entries: Slab<Entry>,
    /// Slots by id. Never iterated over; the hasher is fixed, so runs are reproducible.
    slots: HashMap<RequestId, usize, BuildHasherDefault<DefaultHasher>>,
    waiting: RankQueue,
    /// Slots of requests with a seat, in the order in which they took it.
    running: Vec<usize>,
    kv: KvLedger,
    /// KV blocks that live outside the ledger, swapped out.
    swapped_blocks: u32,
    /// Since when the head of the queue has been kept waiting by memory.
    head_blocked: Option<(RequestId, Timestamp)>,
    estimates: Estimates,
    monitor: RankMonitor,
    gather: Gather,
    overtakes: OvertakeLog,
    timers: StarvationTimers,
    /// When the keys of all who wait were last taken, for policies whose order changes with time.
    rekeyed_at: Timestamp,
    plan: Plan,
    counters: Counters,
}

impl Scheduler {
    /// A scheduler for a host of the given capacity that orders by `policy`.
    ///
    /// # Errors
    /// [`CapacityError`] if a request that fits the context could not run.
    pub fn new(config: SchedulerConfig, policy: Box<dyn Policy>) -> Result<Self, CapacityError> {
        config.capacity.check()?;
        Ok(Self {
            kv: KvLedger::new(config.capacity.kv_blocks, config.capacity.watermark_blocks),
            estimates: Estimates::first(config.service, config.unscored_tokens),
            monitor: RankMonitor::new(config.monitor),
            entries: Slab::new(),
            slots: HashMap::default(),
            waiting: RankQueue::default(),
            running: Vec::with_capacity(config.capacity.seats as usize),
            swapped_blocks: 0,
            head_blocked: None,
            gather: Gather::default(),
            overtakes: OvertakeLog::default(),
            timers: StarvationTimers::default(),
            rekeyed_at: Timestamp::ZERO,
            plan: Plan::default(),
            counters: Counters::default(),
            policy,
            config,
        })
    }

    /// Accepts a request into the queue and says where it stands. A request without score is ordered by arrival;
    /// a later [`Event::Scored`] moves it.
    ///
    /// # Errors
    /// [`Rejection`]; the request is then unknown to the scheduler.
    pub fn submit(
        &mut self,
        now: Timestamp,
        request: Request,
        score: Option<Score>,
    ) -> Result<Placement, Rejection> {
        if let Err(rejection) = self.check(&request) {
            self.counters.rejected += 1;
            return Err(rejection);
        }
        self.estimates.now = now;
        let id = request.id;
        let number = self.overtakes.arrive();
        let prediction = score.map(|score| Prediction::new(score, request.known_limit_tokens()));
        let backlog_s = self.waiting.work_s() / f64::from(self.config.capacity.seats);
        let slot = self.entries.insert(Entry::arrived(request, prediction, number, backlog_s));
        self.slots.insert(id, slot);
        self.counters.submitted += 1;
        self.count_work(slot);
        self.enqueue(slot);
        self.start_starvation_timer(slot, self.counters.steps + 1);
        Ok(self.placement(now, slot))
    }

    /// Reports what happened at the host.
    pub fn observe(&mut self, now: Timestamp, event: Event) {
        self.estimates.now = now;
        match event {
            Event::StepTook(took) => {
                if !self.plan.batch.is_empty() {
                    self.estimates.service.learn(&StepSample::new(&self.plan.batch, took));
                }
            }
            Event::Scored(id, score) => self.with_slot(id, |this, slot| {
                let entry = &mut this.entries[slot];
                entry.prediction = Some(Prediction::new(score, entry.request.known_limit_tokens()));
                this.count_work(slot);
                if this.entries[slot].state != State::Running {
                    this.requeue(slot);
                }
            }),
            Event::Token(id) => self.with_slot(id, |this, slot| this.entries[slot].generated_tokens += 1),
            Event::SwapLost(id) => self.with_slot(id, Self::lose_kv),
            Event::Finished(id) => self.with_slot(id, |this, slot| {
                this.counters.finished += 1;
                this.estimates.observe_length(this.entries[slot].generated_tokens, this.counters.finished);
                this.judge(slot);
                this.leave(slot);
            }),
            Event::Cancelled(id) => self.with_slot(id, |this, slot| {
                this.counters.cancelled += 1;
                this.leave(slot);
            }),
        }
    }

    /// Counts for metrics.
    pub fn counters(&self) -> Counters {
        Counters {
            waiting: self.waiting.len(),
            running: self.running.len(),
            kv_used_blocks: self.kv.used_blocks(),
            kv_total_blocks: self.kv.total_blocks(),
            ..self.counters
        }
    }

    /// Requests in the queue and requests with a seat, now.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Measured step costs.
    pub fn service(&self) -> ServiceModel {
        self.estimates.service
    }

    /// The verdict on the ranker, and on what it rests.
    pub fn monitor(&self) -> &RankMonitor {
        &self.monitor
    }

    /// Whether scores order the queue now.
    pub fn trust(&self) -> Trust {
        self.estimates.trust
    }

    /// Name of the policy.
    pub fn policy_name(&self) -> &'static str {
        self.policy.name()
    }

    fn check(&self, request: &Request) -> Result<(), Rejection> {
        let Capacity { context_tokens, seats, .. } = self.config.capacity;
        let (prompt_tokens, max_tokens) = (request.prompt_tokens, request.max_tokens);
        if prompt_tokens == 0 || max_tokens == 0 {
            return Err(Rejection::Empty);
        }
        if prompt_tokens.saturating_add(max_tokens) > context_tokens {
            return Err(Rejection::TooLong { prompt_tokens, max_tokens, context_tokens });
        }
        if self.slots.contains_key(&request.id) {
            return Err(Rejection::DuplicateId(request.id));
        }
        let limit = self.config.max_queue_requests;
        // Requests that free seats will take before the next step do not queue.
        if self.waiting.len() >= limit.saturating_add(seats as usize - self.running.len()) {
            // Time in which a tenth of the queue is served.
            let retry_after_s = (0.1 * self.waiting.work_s() / f64::from(seats)).clamp(1.0, 60.0);
            return Err(Rejection::QueueFull { limit, retry_after_s });
        }
        Ok(())
    }

    fn with_slot(&mut self, id: RequestId, act: impl FnOnce(&mut Self, usize)) {
        if let Some(&slot) = self.slots.get(&id) {
            act(self, slot);
        }
    }

    fn rank_of(&self, slot: usize) -> Rank {
        self.entries[slot].rank_now(&*self.policy, &self.estimates)
    }

    /// Expected seconds of service that the request in `slot` still needs.
    fn work_s(&self, slot: usize) -> f64 {
        self.entries[slot].view(&self.estimates).remaining_service_s()
    }

    fn refresh_rank(&mut self, slot: usize) -> Rank {
        let rank = self.rank_of(slot);
        let entry = &mut self.entries[slot];
        (entry.rank, entry.ranked_at_tokens) = (rank, entry.generated_tokens);
        rank
    }

    /// Puts a request into the queue under its rank of now.
    fn enqueue(&mut self, slot: usize) {
        let rank = self.refresh_rank(slot);
        self.waiting.insert(Place { rank, slot, work_s: self.work_s(slot) });
    }

    /// Counts the work of a request that has just been scored, for policies whose keys depend on it.
    fn count_work(&mut self, slot: usize) {
        if self.policy.follows_load() {
            self.estimates.count(&self.entries[slot]);
        }
    }

    /// Moves a waiting request to its rank of now.
    fn requeue(&mut self, slot: usize) {
        self.waiting.remove(self.entries[slot].rank);
        self.enqueue(slot);
    }

    /// Takes the keys of all who wait anew, where the policy wants that by now.
    fn rekey(&mut self, now: Timestamp) {
        let Some(interval_s) = self.policy.rekey_interval_s() else { return };
        if now.since(self.rekeyed_at).as_secs_f64() < interval_s {
            return;
        }
        self.rekeyed_at = now;
        self.requeue_all();
    }

    /// Takes the keys anew where they depend on the load and that has moved.
    fn follow_load(&mut self) {
        if !self.policy.follows_load() {
            return;
        }
        let backlog_s = self.waiting.work_s().max(0.0) / f64::from(self.config.capacity.seats);
        let before_s = self.estimates.load.backlog_s;
        if !load_moved(before_s + MIN_BACKLOG_S, backlog_s + MIN_BACKLOG_S) {
            return;
        }
        self.estimates.load = self.estimates.load(backlog_s, self.policy.short_share());
        self.rerank_all();
    }

    /// Tells the monitor how long a finished request was; when that changes the verdict on the ranker, the queue follows.
    fn judge(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        let tokens = entry.generated_tokens;
        let Some(ticket) = entry.ticket.take() else { return };
        if tokens >= entry.request.known_limit_tokens() {
            // What ended at its limit says only that it would have been longer.
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

    /// Takes the rank of everybody anew.
    fn rerank_all(&mut self) {
        self.requeue_all();
        for at in 0..self.running.len() {
            self.refresh_rank(self.running[at]);
        }
    }

    /// Moves every waiting request to its rank of now.
    fn requeue_all(&mut self) {
        let slots: Vec<usize> = self.waiting.iter().map(|place| place.slot).collect();
        self.waiting = RankQueue::default();
        for slot in slots {
            self.enqueue(slot);
        }
    }

    /// Takes a running request off its seat and frees its KV in the ledger.
    fn unseat(&mut self, slot: usize) {
        self.running.retain(|&other| other != slot);
        let blocks = std::mem::take(&mut self.entries[slot].kv_blocks);
        self.kv.give(blocks);
    }

    /// Pauses a running request: it goes back to the queue, its KV is swapped or dropped, whichever is cheaper.
    fn pause(&mut self, slot: usize) {
        self.unseat(slot);
        let (method, _) = self.switch_cost(slot);
        let step = self.plan.step;
        let entry = &mut self.entries[slot];
        let id = entry.request.id;
        entry.state = State::Paused;
        entry.preemptions += 1;
        entry.paused_at_step = step;
        match method {
            SwitchMethod::Swap => {
                entry.swapped_blocks = crate::blocks_for(entry.computed_tokens);
                self.swapped_blocks += entry.swapped_blocks;
            }
            SwitchMethod::Recompute => {
                self.counters.recomputed_tokens += u64::from(entry.computed_tokens);
                entry.computed_tokens = 0;
            }
        }
        self.counters.preemptions += 1;
        self.plan.pause.push(crate::Pause { id, method });
        self.enqueue(slot);
    }

    fn switch_cost(&self, slot: usize) -> (SwitchMethod, f64) {
        let entry = &self.entries[slot];
        let swapped = self.swapped_blocks + crate::blocks_for(entry.computed_tokens);
        let may_swap = entry.computed_tokens > 0 && swapped <= self.config.switch_cost.max_swapped_blocks;
        self.config.switch_cost.cheapest(entry.computed_tokens, self.estimates.service.prefill_s, may_swap)
    }

    /// Forgets the KV of a request, and the slice of it that the last plan ordered: its context is computed anew, on its
    /// seat if it has one.
    fn lose_kv(&mut self, slot: usize) {
        self.drop_swapped(slot);
        let id = self.entries[slot].request.id;
        let ordered = self.plan.batch.iter().position(|slice| slice.id == id);
        let ordered_tokens = ordered.map_or(0, |at| self.plan.batch.remove(at).tokens);
        let computed_tokens = std::mem::take(&mut self.entries[slot].computed_tokens);
        self.counters.recomputed_tokens += u64::from(computed_tokens - ordered_tokens);
        if self.entries[slot].state == State::Paused {
            self.requeue(slot);
        }
    }

    fn drop_swapped(&mut self, slot: usize) {
        self.swapped_blocks -= std::mem::take(&mut self.entries[slot].swapped_blocks);
    }

    /// Forgets a request and frees all it holds.
    fn leave(&mut self, slot: usize) {
        self.stop_starvation_timer(slot);
        self.drop_swapped(slot);
        match self.entries[slot].state {
            State::Running => self.unseat(slot),
            State::Waiting => {
                self.waiting.remove(self.entries[slot].rank);
                self.overtakes.leave(self.entries[slot].number);
            }
            State::Paused => {
                self.waiting.remove(self.entries[slot].rank);
            }
        }
        let entry = self.entries.remove(slot);
        if let Some(ticket) = entry.ticket {
            self.monitor.leave(ticket);
        }
        self.slots.remove(&entry.request.id);
    }

    /// Unless it gets into a batch before, the request is promoted after the threshold of steps, counted from
    /// `first_missed_step` on.
    fn start_starvation_timer(&mut self, slot: usize, first_missed_step: u64) {
        if let Some(starvation) = self.policy.starvation() {
            let due_step = first_missed_step + starvation.threshold_steps;
            self.entries[slot].starves_at_step = Some(due_step);
            self.timers.set(due_step, slot);
        }
    }

    fn stop_starvation_timer(&mut self, slot: usize) {
        if let Some(due_step) = self.entries[slot].starves_at_step.take() {
            self.timers.clear(due_step, slot);
        }
    }
}
