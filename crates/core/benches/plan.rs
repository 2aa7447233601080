//! Cost of one `plan` against the number of waiting requests, 256 seats taken, in a steady state: whoever ends is
//! replaced by a new arrival, so that admission, preemption and promotion happen as they do in service.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use outrank_core::policies::{NAMES, PolicySettings, by_name};
use outrank_core::{
    Capacity, Event, MonitorSettings, Request, RequestId, Scheduler, SchedulerConfig, Score, ServiceModel,
    SwitchCost, Timestamp,
};

const SEATS: u64 = 256;
const STEP: Duration = Duration::from_millis(20);

struct Service {
    scheduler: Scheduler,
    left_tokens: HashMap<RequestId, u32>,
    next_id: u64,
    now: Timestamp,
}

impl Service {
    fn new(policy: &str, waiting: u64) -> Self {
        let capacity = Capacity {
            seats: SEATS as u32,
            kv_blocks: 100_000,
            watermark_blocks: 100,
            step_tokens: 2048,
            prefill_chunk_tokens: 1024,
            context_tokens: 8192,
        };
        let config = SchedulerConfig {
            capacity,
            max_queue_requests: 1_000_000,
            switch_cost: SwitchCost { swap_s_per_token: 1e-6, max_swapped_blocks: 100_000 },
            service: ServiceModel { decode_s: 0.02, prefill_s: 0.0001 },
            unscored_tokens: 200.0,
            max_bypass_s: 10.0,
            monitor: MonitorSettings::default(),
        };
        let policy = by_name(policy, &PolicySettings::default()).unwrap();
        let scheduler = Scheduler::new(config, policy).unwrap();
        let mut this = Self { scheduler, left_tokens: HashMap::new(), next_id: 0, now: Timestamp::ZERO };
        (0..SEATS + waiting).for_each(|_| this.submit());
        for _ in 0..500 {
            this.step();
        }
        this
    }

    fn submit(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        // A fixed scatter of lengths between 10 and 1,010 tokens, each predicted to within a factor of two.
        let length = 10 + (id.wrapping_mul(2_654_435_761) % 1000) as u32;
        let error = 0.5 + (id.wrapping_mul(40_503) % 1000) as f32 / 667.0;
        let mut request = Request::new(id, self.now, 20, 2000);
        request.true_tokens = Some(length);
        let score = Score::new(length as f32 * error, 0.6).unwrap();
        self.scheduler.submit(self.now, request, Some(score)).unwrap();
        self.left_tokens.insert(RequestId(id), length);
    }

    /// Plans a step, timed, then plays the engine and the clients, not timed.
    fn step(&mut self) -> Duration {
        self.now = self.now + STEP;
        let before = std::time::Instant::now();
        let plan = std::hint::black_box(self.scheduler.plan(self.now));
        let spent = before.elapsed();
        let sampled: Vec<_> = plan.batch.iter().filter(|slice| slice.samples).map(|slice| slice.id).collect();
        for id in sampled {
            self.scheduler.observe(self.now, Event::Token(id));
            let left_tokens = self.left_tokens.get_mut(&id).unwrap();
            *left_tokens -= 1;
            if *left_tokens == 0 {
                self.left_tokens.remove(&id);
                self.scheduler.observe(self.now, Event::Finished(id));
                self.submit();
            }
        }
        self.scheduler.observe(self.now, Event::StepTook(STEP));
        spent
    }
}

fn plan(criterion: &mut Criterion) {
    for name in NAMES {
        let mut group = criterion.benchmark_group(format!("plan/{name}"));
        for waiting in [1_000, 10_000, 100_000] {
            let mut service = Service::new(name, waiting);
            group.bench_function(BenchmarkId::from_parameter(waiting), |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| service.step()).sum());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, plan);
criterion_main!(benches);
