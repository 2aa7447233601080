//! The simulator against an obvious scheduler, and what must hold for any traffic.
#![allow(missing_docs, clippy::unwrap_used)]

use outrank_core::policies::{NAMES, PolicySettings, by_name};
use outrank_core::{MonitorSettings, Score};
use outrank_sim::{Answer, Composition, Job, Profile, Scoring, SimError, Simulation, Totals};
use proptest::prelude::*;

fn profile(seats: u32) -> Profile {
    Profile::load("h200-llama3-8b").unwrap().with_seats(seats).unwrap()
}

fn simulate(profile: &Profile, policy: &str, scoring: Scoring, jobs: &[Job]) -> (Vec<Answer>, Totals) {
    let policy = by_name(policy, &PolicySettings::default()).unwrap();
    let mut answers = Vec::new();
    let simulation = Simulation::new(profile, policy, scoring, MonitorSettings::default()).unwrap();
    let totals = simulation.run(jobs.iter().copied(), |answer| answers.push(answer)).unwrap();
    answers.sort_by_key(|answer| answer.index);
    (answers, totals)
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let job = (0.0f64..0.3, 1u32..300, 1u32..120, 1.0f32..200.0);
    prop::collection::vec(job, 1..80).prop_map(|drawn| {
        let mut arrival_s = 0.0;
        let job = |(gap_s, prompt_tokens, output_tokens, predicted)| {
            arrival_s += gap_s;
            let score = Score::new(predicted, 0.6).ok();
            // Whole microseconds, as the clock counts.
            let arrival_s = f64::round(arrival_s * 1e6) / 1e6;
            Job { arrival_s, prompt_tokens, output_tokens, max_tokens: None, score }
        };
        drawn.into_iter().map(job).collect()
    })
}

/// What fcfs, sjf and oracle-sjf mean where memory is ample and every prompt fits a step: in each step whoever has a
/// seat gets a token, and free seats go to the least key. Returns (first token, last token) of each job in seconds.
fn naive(profile: &Profile, jobs: &[Job], key: impl Fn(&Job) -> f64) -> Vec<(f64, f64)> {
    let micros = |s: f64| (s * 1e6).round() as u64;
    let mut times = vec![(0, 0); jobs.len()];
    let (mut now, mut next, mut waiting, mut running) = (0u64, 0, Vec::new(), Vec::<(usize, u32)>::new());
    while next < jobs.len() || !waiting.is_empty() || !running.is_empty() {
        if waiting.is_empty() && running.is_empty() {
            now = now.max(micros(jobs[next].arrival_s));
        }
        while next < jobs.len() && micros(jobs[next].arrival_s) <= now {
            waiting.push(next);
            next += 1;
        }
        waiting.sort_by(|&a, &b| key(&jobs[a]).total_cmp(&key(&jobs[b])).then(a.cmp(&b)));
        let free = (profile.capacity.seats as usize - running.len()).min(waiting.len());
        running.extend(waiting.drain(..free).map(|job| (job, 0)));
        let mut step = Composition::default();
        for &(job, generated) in &running {
            let prompt = jobs[job].prompt_tokens;
            let prefills = generated == 0 && prompt > 1;
            step.prefill_tokens += if prefills { prompt } else { 0 };
            step.decode_seqs += u32::from(!prefills);
            step.context_tokens += u64::from(prompt + generated);
        }
        now += micros(profile.step.seconds(&step));
        for (job, generated) in &mut running {
            *generated += 1;
            if *generated == 1 {
                times[*job].0 = now;
            }
            times[*job].1 = now;
        }
        running.retain(|&(job, generated)| generated < jobs[job].output_tokens);
    }
    times.into_iter().map(|(first, last)| (first as f64 / 1e6, last as f64 / 1e6)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn it_agrees_with_the_obvious_scheduler(jobs in jobs(), seats in 1u32..6) {
        let profile = profile(seats);
        type SortKey = fn(&Job) -> f64;
        let keys: [(&str, SortKey); 3] = [
            ("fcfs", |job| job.arrival_s),
            ("sjf", |job| f64::from(job.score.unwrap().median_tokens())),
            ("oracle-sjf", |job| f64::from(job.output_tokens)),
        ];
        for (policy, key) in keys {
            let (answers, _) = simulate(&profile, policy, Scoring::default(), &jobs);
            for (answer, (first_s, last_s)) in answers.iter().zip(naive(&profile, &jobs, key)) {
                let at = |s: f64| s + answer.arrival_s;
                prop_assert!((at(answer.ttft_s) - first_s).abs() < 1e-4, "{} {:?} {}", policy, answer, first_s);
                prop_assert!((at(answer.e2e_s) - last_s).abs() < 1e-4, "{} {:?} {}", policy, answer, last_s);
            }
        }
    }

    #[test]
    fn every_request_is_answered_once_whatever_the_policy_and_the_scorer(
        jobs in jobs(), seats in 1u32..9, request_s in 0.0f64..0.05, blocking: bool,
    ) {
        let profile = profile(seats);
        for policy in NAMES {
            let (answers, totals) = simulate(&profile, policy, Scoring { request_s, blocking }, &jobs);
            prop_assert!(answers.iter().enumerate().all(|(index, answer)| answer.index == index));
            prop_assert_eq!(answers.len(), jobs.len());
            prop_assert!(answers.iter().all(|it| it.ttft_s > 0.0 && it.e2e_s >= it.ttft_s));
            prop_assert!(totals.busy_s <= totals.duration_s + 1e-6 && totals.counters.running == 0);
        }
    }

    #[test]
    fn the_same_traffic_gives_the_same_answers_to_the_bit(jobs in jobs(), seats in 1u32..6) {
        let profile = profile(seats);
        for policy in NAMES {
            let run = || simulate(&profile, policy, Scoring::default(), &jobs);
            prop_assert_eq!(run(), run());
        }
    }
}

#[test]
fn requests_out_of_order_and_beyond_the_context_are_named() {
    let job = |arrival_s, output_tokens| Job {
        arrival_s,
        prompt_tokens: 10,
        output_tokens,
        max_tokens: None,
        score: None,
    };
    let profile = profile(4);
    let run = |jobs: &[Job]| {
        let policy = by_name("fcfs", &PolicySettings::default()).unwrap();
        let simulation =
            Simulation::new(&profile, policy, Scoring::default(), MonitorSettings::default()).unwrap();
        simulation.run(jobs.iter().copied(), |_| {}).unwrap_err()
    };
    assert!(matches!(run(&[job(1.0, 5), job(0.5, 5)]), SimError::Unsorted { index: 1 }));
    assert!(matches!(run(&[job(0.0, 1_000_000)]), SimError::Refused { index: 0, .. }));
}

#[test]
fn a_scorer_that_blocks_delays_everyone_and_one_beside_the_engine_nobody() {
    let profile = profile(8);
    let job = |n: u32| Job {
        arrival_s: f64::from(n),
        prompt_tokens: 50,
        output_tokens: 20,
        max_tokens: None,
        score: Score::new(20.0, 0.5).ok(),
    };
    let jobs: Vec<Job> = (0..50).map(job).collect();
    let mean_s = |scoring| {
        let (answers, _) = simulate(&profile, "outrank", scoring, &jobs);
        answers.iter().map(|answer| answer.e2e_s).sum::<f64>() / answers.len() as f64
    };
    let free = mean_s(Scoring::default());
    let beside = mean_s(Scoring { request_s: 0.007, blocking: false });
    let blocking = mean_s(Scoring { request_s: 0.007, blocking: true });
    assert!(
        (beside - free).abs() < 1e-9 && (blocking - free - 0.007).abs() < 1e-6,
        "{free} {beside} {blocking}"
    );
}
