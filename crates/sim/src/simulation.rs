//! The event loop: requests arrive, the scheduler plans, a step passes, tokens come.

use std::time::Duration;

use outrank_core::{
    CapacityError, Counters, Event, MonitorSettings, Plan, Policy, Rejection, Request, RequestId, Scheduler,
    Score, StepSample, SwitchMethod, Timestamp, Trust,
};
use serde::Serialize;
use thiserror::Error;

use crate::scorer::Scorer;
use crate::{Answer, Composition, Profile, Scoring};

/// Output length that a request without score is taken for, in tokens, where the host knows nothing yet.
const UNSCORED_TOKENS: f64 = 256.0;
/// Points of the timeline, at most; beyond it every second one is dropped.
const MAX_TIMELINE_POINTS: usize = 512;

/// Changes of the monitor's verdict that are remembered, at most.
pub const MAX_TRUST_CHANGES: usize = 1024;

/// A request that will arrive.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Job {
    /// When, in seconds since the start.
    pub arrival_s: f64,
    /// Length of the prompt in tokens, at least 1.
    pub prompt_tokens: u32,
    /// Length of the answer in tokens, at least 1.
    pub output_tokens: u32,
    /// Output limit that the client set, in tokens; without one, the context limits.
    pub max_tokens: Option<u32>,
    /// What the ranker predicts.
    pub score: Option<Score>,
}

/// Sees what happens in a run, in the order in which it happens. A closure that takes answers is one.
pub trait Watch {
    /// A request arrives: what is predicted of it. What its [`Job`] says, unless the ranker changes during the run.
    fn score(&mut self, _arrival_s: f64, _index: usize, job: &Job) -> Option<Score> {
        job.score
    }

    /// A request got a token.
    fn token(&mut self, _index: usize) {}

    /// A request has its answer.
    fn answered(&mut self, answer: Answer);
}

impl<F: FnMut(Answer)> Watch for F {
    fn answered(&mut self, answer: Answer) {
        self(answer);
    }
}

/// Why a simulation cannot run.
#[derive(Debug, Error)]
pub enum SimError {
    /// The profile could not run every request it accepts.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The scheduler refuses a request.
    #[error("request {index}: {reason}")]
    Refused {
        /// Which one, from 0.
        index: usize,
        /// Why.
        reason: Rejection,
    },
    /// Jobs must come in order of arrival.
    #[error("request {index} arrives before the one ahead of it: sort the requests by arrival")]
    Unsorted {
        /// Which one, from 0.
        index: usize,
    },
    /// The scheduler has nothing to do although requests are left: a defect of the scheduler.
    #[error("the scheduler stalls at {at_s} s with {left} requests left: this is a defect, please report it")]
    Stalled {
        /// Virtual time.
        at_s: f64,
        /// Requests that have not finished.
        left: usize,
    },
}

/// A moment of a run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct TimelinePoint {
    /// Virtual time in seconds.
    pub at_s: f64,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests with a seat.
    pub running: usize,
}

/// A change of the monitor's verdict.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct TrustChange {
    /// Virtual time in seconds.
    pub at_s: f64,
    /// The verdict from then on.
    pub trust: Trust,
}

/// Sums over a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Totals {
    /// From the first arrival to the last answer, in seconds.
    pub duration_s: f64,
    /// Of which the engine computed, in seconds.
    pub busy_s: f64,
    /// Of which requests waited, so that the engine was as busy as it can be, in seconds.
    pub saturated_s: f64,
    /// Output tokens generated in that time.
    pub saturated_tokens: u64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Output tokens of all requests.
    pub output_tokens: u64,
    /// Seconds from the first arrival during which the ranker was not followed.
    pub distrusted_s: f64,
    /// When the monitor changed its mind, at most [`MAX_TRUST_CHANGES`] times.
    pub trust_changes: Vec<TrustChange>,
    /// The scheduler's counts.
    pub counters: Counters,
    /// Who waited and who ran over time.
    pub timeline: Vec<TimelinePoint>,
}

/// A request between its arrival and its end.
#[derive(Clone, Copy, Debug, Default)]
struct Active {
    index: usize,
    arrival: Timestamp,
    prompt_tokens: u32,
    output_tokens: u32,
    generated_tokens: u32,
    first_token: Timestamp,
    last_token: Timestamp,
    max_gap_us: u64,
    preemptions: u32,
    /// Seconds until its end, as said on arrival.
    eta_s: f64,
}

/// One run of one policy on one engine.
#[derive(Debug)]
pub struct Simulation<'a> {
    profile: &'a Profile,
    scheduler: Scheduler,
    scorer: Scorer,
    now: Timestamp,
    /// Requests that have arrived and not finished, by the low half of their id.
    active: Vec<Active>,
    free: Vec<usize>,
    arrived: u64,
    plan: Plan,
    totals: Totals,
    timeline_interval_s: f64,
}

impl<'a> Simulation<'a> {
    /// A simulation of `profile` under `policy`, with nobody there yet.
    ///
    /// # Errors
    /// [`SimError::Capacity`].
    pub fn new(
        profile: &'a Profile,
        policy: Box<dyn Policy>,
        scoring: Scoring,
        monitor: MonitorSettings,
    ) -> Result<Self, SimError> {
        Ok(Self {
            scheduler: Scheduler::new(profile.scheduler(UNSCORED_TOKENS, monitor), policy)?,
            profile,
            scorer: Scorer::new(scoring),
            now: Timestamp::ZERO,
            active: Vec::new(),
            free: Vec::new(),
            arrived: 0,
            plan: Plan::default(),
            totals: Totals::default(),
            timeline_interval_s: 0.05,
        })
    }

    /// Runs until every job is answered, and tells `watch` of it, of each answer as it ends. Jobs come in order of arrival;
    /// only those under way are kept in memory.
    ///
    /// # Errors
    /// [`SimError`]; answers handed over before stay valid.
    pub fn run(
        mut self,
        jobs: impl IntoIterator<Item = Job>,
        mut watch: impl Watch,
    ) -> Result<Totals, SimError> {
        let mut jobs = jobs.into_iter().enumerate().peekable();
        let start = jobs.peek().map_or(Timestamp::ZERO, |(_, job)| Timestamp::from_secs_f64(job.arrival_s));
        self.now = start;
        let mut last_arrival = start;
        loop {
            while let Some((index, job)) =
                jobs.next_if(|(_, job)| Timestamp::from_secs_f64(job.arrival_s) <= self.now)
            {
                let arrival = Timestamp::from_secs_f64(job.arrival_s);
                if arrival < last_arrival {
                    return Err(SimError::Unsorted { index });
                }
                last_arrival = arrival;
                self.deliver_scores(arrival);
                let score = watch.score(job.arrival_s, index, &job);
                self.arrive(index, arrival, &Job { score, ..job })?;
            }
            self.deliver_scores(self.now);
            if self.step(&mut watch) {
                continue;
            }
            // Nothing to do until the next arrival.
            match jobs.peek() {
                Some((_, job)) => self.now = self.now.max(Timestamp::from_secs_f64(job.arrival_s)),
                None if self.in_flight() == 0 => break,
                None => {
                    return Err(SimError::Stalled { at_s: self.now.secs_f64(), left: self.in_flight() });
                }
            }
        }
        self.totals.duration_s = self.now.since(start).as_secs_f64();
        self.totals.counters = self.scheduler.counters();
        Ok(self.totals)
    }

    fn in_flight(&self) -> usize {
        self.active.len() - self.free.len()
    }

    fn arrive(&mut self, index: usize, arrival: Timestamp, job: &Job) -> Result<(), SimError> {
        let context = self.profile.capacity.context_tokens;
        let max_tokens =
            job.max_tokens.unwrap_or(context.saturating_sub(job.prompt_tokens)).max(job.output_tokens);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.active.push(Active::default());
            self.active.len() - 1
        });
        self.active[slot] = Active {
            index,
            arrival,
            prompt_tokens: job.prompt_tokens,
            output_tokens: job.output_tokens,
            ..Active::default()
        };
        self.arrived += 1;
        let id = (self.arrived << 32) | slot as u64;
        let mut request = Request::new(id, arrival, job.prompt_tokens, max_tokens);
        request.true_tokens = Some(job.output_tokens);
        let score = self.scorer.arrive(arrival, request.id, job.score);
        let placement = self
            .scheduler
            .submit(arrival, request, score)
            .map_err(|reason| SimError::Refused { index, reason })?;
        self.active[slot].eta_s = placement.eta.finish_s;
        self.totals.prompt_tokens += u64::from(job.prompt_tokens);
        self.totals.output_tokens += u64::from(job.output_tokens);
        Ok(())
    }

    fn deliver_scores(&mut self, until: Timestamp) {
        while let Some((at, id, score)) = self.scorer.pop_ready(until) {
            self.scheduler.observe(at, Event::Scored(id, score));
        }
    }

    /// Plans and executes one step; `false` if there is nothing to do.
    fn step(&mut self, watch: &mut impl Watch) -> bool {
        let plan = self.scheduler.plan(self.now);
        if plan.is_idle() {
            return false;
        }
        // The plan belongs to the scheduler, which is told of every token below.
        self.plan.pause.clone_from(&plan.pause);
        self.plan.seat.clone_from(&plan.seat);
        self.plan.batch.clone_from(&plan.batch);
        let switching_s = self.switch();
        // What the engine's step log would say of it, but for how long it took.
        let held = Composition::from(&StepSample::new(&self.plan.batch, Duration::ZERO));
        let step_s = self.profile.step.seconds(&held) + self.scorer.take_blocked_s();
        let took = Timestamp::from_secs_f64(step_s).since(Timestamp::ZERO);
        let before = self.now;
        self.now = Timestamp::from_secs_f64(before.secs_f64() + switching_s + step_s);
        let tokens = self.finish_step(watch);
        if !self.plan.batch.is_empty() {
            self.scheduler.observe(self.now, Event::StepTook(took));
        }
        self.account(before, tokens);
        true
    }

    /// Seconds that the pauses and restores of the plan take.
    fn switch(&mut self) -> f64 {
        let mut swapped_tokens = 0;
        for pause in &self.plan.pause {
            let active = &mut self.active[slot_of(pause.id)];
            active.preemptions += 1;
            if pause.method == SwitchMethod::Swap {
                swapped_tokens += active.prompt_tokens + active.generated_tokens;
            }
        }
        for seat in self.plan.seat.iter().filter(|seat| seat.restore) {
            let active = &self.active[slot_of(seat.id)];
            swapped_tokens += active.prompt_tokens + active.generated_tokens;
        }
        // The cost per token is for the way out and back in; each of the two takes half.
        if swapped_tokens == 0 {
            return 0.0;
        }
        0.5 * f64::from(swapped_tokens) * self.profile.switch_cost.swap_s_per_token
    }

    /// Every sequence at the end of its context gets its token, at the end of the step. Returns how many did.
    fn finish_step(&mut self, watch: &mut impl Watch) -> u64 {
        let now = self.now;
        let mut tokens = 0;
        for slice in self.plan.batch.iter().filter(|slice| slice.samples) {
            let slot = slot_of(slice.id);
            let active = &mut self.active[slot];
            if active.generated_tokens == 0 {
                active.first_token = now;
            } else {
                active.max_gap_us = active.max_gap_us.max(now.micros() - active.last_token.micros());
            }
            active.last_token = now;
            active.generated_tokens += 1;
            watch.token(active.index);
            tokens += 1;
            self.scheduler.observe(now, Event::Token(slice.id));
            if active.generated_tokens == active.output_tokens {
                watch.answered(active.answer(now));
                self.free.push(slot);
                self.scheduler.observe(now, Event::Finished(slice.id));
            }
        }
        tokens
    }

    fn account(&mut self, before: Timestamp, tokens: u64) {
        let took_s = self.now.since(before).as_secs_f64();
        self.totals.busy_s += took_s;
        let (waiting, running) = self.scheduler.occupancy();
        if waiting > 0 {
            self.totals.saturated_s += took_s;
            self.totals.saturated_tokens += tokens;
        }
        let trust = self.scheduler.trust();
        if trust == Trust::Distrusted {
            self.totals.distrusted_s += took_s;
        }
        let changes = &mut self.totals.trust_changes;
        if changes.last().map_or(Trust::Trusted, |last| last.trust) != trust
            && changes.len() < MAX_TRUST_CHANGES
        {
            changes.push(TrustChange { at_s: self.now.secs_f64(), trust });
        }
        let timeline = &mut self.totals.timeline;
        let at_s = self.now.secs_f64();
        if timeline.last().is_none_or(|last| at_s >= last.at_s + self.timeline_interval_s) {
            timeline.push(TimelinePoint { at_s, waiting, running });
            if timeline.len() >= MAX_TIMELINE_POINTS {
                let mut keep = false;
                timeline.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.timeline_interval_s *= 2.0;
            }
        }
    }
}

fn slot_of(id: RequestId) -> usize {
    (id.0 & 0xFFFF_FFFF) as usize
}

impl Active {
    fn answer(&self, now: Timestamp) -> Answer {
        let since_arrival_s = |at: Timestamp| at.since(self.arrival).as_secs_f64();
        Answer {
            index: self.index,
            arrival_s: self.arrival.secs_f64(),
            output_tokens: self.output_tokens,
            ttft_s: since_arrival_s(self.first_token),
            e2e_s: since_arrival_s(now),
            max_gap_s: self.max_gap_us as f64 / 1e6,
            preemptions: self.preemptions,
            eta_s: Some(self.eta_s),
        }
    }
}
