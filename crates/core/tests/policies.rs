//! What each policy does, and that `ltr` is the paper's Algorithm 1.
#![allow(missing_docs)]

mod support;

use outrank_core::policies::{Boost, Class, Hrrn, Ltr, Mlfq, Outrank, Po, PolicySettings, Tie, by_name};
use outrank_core::{Capacity, Event, Policy, Request, RequestId, Scheduler, Score, State, Timestamp};
use proptest::prelude::*;
use support::{Host, Job, capacity, config, policy};

fn job(arrival_ms: u64, output_tokens: u32) -> Job {
    Job { arrival_ms, prompt_tokens: 1, output_tokens, predicted: Some(output_tokens as f32) }
}

/// Order in which jobs finish.
fn finishing_order(name: &str, jobs: Vec<Job>, seats: u32) -> Vec<usize> {
    finishing_order_under(policy(name), jobs, seats)
}

fn finishing_order_under(policy: Box<dyn Policy>, jobs: Vec<Job>, seats: u32) -> Vec<usize> {
    let (outcomes, ..) = Host::new(config(capacity(seats, 200), 100), policy, jobs).run();
    let mut order: Vec<usize> = (0..outcomes.len()).collect();
    order.sort_by_key(|&i| (outcomes[i].finished_ms, i));
    order
}

#[test]
fn fcfs_serves_in_order_of_arrival_and_the_others_let_short_ones_pass() {
    let jobs = || vec![job(0, 40), job(1, 30), job(2, 2), job(3, 10)];
    assert_eq!(finishing_order("fcfs", jobs(), 1), [0, 1, 2, 3]);
    assert_eq!(finishing_order("oracle-sjf", jobs(), 1), [0, 2, 3, 1], "the first keeps its seat");
    assert_eq!(finishing_order("oracle-srtf", jobs(), 1), [2, 3, 1, 0], "the first loses its seat");
    assert_eq!(finishing_order("ltr", jobs(), 1), [2, 3, 1, 0]);
    assert_eq!(finishing_order("sjf", jobs(), 1), [0, 2, 3, 1]);
    assert_eq!(finishing_order("outrank", jobs(), 1), [0, 2, 3, 1], "too little to gain for a switch");
    let long_first = vec![job(0, 2000), job(1, 3)];
    assert_eq!(finishing_order("outrank", long_first, 1), [1, 0], "much to gain");
}

#[test]
fn requests_without_score_keep_the_order_of_arrival() {
    let unscored = |arrival_ms, output_tokens| Job { predicted: None, ..job(arrival_ms, output_tokens) };
    for name in ["outrank", "ltr", "fcfs", "sjf", "class", "po", "hrrn", "tie"] {
        let jobs = vec![unscored(0, 30), unscored(5, 3), unscored(6, 20), unscored(7, 1)];
        assert_eq!(finishing_order(name, jobs, 1), [0, 1, 2, 3], "{name}");
    }
}

#[test]
fn requests_without_score_keep_their_order_whatever_is_measured_meanwhile() {
    let jobs =
        |n: u64| (0..n).map(|i| Job { predicted: None, ..job(i * 150, 1 + (i * 7 % 40) as u32) }).collect();
    // Starvation prevention, which changes the order by design, is out of reach.
    let threshold_steps = 1_000_000;
    let patient = PolicySettings {
        ltr: Ltr { threshold_steps, ..Ltr::default() },
        class: Class { threshold_steps, ..Class::default() },
        po: Po { threshold_steps, ..Po::default() },
        ..PolicySettings::default()
    };
    for name in ["outrank", "ltr", "class", "po", "hrrn", "tie"] {
        for (decode_s, unscored_tokens) in [(0.2, 500.0), (0.0001, 1.0)] {
            let mut wrong = config(capacity(1, 200), 100);
            (wrong.service.decode_s, wrong.unscored_tokens) = (decode_s, unscored_tokens);
            let (outcomes, _, counters) = Host::new(wrong, by_name(name, &patient).unwrap(), jobs(60)).run();
            assert!(outcomes.is_sorted_by_key(|outcome| outcome.finished_ms), "{name} from {decode_s} s");
            assert_eq!(counters.preemptions, 0, "{name} from {decode_s} s");
        }
    }
}

#[test]
fn classes_order_by_class_and_within_a_class_by_arrival() {
    // Starvation prevention is out of reach.
    let of_width = |width_tokens| -> Box<dyn Policy> {
        Box::new(Class { width_tokens, threshold_steps: 100_000, ..Class::default() })
    };
    let jobs = || vec![job(0, 5), job(0, 900), job(0, 820), job(0, 700), job(0, 30)];
    assert_eq!(finishing_order_under(of_width(820.0), jobs(), 1), [0, 3, 4, 1, 2]);
    assert_eq!(finishing_order_under(of_width(10.0), jobs(), 1), [0, 4, 3, 2, 1]);
    assert_eq!(finishing_order_under(of_width(10.0), vec![job(0, 40), job(10, 5)], 1), [1, 0], "it preempts");
    assert_eq!(finishing_order_under(of_width(820.0), vec![job(0, 40), job(10, 5)], 1), [0, 1]);
}

#[test]
fn perception_lets_everyone_run_before_it_tells_the_short_from_the_long() {
    let jobs = vec![job(0, 30), job(100, 200), job(100, 20), job(100, 10)];
    let (_, batches, counters) = Host::new(config(capacity(1, 200), 100), policy("po"), jobs).run();
    let runs: Vec<(u64, usize)> = batches.chunk_by(|a, b| a == b).map(|run| (run[0][0], run.len())).collect();
    // The first, perceived by 150 ms, would go on for 15 tokens; each newcomer takes its seat to be perceived.
    assert_eq!(runs, [(0, 15), (1, 15), (2, 15), (3, 10), (2, 5), (0, 15), (1, 185)]);
    assert_eq!(counters.preemptions, 3);
}

#[test]
fn feedback_lets_newcomers_pass_those_who_have_had_more_and_brings_the_starving_back() {
    let jobs = || {
        let short = (0..60).map(|i| job(100 + 30 * i, 3));
        std::iter::once(job(0, 60)).chain(short).collect::<Vec<_>>()
    };
    let patient = Mlfq { threshold_steps: 100_000, ..Mlfq::default() };
    let (outcomes, _, counters) = Host::new(config(capacity(1, 200), 100), Box::new(patient), jobs()).run();
    assert!(
        (1..=60).all(|i| outcomes[i].finished_ms < outcomes[0].finished_ms),
        "the long one waits for all"
    );
    assert_eq!((counters.preemptions, counters.promotions), (1, 0));

    let caring = Mlfq { threshold_steps: 20, ..Mlfq::default() };
    let (outcomes, _, counters) = Host::new(config(capacity(1, 200), 100), Box::new(caring), jobs()).run();
    assert!(counters.promotions > 3, "{counters:?}");
    assert!(outcomes[60].finished_ms > 100 + 30 * 59 + 30, "the newcomers pay for it");
}

#[test]
fn the_response_ratio_of_those_who_wait_is_taken_anew() {
    // A seat is free at 3 s. The second has waited for 3 s and asks for 2 s, the third has just come and asks for 0.2 s.
    let jobs = || vec![job(0, 300), job(10, 200), job(2900, 20)];
    assert_eq!(finishing_order("hrrn", jobs(), 1), [0, 1, 2]);
    assert_eq!(finishing_order("oracle-sjf", jobs(), 1), [0, 2, 1]);
    // Had the third waited for long enough to overtake it in ratio, it would go first.
    let jobs = || vec![job(0, 300), job(10, 200), job(2500, 20)];
    assert_eq!(finishing_order("hrrn", jobs(), 1), [0, 2, 1]);
    let stale = Box::new(Hrrn { rekey_interval_s: 1e9 });
    assert_eq!(finishing_order_under(stale, jobs(), 1), [0, 1, 2], "keys of the arrival are all equal");
}

#[test]
fn waiting_makes_up_for_length_under_tie() {
    let jobs = |gap_ms| vec![job(0, 100), job(10, 60), job(gap_ms, 55)];
    assert_eq!(finishing_order("tie", jobs(500), 1), [0, 2, 1]);
    let impatient =
        PolicySettings { tie: Tie { decay_interval_s: 0.5, ..Tie::default() }, ..PolicySettings::default() };
    assert_eq!(finishing_order_under(by_name("tie", &impatient).unwrap(), jobs(500), 1), [0, 1, 2]);
}

#[test]
fn work_done_costs_the_boost_and_with_it_the_seat() {
    // The first has had 10 s of service when the second comes.
    assert_eq!(finishing_order("boost", vec![job(0, 1500), job(10_000, 5)], 1), [1, 0]);
    assert_eq!(finishing_order("boost", vec![job(0, 1500), job(50, 5)], 1), [1, 0], "little by little");
    let long_prompt = Job { prompt_tokens: 2000, ..job(0, 5) };
    let seated = Boost { max_preemptions_per_step: 0, ..Boost::default() };
    let jobs = vec![job(0, 30), long_prompt, job(50, 5)];
    assert_eq!(finishing_order_under(Box::new(seated), jobs, 1), [0, 2, 1], "short prompts go first");
}

#[test]
fn a_long_prefill_keeps_nobody_from_a_seat_that_was_cleared_for_it() {
    // The second fills every step's prefill budget for 60 steps; the third displaces the first, which must not come
    // back before it.
    let long_prompt = Job { prompt_tokens: 2000, ..job(30, 30) };
    let jobs = || vec![job(0, 3000), long_prompt, Job { prompt_tokens: 40, ..job(100, 5) }];
    for name in ["outrank", "ltr", "oracle-srtf"] {
        let (outcomes, _, counters) = Host::new(config(capacity(2, 400), 1000), policy(name), jobs()).run();
        assert_eq!(counters.preemptions, 1, "{name}");
        assert!(outcomes[2].finished_ms < 300, "{name}: {outcomes:?}");
    }
}

#[test]
fn whoever_would_only_wait_on_a_seat_can_still_be_overtaken() {
    // Ten prompts for ten seats, of which a step takes one; a short request comes when three of them have begun.
    let long = |at: u64| Job { prompt_tokens: 100, ..job(at, 200) };
    let mut jobs: Vec<Job> = (0..10).map(long).collect();
    jobs.push(Job { prompt_tokens: 100, ..job(25, 2) });
    let wide = Capacity { step_tokens: 110, prefill_chunk_tokens: 100, ..capacity(10, 400) };
    for name in ["outrank", "sjf", "oracle-sjf"] {
        let (outcomes, ..) = Host::new(config(wide, 0), policy(name), jobs.clone()).run();
        assert!(outcomes[10].finished_ms < 100, "{name}: the seats were taken: {outcomes:?}");
    }
}

#[test]
fn a_request_that_outlives_its_prediction_falls_back_behind_short_ones_under_outrank() {
    let jobs = vec![Job { predicted: Some(2.0), ..job(0, 400) }, job(0, 5), job(0, 5)];
    let eager = Outrank { min_gain_services: 0.01, ..Outrank::default() };
    let (outcomes, ..) = Host::new(config(capacity(1, 200), 100), Box::new(eager), jobs).run();
    assert!(outcomes[1].finished_ms < outcomes[0].finished_ms && outcomes[1].finished_ms > 20);
}

#[test]
fn a_running_request_is_the_harder_to_displace_the_further_it_is() {
    let late_at = |arrival_ms| finishing_order("outrank", vec![job(0, 1500), job(arrival_ms, 20)], 1);
    assert_eq!(late_at(50), [1, 0], "much is left of the first");
    assert_eq!(late_at(14_000), [0, 1], "the first is nearly done");
}

#[test]
fn a_late_score_moves_a_waiting_request_and_its_explanation_says_so() {
    let mut scheduler = Scheduler::new(config(capacity(1, 100), 0), policy("outrank")).unwrap();
    for id in 0..3 {
        scheduler.submit(Timestamp::ZERO, Request::new(id, Timestamp::ZERO, 5, 200), None).unwrap();
    }
    scheduler.plan(Timestamp::ZERO);
    let now = Timestamp::from_secs_f64(0.5);
    assert_eq!(scheduler.explain(now, RequestId(2)).unwrap().position, 1);
    scheduler.observe(now, Event::Scored(RequestId(2), Score::new(3.0, 0.3).unwrap()));
    let told = scheduler.explain(now, RequestId(2)).unwrap();
    assert_eq!((told.position, told.state, told.waited_s), (0, State::Waiting, 0.5));
    assert!(told.why.contains("3 tokens predicted"), "{}", told.why);
    assert!(told.eta.finish_s > told.eta.start_s);
    assert!(scheduler.explain(now, RequestId(9)).is_none());
}

#[test]
fn who_was_overtaken_and_by_how_many_is_told() {
    let mut scheduler = Scheduler::new(config(capacity(1, 100), 0), policy("oracle-sjf")).unwrap();
    for (id, length) in [(0, 9), (1, 100), (2, 5), (3, 7)] {
        let mut request = Request::new(id, Timestamp::ZERO, 1, 100);
        request.true_tokens = Some(length);
        scheduler.submit(Timestamp::ZERO, request, None).unwrap();
    }
    for expected in [2, 3] {
        assert_eq!(scheduler.plan(Timestamp::ZERO).batch[0].id, RequestId(expected));
        scheduler.observe(Timestamp::ZERO, Event::Finished(RequestId(expected)));
    }
    assert_eq!(scheduler.explain(Timestamp::ZERO, RequestId(1)).unwrap().overtaken_by, 2);
    assert_eq!(scheduler.counters().overtakes, 0, "counted when the overtaken one starts");
    scheduler.plan(Timestamp::ZERO);
    assert_eq!(scheduler.counters().overtakes, 2);
}

/// Algorithm 1 of the paper, as obviously as it can be written: prompts of one token, no memory limit.
fn algorithm_1(jobs: &[Job], seats: usize, threshold: u64, quantum: i64) -> Vec<Vec<u64>> {
    struct Row {
        id: u64,
        left: u32,
        starved: u64,
        promoted: bool,
        quantum: i64,
    }
    let (mut queue, mut batches, mut arrived) = (Vec::<Row>::new(), Vec::new(), 0);
    while arrived < jobs.len() || !queue.is_empty() {
        let now_ms = batches.len() as u64 * 10;
        while arrived < jobs.len() && jobs[arrived].arrival_ms <= now_ms {
            let left = jobs[arrived].output_tokens;
            queue.push(Row { id: arrived as u64, left, starved: 0, promoted: false, quantum: 0 });
            arrived += 1;
        }
        queue.sort_by(|a, b| {
            let score = |row: &Row| jobs[row.id as usize].predicted.unwrap_or(50.0);
            b.promoted.cmp(&a.promoted).then(score(a).total_cmp(&score(b))).then(a.id.cmp(&b.id))
        });
        let batch = queue.len().min(seats);
        for (place, row) in queue.iter_mut().enumerate() {
            if place < batch {
                row.starved = 0;
                row.quantum -= i64::from(row.promoted);
                row.left -= 1;
            } else {
                row.starved += 1;
            }
            if row.starved >= threshold {
                (row.promoted, row.starved, row.quantum) = (true, 0, quantum);
            } else if row.promoted && row.quantum <= 0 {
                row.promoted = false;
            }
        }
        let mut ids: Vec<u64> = queue[..batch].iter().map(|row| row.id).collect();
        ids.sort_unstable();
        batches.push(ids);
        queue.retain(|row| row.left > 0);
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn ltr_runs_exactly_the_batches_of_algorithm_1(
        drawn in prop::collection::vec((0u64..25, 1u32..40, 1u32..60), 1..50),
        seats in 1u32..5, threshold_steps in 1u64..30, quantum_steps in 1u32..6,
    ) {
        let mut arrival_ms = 0;
        let jobs: Vec<Job> = drawn.into_iter().map(|(gap_ms, output_tokens, predicted)| {
            arrival_ms += gap_ms;
            Job { arrival_ms, prompt_tokens: 1, output_tokens, predicted: Some(predicted as f32) }
        }).collect();
        let mut ample = capacity(seats, 2000);
        (ample.step_tokens, ample.prefill_chunk_tokens) = (10_000, 10_000);
        let ltr = Box::new(Ltr { threshold_steps, quantum_steps });
        let (_, mut batches, _) = Host::new(config(ample, 100_000), ltr, jobs.clone()).run();
        batches.iter_mut().for_each(|batch| batch.sort_unstable());
        let expected = algorithm_1(&jobs, seats as usize, threshold_steps, i64::from(quantum_steps));
        prop_assert_eq!(batches, expected);
    }
}
