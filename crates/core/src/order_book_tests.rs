use super::*;
use crate::policies::{Boost, Fcfs, Hrrn, Ltr, Mlfq, OracleSjf, Outrank, Sjf};
use crate::{Capacity, Event, Scheduler, SchedulerConfig, SwitchCost};

const COSTS: ServiceModel = ServiceModel { decode_s: 0.01, prefill_s: 1e-5 };

fn book(policy: impl Policy + 'static, seats: u32) -> OrderBook {
    OrderBook::stepped_by(Box::new(policy), seats, COSTS, 200.0, MonitorSettings::default()).unwrap()
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_secs_f64(seconds)
}

fn submit(book: &mut OrderBook, id: u64, now_s: f64, median: Option<f32>) {
    let score = median.map(|median| Score::new(median, 0.3).unwrap());
    book.submit(at(now_s), Request::new(id, at(now_s), 10, 4000), score).unwrap();
}

/// Ids by their last reported rank.
fn order(book: &mut OrderBook, now_s: f64) -> Vec<u64> {
    let mut ranks: Vec<(Rank, u64)> =
        book.changed(at(now_s)).iter().map(|&(id, rank)| (rank, id.0)).collect();
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn a_backlog_reorders_the_short_to_the_front() {
    let mut book = book(Outrank::default(), 1);
    for (id, median) in [800.0, 700.0, 900.0, 5.0].into_iter().enumerate() {
        submit(&mut book, id as u64, id as f64 * 0.001, Some(median));
    }
    assert_eq!(order(&mut book, 0.01)[0], 3);
}

#[test]
fn a_late_score_moves_a_request() {
    let mut book = book(Sjf, 1);
    submit(&mut book, 0, 0.0, Some(100.0));
    submit(&mut book, 1, 0.1, None);
    book.scored(at(0.2), RequestId(1), Score::new(3.0, 0.3).unwrap());
    let changed = book.changed(at(0.2));
    assert_eq!(changed.last().unwrap().0, RequestId(1));
    assert_eq!(book.waiting.first().unwrap().1.rank.number, 1);
}

#[test]
fn without_scores_the_order_is_that_of_arrival() {
    let mut book = book(Outrank::default(), 2);
    (0..50).for_each(|id| submit(&mut book, id, id as f64 * 0.01, None));
    assert_eq!(order(&mut book, 1.0), (0..50).collect::<Vec<_>>());
}

#[test]
fn a_short_request_takes_the_seat_of_an_endless_one_once_and_within_the_cap() {
    let policy = Outrank { min_gain_services: 0.1, ..Outrank::default() };
    let mut book = book(policy, 2);
    for id in 0..2 {
        submit(&mut book, id, 0.0, Some(3000.0));
        book.started(RequestId(id));
    }
    (2..12).for_each(|id| submit(&mut book, id, 0.5, Some(4.0)));
    book.changed(at(0.6));
    assert!(book.victims(at(0.6), 1).is_empty(), "a free seat needs no victim");
    for _ in 0..2 {
        let victims = book.victims(at(0.6), 0);
        assert_eq!(victims.len(), 1, "max_preemptions_per_step is 1");
        book.paused(at(0.6), victims[0]);
        book.started(victims[0]);
    }
    let victims: Vec<_> = (0..4)
        .flat_map(|_| {
            let victims = book.victims(at(0.7), 0);
            victims.iter().for_each(|&id| {
                book.paused(at(0.7), id);
                book.started(id);
            });
            victims
        })
        .collect();
    assert_eq!(victims.len(), 2, "each of the two is paused twice at most");
}

#[test]
fn a_misleading_ranker_is_dropped_and_the_queue_goes_back_to_arrival() {
    let mut book = book(Outrank::default(), 4);
    for id in 0..200u64 {
        let length = 10 + (id * 7919 % 500) as u32;
        submit(&mut book, id, 0.0, Some(600.0 - length as f32));
        book.started(RequestId(id));
        book.ended(at(1.0), RequestId(id), length, End::Stopped);
    }
    assert_eq!(book.trust(), Trust::Distrusted);
    (200..260).for_each(|id| submit(&mut book, id, 2.0 + id as f64 * 0.001, Some(900.0 - id as f32)));
    assert_eq!(order(&mut book, 3.0), (200..260).collect::<Vec<_>>());
}

#[test]
fn lengths_cut_by_a_limit_or_given_up_are_not_held_against_the_ranker() {
    let mut book = book(Outrank::default(), 4);
    for id in 0..200u64 {
        submit(&mut book, id, 0.0, Some(600.0 - (id % 100) as f32 * 5.0));
        book.started(RequestId(id));
        let end = if id % 2 == 0 { End::Capped } else { End::Aborted };
        book.ended(at(1.0), RequestId(id), 10 + (id % 100) as u32 * 5, end);
    }
    assert_eq!(book.trust(), Trust::Trusted);
    assert!(
        book.entries.is_empty()
            && book.slots.is_empty()
            && book.waiting.is_empty()
            && book.running.is_empty()
    );
}

/// One step of a host that does what the book says; returns who had a seat.
fn follow(book: &mut OrderBook, seats: usize, now_s: f64) -> Vec<u64> {
    let now = at(now_s);
    book.changed(now);
    for id in book.victims(now, seats - book.running.len()) {
        book.paused(now, id);
    }
    while book.running.len() < seats {
        let Some(slot) = book.waiting.first().map(|(_, place)| place.slot) else { break };
        book.started(book.entries[slot].request.id);
    }
    book.stepped();
    let mut batch: Vec<u64> = book.running.iter().map(|&slot| book.entries[slot].request.id.0).collect();
    batch.sort_unstable();
    batch
}

fn scheduler(policy: impl Policy + 'static, seats: u32) -> Scheduler {
    let capacity = Capacity {
        seats,
        kv_blocks: 1_000_000,
        watermark_blocks: 0,
        step_tokens: 1_000_000,
        prefill_chunk_tokens: 1_000_000,
        context_tokens: 10_000,
    };
    let config = SchedulerConfig {
        capacity,
        max_queue_requests: 1_000_000,
        switch_cost: SwitchCost::RECOMPUTE_ONLY,
        service: COSTS,
        unscored_tokens: 200.0,
        max_bypass_s: 1.0,
        monitor: MonitorSettings::default(),
    };
    Scheduler::new(config, Box::new(policy)).unwrap()
}

#[test]
fn a_host_that_follows_the_book_runs_the_batches_of_the_scheduler_under_ltr() {
    let (seats, policy) = (4, Ltr { threshold_steps: 9, quantum_steps: 3 });
    let (mut book, mut scheduler) = (book(policy, seats), scheduler(policy, seats));
    let mut seed = 11u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut left = std::collections::BTreeMap::new();
    let mut generated = std::collections::BTreeMap::new();
    for step in 0..1500u64 {
        let now_s = step as f64 * 0.01;
        if step < 1000 && random(5) == 0 {
            let tokens = 1 + random(40) as u32;
            let guess = Score::new(tokens as f32 * (0.2 + random(20) as f32 / 10.0), 0.3).unwrap();
            left.insert(step, tokens);
            book.submit(at(now_s), Request::new(step, at(now_s), 10, 4000), Some(guess)).unwrap();
            scheduler.submit(at(now_s), Request::new(step, at(now_s), 10, 4000), Some(guess)).unwrap();
        }
        let mut batch: Vec<u64> = scheduler.plan(at(now_s)).batch.iter().map(|slice| slice.id.0).collect();
        batch.sort_unstable();
        assert_eq!(follow(&mut book, seats as usize, now_s), batch, "step {step}");
        for id in batch {
            scheduler.observe(at(now_s), Event::Token(RequestId(id)));
            let tokens = generated.entry(id).or_insert(0);
            *tokens += 1;
            book.generated(RequestId(id), *tokens);
            if *tokens == left[&id] {
                book.ended(at(now_s), RequestId(id), *tokens, End::Stopped);
                scheduler.observe(at(now_s), Event::Finished(RequestId(id)));
            }
        }
    }
    assert!(book.promotions() > 20, "{} promotions: the test shows too little", book.promotions());
    assert_eq!(book.promotions(), scheduler.counters().promotions);
    assert!(scheduler.counters().preemptions > 50 && book.entries.is_empty());
}

#[test]
fn a_promoted_request_ranks_ahead_of_all_and_tells_the_host() {
    let mut book = book(Ltr { threshold_steps: 3, quantum_steps: 2 }, 1);
    submit(&mut book, 0, 0.0, Some(900.0));
    (1..9).for_each(|id| submit(&mut book, id, 0.0, Some(5.0)));
    for step in 0..3 {
        assert_eq!(follow(&mut book, 1, 0.1 * f64::from(step)), [1]);
    }
    let promoted = book.changed(at(0.4));
    assert!(promoted.iter().any(|&(id, rank)| id == RequestId(0) && rank.band == 0), "{promoted:?}");
    assert_eq!(promoted.len(), 8, "all who waited are promoted at the same step");
    assert_eq!(book.victims(at(0.4), 0), [RequestId(1)], "the running one was not promoted");
    let mut is_promoted = |id| book.explain(at(0.4), RequestId(id)).unwrap().promoted;
    assert!(is_promoted(0) && !is_promoted(1), "who asks is told so");
}

#[test]
fn policies_are_refused_where_the_host_cannot_serve_them() {
    let stepped = |policy| OrderBook::stepped_by(policy, 1, COSTS, 200.0, MonitorSettings::default());
    let plain = |policy| OrderBook::new(policy, 1, COSTS, 200.0, MonitorSettings::default());
    let timed: [Box<dyn Policy>; 3] =
        [Box::<Mlfq>::default(), Box::<Hrrn>::default(), Box::<Boost>::default()];
    for policy in timed {
        let name = policy.name();
        assert_eq!(stepped(policy).unwrap_err(), UnsuitedPolicy(name));
    }
    assert_eq!(plain(Box::<Ltr>::default()).unwrap_err(), UnsuitedPolicy("ltr"));
    assert!(stepped(Box::<Ltr>::default()).is_ok());
    assert!(plain(Box::new(Fcfs)).is_ok() && plain(Box::new(OracleSjf)).is_ok());
}

#[test]
fn a_host_without_a_queue_of_its_own_is_told_who_goes_next_and_where_the_others_stand() {
    let mut book = book(Sjf, 1);
    for (id, median) in [300.0, 200.0, 100.0].into_iter().enumerate() {
        submit(&mut book, id as u64, 0.0, Some(median));
    }
    let mut position = |id| book.placement(RequestId(id)).unwrap().position;
    assert_eq!((position(0), position(1), position(2)), (2, 1, 0));
    for expected in [2, 1, 0] {
        let (id, _) = book.next(at(1.0)).unwrap();
        assert_eq!(id, RequestId(expected));
        book.started(id);
        let known = book.explain(at(1.0), RequestId(0)).unwrap();
        assert_eq!(known.overtaken_by, 3 - expected.max(1));
        let eta = known.eta;
        assert!(eta.finish_s > eta.start_s && known.waited_s == 1.0, "{known:?}");
    }
    assert_eq!((book.next(at(1.0)), book.overtakes()), (None, 3));
}

#[test]
fn of_many_seats_whose_answers_nobody_predicts_one_is_likely_to_come_free_soon() {
    let likely_s = |median: Option<f32>| {
        let mut book = book(Fcfs, 20);
        (0..22).for_each(|id| submit(&mut book, id, 0.0, median));
        (0..20).for_each(|id| book.started(RequestId(id)));
        let service_s = book.placement(RequestId(0)).unwrap().eta.finish_s;
        let mut of = |id| {
            let start_s = book.placement(RequestId(id)).unwrap().eta.start_s;
            assert!((start_s / service_s - 1.0).abs() < 1e-6, "that is what is told, as ever");
            book.likely_start_s(RequestId(id)).unwrap() / service_s
        };
        [of(20), of(21)]
    };
    assert_eq!(likely_s(Some(100.0)), [1.0, 1.0], "all are thought to end together");
    let (first, second) = (1.0 / 20.0, 2.0 / 20.0);
    let told = likely_s(None);
    assert!((told[0] - first).abs() < 1e-6 && (told[1] - second).abs() < 1e-6, "{told:?}");
}

#[test]
fn a_request_waits_as_long_as_the_seats_ahead_of_it_need() {
    let mut book = book(Fcfs, 2);
    for id in 0..4 {
        submit(&mut book, id, 0.0, Some(100.0));
    }
    book.started(RequestId(0));
    book.started(RequestId(1));
    let eta = |book: &mut OrderBook, id| book.placement(RequestId(id)).unwrap().eta;
    let service_s = eta(&mut book, 0).finish_s;
    assert!((service_s - 1.046).abs() < 0.01, "a mean of 104.6 tokens of 10 ms: {service_s}");
    assert!((eta(&mut book, 2).start_s - service_s).abs() < 1e-9);
    assert!((book.drain_s() - 2.0 * service_s).abs() < 1e-3, "two each: {}", book.drain_s());
    book.set_seats(4);
    assert_eq!(eta(&mut book, 2).start_s, 0.0);
}

#[test]
fn a_tenant_that_goes_first_for_its_credit_is_told_so() {
    let mut book = book(Fcfs, 4);
    let submit = |book: &mut OrderBook, lane, ids: std::ops::Range<u64>| {
        for id in ids {
            let score = Score::new(100.0, 0.3).ok();
            book.submit_in(lane, at(0.0), Request::new(id, at(0.0), 10, 4000), score).unwrap();
        }
    };
    submit(&mut book, 0, 0..40);
    for _ in 0..20 {
        let (id, _) = book.next(at(0.0)).unwrap();
        book.started(id);
        book.ended(at(0.0), id, 100, End::Stopped);
    }
    submit(&mut book, 1, 100..102);
    let told = [100, 101].map(|id| book.placement(RequestId(id)).unwrap().position);
    let first = book.next(at(0.0)).unwrap().0;
    book.started(first);
    assert_eq!((told, first, book.next(at(0.0)).unwrap().0), ([0, 1], RequestId(100), RequestId(101)));
}

#[test]
fn a_class_puts_a_request_behind_arrivals_within_its_delay_and_no_others() {
    let mut book = book(Fcfs, 1);
    let batch = Request { delay_s: 10.0, ..Request::new(0, at(0.0), 10, 100) };
    book.submit(at(0.0), batch, None).unwrap();
    submit(&mut book, 1, 9.0, None);
    submit(&mut book, 2, 11.0, None);
    for expected in [1, 0, 2] {
        let (id, _) = book.next(at(12.0)).unwrap();
        assert_eq!(id, RequestId(expected));
        book.started(id);
    }
}

/// Serves what two tenants always have waiting, each request of `tokens`, and tells the share of tokens of the first.
fn share_of_first(tokens: [u32; 2], predicted: [f32; 2]) -> f64 {
    let mut book = book(Fcfs, 1);
    let (mut id, mut served) = (0, [0, 0]);
    let mut arrive = |book: &mut OrderBook, tenant: usize, now_s: f64| {
        let score = Score::new(predicted[tenant], 0.3).unwrap();
        book.submit_in(tenant, at(now_s), Request::new(id, at(now_s), 1, 4000), Some(score)).unwrap();
        id += 1;
    };
    (0..20).for_each(|_| (0..2).for_each(|tenant| arrive(&mut book, tenant, 0.0)));
    while served[0] + served[1] < 200_000 {
        let (next, _) = book.next(at(1.0)).unwrap();
        let tenant = book.entries[book.slots[&next]].lane;
        book.started(next);
        book.ended(at(1.0), next, tokens[tenant], End::Stopped);
        served[tenant] += tokens[tenant];
        arrive(&mut book, tenant, 1.0);
    }
    f64::from(served[0]) / f64::from(served[0] + served[1])
}

#[test]
fn a_tenant_gains_neither_by_splitting_its_work_nor_by_looking_short() {
    for (tokens, predicted) in
        [([500, 500], [500.0, 500.0]), ([50, 1000], [50.0, 1000.0]), ([1000, 500], [5.0, 500.0])]
    {
        let share = share_of_first(tokens, predicted);
        assert!((share - 0.5).abs() < 0.02, "{tokens:?} {predicted:?}: {share}");
    }
}

#[test]
fn a_request_that_is_given_back_its_place_costs_its_tenant_nothing() {
    let mut book = book(Fcfs, 1);
    for id in 0..2 {
        let score = Score::new(100.0, 0.3).unwrap();
        book.submit_in(id as usize, at(0.0), Request::new(id, at(0.0), 1, 4000), Some(score)).unwrap();
    }
    book.started(RequestId(0));
    book.paused(at(0.1), RequestId(0));
    assert_eq!(book.next(at(0.2)).unwrap().0, RequestId(0));
}
