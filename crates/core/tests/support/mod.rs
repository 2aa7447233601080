//! A host without an engine: executes plans under a virtual clock and checks each against the invariants.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrank_core::policies::{PolicySettings, by_name};
use outrank_core::{
    Capacity, Event, MonitorSettings, Policy, Request, RequestId, Scheduler, SchedulerConfig, Score,
    ServiceModel, SwitchCost, SwitchMethod, Timestamp, blocks_for,
};

/// One request of a test: what it asks and what it will really generate.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub arrival_ms: u64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Median of its score; none leaves it unscored.
    pub predicted: Option<f32>,
}

/// Duration of every step of the virtual host.
pub const STEP: Duration = Duration::from_millis(10);

pub fn capacity(seats: u32, kv_blocks: u32) -> Capacity {
    Capacity {
        seats,
        kv_blocks,
        watermark_blocks: 1,
        step_tokens: seats + 64,
        prefill_chunk_tokens: 32,
        context_tokens: 16 * (kv_blocks - 1),
    }
}

pub fn config(capacity: Capacity, max_swapped_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        capacity,
        max_queue_requests: 100_000,
        switch_cost: SwitchCost { swap_s_per_token: 1e-6, max_swapped_blocks },
        service: ServiceModel { decode_s: 0.01, prefill_s: 0.0001 },
        unscored_tokens: 50.0,
        max_bypass_s: 0.5,
        monitor: MonitorSettings::default(),
    }
}

pub fn policy(name: &str) -> Box<dyn Policy> {
    by_name(name, &PolicySettings::default()).unwrap()
}

/// What became of one job.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Outcome {
    pub first_token_ms: u64,
    pub finished_ms: u64,
}

/// KV state of one request as the host knows it.
#[derive(Default)]
struct Held {
    seated: bool,
    swapped: bool,
    computed_tokens: u32,
    generated_tokens: u32,
}

pub struct Host {
    pub scheduler: Scheduler,
    pub now: Timestamp,
    /// Ids of each batch executed, in plan order.
    pub batches: Vec<Vec<u64>>,
    jobs: Vec<Job>,
    next: usize,
    held: BTreeMap<RequestId, Held>,
    outcomes: BTreeMap<u64, Outcome>,
    capacity: Capacity,
}

impl Host {
    /// Jobs must be in order of arrival; a job's id is its index.
    pub fn new(config: SchedulerConfig, policy: Box<dyn Policy>, jobs: Vec<Job>) -> Self {
        Self {
            capacity: config.capacity,
            scheduler: Scheduler::new(config, policy).unwrap(),
            now: Timestamp::ZERO,
            batches: Vec::new(),
            jobs,
            next: 0,
            held: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        }
    }

    /// Runs until every job has finished; panics if that takes more steps than any schedule could need.
    pub fn run(mut self) -> (Vec<Outcome>, Vec<Vec<u64>>, outrank_core::Counters) {
        let work: u64 = self.jobs.iter().map(|j| u64::from(j.prompt_tokens + j.output_tokens)).sum();
        let limit = 1000 + 20 * work + self.jobs.last().map_or(0, |j| j.arrival_ms / 10);
        let mut steps = 0;
        while self.outcomes.len() < self.jobs.len() {
            self.submit_arrived();
            self.step();
            steps += 1;
            assert!(steps < limit, "no progress: {} of {} done", self.outcomes.len(), self.jobs.len());
        }
        let counters = self.scheduler.counters();
        assert_eq!(
            (counters.waiting, counters.running, counters.kv_used_blocks),
            (0, 0, 0),
            "something leaked"
        );
        (self.outcomes.into_values().collect(), self.batches, counters)
    }

    fn submit_arrived(&mut self) {
        while let Some(job) = self.jobs.get(self.next) {
            let arrival = Timestamp::from_micros(job.arrival_ms * 1000);
            if arrival > self.now {
                break;
            }
            let mut request = Request::new(self.next as u64, arrival, job.prompt_tokens, job.output_tokens);
            request.true_tokens = Some(job.output_tokens);
            let score = job.predicted.map(|median| Score::new(median, 0.5).unwrap());
            self.scheduler.submit(self.now, request, score).unwrap();
            self.next += 1;
        }
    }

    fn step(&mut self) {
        let waiting_before = self.scheduler.counters().waiting;
        let plan = self.scheduler.plan(self.now).clone();
        for pause in &plan.pause {
            let held = self.held.get_mut(&pause.id).unwrap();
            assert!(held.seated, "{:?} was paused without a seat", pause.id);
            held.seated = false;
            held.swapped = pause.method == SwitchMethod::Swap;
            if !held.swapped {
                held.computed_tokens = 0;
            }
        }
        for seat in &plan.seat {
            let held = self.held.entry(seat.id).or_default();
            assert!(!held.seated, "{:?} was seated twice", seat.id);
            assert_eq!(
                seat.restore, held.swapped,
                "{:?}: restore what was swapped and nothing else",
                seat.id
            );
            (held.seated, held.swapped) = (true, false);
        }
        self.check_limits(&plan);
        self.now = self.now + STEP;
        self.batches.push(plan.batch.iter().map(|slice| slice.id.0).collect());
        for slice in &plan.batch {
            self.execute(*slice);
        }
        if plan.is_idle() {
            assert_eq!(waiting_before, 0, "idle although somebody waits");
        }
        self.scheduler.observe(self.now, Event::StepTook(STEP));
    }

    fn check_limits(&self, plan: &outrank_core::Plan) {
        let seated: Vec<_> = self.held.iter().filter(|(_, held)| held.seated).collect();
        assert!(seated.len() <= self.capacity.seats as usize, "more sequences than seats");
        let tokens: u32 = plan.batch.iter().map(|slice| slice.tokens).sum();
        assert!(tokens <= self.capacity.step_tokens, "step over its token budget");
        let blocks: u32 = seated.iter().map(|(_, held)| blocks_for(held.computed_tokens)).sum();
        assert!(blocks <= self.capacity.kv_blocks, "KV over the ledger");
        let ids: BTreeSet<_> = plan.batch.iter().map(|slice| slice.id).collect();
        assert_eq!(ids.len(), plan.batch.len(), "a request stands twice in a batch");
    }

    fn execute(&mut self, slice: outrank_core::Slice) {
        let job = self.jobs[slice.id.0 as usize];
        let held = self.held.get_mut(&slice.id).unwrap();
        assert!(held.seated && slice.tokens > 0, "{slice:?} without a seat or empty");
        assert_eq!(slice.start, held.computed_tokens, "{slice:?} leaves a gap or repeats work");
        held.computed_tokens += slice.tokens;
        let context_tokens = job.prompt_tokens + held.generated_tokens;
        assert!(held.computed_tokens <= context_tokens, "{slice:?} is past the context");
        assert_eq!(slice.samples, held.computed_tokens == context_tokens, "{slice:?}");
        if !slice.samples {
            return;
        }
        held.generated_tokens += 1;
        let outcome = self.outcomes.get(&slice.id.0).copied();
        assert!(outcome.is_none(), "{:?} ran after it had finished", slice.id);
        self.scheduler.observe(self.now, Event::Token(slice.id));
        if held.generated_tokens == job.output_tokens {
            self.outcomes
                .insert(slice.id.0, Outcome { first_token_ms: 0, finished_ms: self.now.micros() / 1000 });
            self.held.remove(&slice.id);
            self.scheduler.observe(self.now, Event::Finished(slice.id));
        }
    }
}
