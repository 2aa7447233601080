//! The invariants of ARCHITECTURE.md, on random traffic, for every policy. `support::Host` checks every plan:
//! seats, token budget, KV, no gap, no repeated work, nothing lost, nothing run twice, idle only when empty.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;

use outrank_core::policies::{NAMES, Outrank};
use outrank_core::{Event, Rejection, Request, RequestId, Scheduler, Score, Timestamp};
use proptest::prelude::*;
use support::{Host, Job, capacity, config, policy};

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let job = (0u64..30, 1u32..80, 1u32..60, prop::option::of(1.0f32..80.0));
    prop::collection::vec(job, 1..60).prop_map(|drawn| {
        let mut arrival_ms = 0;
        let with_arrivals = drawn.into_iter().map(|(gap_ms, prompt_tokens, output_tokens, predicted)| {
            arrival_ms += gap_ms;
            Job { arrival_ms, prompt_tokens, output_tokens, predicted }
        });
        with_arrivals.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_request_is_served_once_under_every_policy(
        jobs in jobs(), seats in 1u32..9, kv_blocks in 11u32..40, max_swapped_blocks in 0u32..40,
    ) {
        for name in NAMES {
            let config = config(capacity(seats, kv_blocks), max_swapped_blocks);
            let (outcomes, _, counters) = Host::new(config, policy(name), jobs.clone()).run();
            prop_assert_eq!(outcomes.len(), jobs.len());
            prop_assert_eq!(counters.finished as usize, jobs.len());
        }
    }

    #[test]
    fn the_same_traffic_gives_the_same_plans(jobs in jobs(), seats in 1u32..9) {
        for name in NAMES {
            let run = || Host::new(config(capacity(seats, 20), 10), policy(name), jobs.clone()).run();
            prop_assert_eq!(run().1, run().1);
        }
    }

    #[test]
    fn seats_are_never_idle_while_somebody_waits_and_memory_is_ample(jobs in jobs(), seats in 1u32..9) {
        for name in NAMES {
            let mut ample = capacity(seats, 2000);
            (ample.step_tokens, ample.prefill_chunk_tokens) = (10_000, 10_000);
            let (outcomes, batches, _) = Host::new(config(ample, 1000), policy(name), jobs.clone()).run();
            let finished: Vec<u64> = outcomes.iter().map(|o| o.finished_ms).collect();
            for (step, batch) in batches.iter().enumerate() {
                let now_ms = step as u64 * 10;
                let present = (0..jobs.len()).filter(|&i| jobs[i].arrival_ms <= now_ms && finished[i] > now_ms);
                prop_assert_eq!(batch.len(), present.count().min(seats as usize), "step {} of {}", step, name);
            }
        }
    }

    /// With many seats, free ones gather while more than a few wait: the exception to the one above, and its bounds.
    #[test]
    fn few_seats_gather_for_a_few_steps_and_starts_come_together(
        lengths in prop::collection::vec(20u32..120, 700), predicted in any::<bool>(),
    ) {
        const SEATS: usize = 256;
        let jobs: Vec<_> = lengths
            .iter()
            .map(|&output_tokens| {
                let predicted = predicted.then_some(output_tokens as f32);
                Job { arrival_ms: 0, prompt_tokens: 1, output_tokens, predicted }
            })
            .collect();
        let mut ample = capacity(SEATS as u32, 20_000);
        (ample.step_tokens, ample.prefill_chunk_tokens) = (10_000, 10_000);
        // Idle seats in each step that begins with a queue, and how many requests start in it.
        let run = |gather_share| {
            let policy = Outrank { gather_share, max_preemptions_per_step: 0, ..Outrank::default() };
            let (_, batches, _) = Host::new(config(ample, 0), Box::new(policy), jobs.clone()).run();
            let mut started = BTreeSet::new();
            let mut steps = Vec::new();
            for batch in batches {
                let before = started.len();
                started.extend(batch.iter().copied());
                if before >= SEATS && before + 16 < jobs.len() {
                    steps.push((SEATS - batch.len(), started.len() - before));
                }
            }
            steps
        };
        let (gathering, at_once) = (run(1.0 / 64.0), run(0.0));
        prop_assert!(at_once.iter().all(|&(idle, _)| idle == 0));
        prop_assert!(gathering.iter().all(|&(idle, _)| idle < SEATS / 64));
        let longest_hold = gathering.split(|&(idle, _)| idle == 0).map(<[_]>::len).max();
        prop_assert!((1..=8).contains(&longest_hold.unwrap()), "{:?}", longest_hold);
        let starts = |steps: &[(usize, usize)]| steps.iter().filter(|&&(_, starts)| starts > 0).count();
        prop_assert!(starts(&gathering) < starts(&at_once), "{} {}", starts(&gathering), starts(&at_once));
    }

    /// The stated bound of `outrank`: nobody starts before an earlier arrival that is more than `patience` older.
    #[test]
    fn nobody_is_overtaken_by_arrivals_beyond_its_patience(jobs in jobs(), patience_s in 0.0f64..0.4) {
        let rule = Outrank { patience_s, max_preemptions_per_step: 0, ..Outrank::default() };
        let mut ample = capacity(2, 2000);
        (ample.step_tokens, ample.prefill_chunk_tokens) = (10_000, 10_000);
        let (_, batches, _) = Host::new(config(ample, 0), Box::new(rule), jobs.clone()).run();
        let started = |id: usize| batches.iter().position(|batch| batch.contains(&(id as u64)));
        for earlier in 0..jobs.len() {
            for later in earlier + 1..jobs.len() {
                let gap_s = (jobs[later].arrival_ms - jobs[earlier].arrival_ms) as f64 / 1000.0;
                if gap_s > patience_s {
                    prop_assert!(started(earlier) <= started(later), "{later} overtook {earlier} after {gap_s} s");
                }
            }
        }
    }

    #[test]
    fn whatever_is_cancelled_and_whenever_nothing_leaks(
        jobs in jobs(), cancels in prop::collection::vec((0usize..60, 0u64..60), 0..30), seats in 1u32..5,
    ) {
        for name in NAMES {
            let mut scheduler = Scheduler::new(config(capacity(seats, 30), 10), policy(name)).unwrap();
            for (id, job) in jobs.iter().enumerate() {
                let request = Request::new(id as u64, Timestamp::ZERO, job.prompt_tokens, job.output_tokens);
                let score = job.predicted.map(|median| Score::new(median, 0.7).unwrap());
                scheduler.submit(Timestamp::ZERO, request, score).unwrap();
            }
            for step in 0..60 {
                let now = Timestamp::from_micros(step * 10_000);
                let plan = scheduler.plan(now).clone();
                for slice in plan.batch.iter().filter(|slice| slice.samples) {
                    scheduler.observe(now, Event::Token(slice.id));
                }
                for &(id, at) in &cancels {
                    if at == step {
                        scheduler.observe(now, Event::Cancelled(RequestId(id as u64)));
                    }
                }
            }
            for id in 0..jobs.len() {
                scheduler.observe(Timestamp::ZERO, Event::Cancelled(RequestId(id as u64)));
            }
            let counters = scheduler.counters();
            prop_assert_eq!((counters.waiting, counters.running, counters.kv_used_blocks), (0, 0, 0));
            prop_assert_eq!(counters.cancelled as usize, jobs.len());
            prop_assert!(scheduler.plan(Timestamp::ZERO).is_idle());
        }
    }
}

#[test]
fn a_full_queue_and_impossible_requests_are_refused_and_nothing_is_kept() {
    let mut small = config(capacity(1, 11), 0);
    small.max_queue_requests = 2;
    let mut scheduler = Scheduler::new(small, policy("outrank")).unwrap();
    let mut submit = |id, prompt, max| {
        scheduler.submit(Timestamp::ZERO, Request::new(id, Timestamp::ZERO, prompt, max), None)
    };
    assert!(submit(0, 10, 10).is_ok(), "there is a free seat");
    assert!(submit(1, 10, 10).is_ok() && submit(2, 10, 10).is_ok());
    assert!(
        matches!(submit(3, 10, 10), Err(Rejection::QueueFull { limit: 2, retry_after_s }) if retry_after_s >= 1.0)
    );
    assert!(matches!(submit(0, 10, 10), Err(Rejection::DuplicateId(_))));
    assert!(matches!(submit(3, 100, 61), Err(Rejection::TooLong { context_tokens: 160, .. })));
    assert!(matches!(submit(3, u32::MAX, 2), Err(Rejection::TooLong { .. })), "no overflow");
    assert!(matches!(submit(3, 0, 5), Err(Rejection::Empty)));
    assert!(matches!(submit(3, 5, 0), Err(Rejection::Empty)));
    assert_eq!((scheduler.counters().waiting, scheduler.counters().rejected), (3, 6));
}

#[test]
fn a_capacity_that_could_deadlock_is_refused_by_name() {
    let mut wrong = capacity(4, 20);
    wrong.context_tokens = 16 * 20;
    let error = Scheduler::new(config(wrong, 0), policy("fcfs")).unwrap_err().to_string();
    assert!(error.contains("kv_blocks = 20"), "{error}");
    let mut wrong = capacity(4, 20);
    wrong.step_tokens = 4;
    let error = Scheduler::new(config(wrong, 0), policy("fcfs")).unwrap_err().to_string();
    assert!(error.contains("step_tokens = 4"), "{error}");
}
