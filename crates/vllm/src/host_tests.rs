use std::time::{Duration, Instant};

use super::*;

fn host(settings: &str) -> Host {
    Host::new(&Settings::parse(settings).unwrap(), 2).unwrap()
}

fn arrival(number: u64, true_tokens: Option<u32>) -> Arrival {
    Arrival { number, prompt_tokens: 8, max_tokens: 900, true_tokens, limit_is_recorded: false }
}

/// Priorities once so many scores have come.
fn when_scored(host: &mut Host, scores: u64) -> Vec<(u64, i64)> {
    let started = Instant::now();
    let mut changed = Vec::new();
    while host.status().scored < scores {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", host.status());
        changed.extend(host.changed(1.0));
        std::thread::sleep(Duration::from_millis(1));
    }
    changed
}

#[test]
fn a_request_goes_by_arrival_until_its_score_comes() {
    let mut host = host(r#"{"policy": "sjf"}"#);
    let unscored = host.submit(0.0, &arrival(1, None)).unwrap();
    assert_eq!(host.submit(0.1, &arrival(2, None)), Some(unscored));
    assert_eq!(host.submit(0.1, &arrival(2, None)), None, "a number is used once");
    host.score(1, "Write a very long story of 2000 words about the sea.".into());
    host.score(2, "Answer yes or no: is 7 prime?".into());
    let changed = when_scored(&mut host, 2);
    let priority = |number| changed.iter().rfind(|it| it.0 == number).unwrap().1;
    assert!(priority(2) < priority(1), "{changed:?}");
}

#[test]
fn the_oracle_reads_the_true_length_and_nothing_else_does() {
    let mut oracle = host(r#"{"policy": "oracle-sjf"}"#);
    let long = oracle.submit(0.0, &arrival(1, Some(500)));
    assert!(oracle.submit(0.1, &arrival(2, Some(5))) < long);
    let mut plain = host("{}");
    let (a, b) = (plain.submit(0.0, &arrival(1, Some(500))), plain.submit(0.0, &arrival(2, Some(5))));
    assert_eq!(a, b);
}

#[test]
fn a_ranker_is_learned_from_nothing_and_scores_those_who_wait() {
    let mut host = host(r#"{"ranker": "none", "policy": "sjf"}"#);
    let prompt =
        |number: u64| format!("Item {number}: {} it, please.", ["glorp", "zindle"][(number % 2) as usize]);
    host.submit(0.0, &arrival(1000, None));
    host.score(1000, prompt(1000));
    let started = Instant::now();
    for number in 0.. {
        host.submit(0.0, &arrival(number, None));
        host.score(number, prompt(number));
        let tokens = 20 + 600 * (number % 2) as u32 + (number % 7) as u32;
        host.ended(0.1, number, tokens, End::Stopped);
        host.changed(0.2);
        if number > 60 {
            std::thread::sleep(Duration::from_millis(2));
        }
        if host.status().learned > 0 {
            break;
        }
        assert!(number < 999 && started.elapsed() < Duration::from_secs(60), "nothing was learned");
    }
    when_scored(&mut host, 1);
    assert!(host.status().learned_tau_b.unwrap() > 0.4, "{:?}", host.status());
}

#[test]
fn nothing_is_learned_from_those_who_gave_up() {
    let mut host = host(r#"{"ranker": "none"}"#);
    for number in 0..200 {
        host.submit(0.0, &arrival(number, None));
        host.score(number, format!("glorp {number}"));
        host.ended(0.1, number, 30, End::Aborted);
    }
    std::thread::sleep(Duration::from_millis(200));
    host.changed(1.0);
    assert_eq!((host.status().learned, host.status().waiting), (0, 0));
}

#[test]
fn a_request_that_runs_keeps_its_priority_when_its_score_comes_late() {
    let mut host = host(r#"{"policy": "sjf"}"#);
    for number in 1..=2 {
        host.submit(0.0, &arrival(number, None)).unwrap();
    }
    host.started(1);
    (1..=2).for_each(|number| host.score(number, "Answer yes or no: is 7 prime?".into()));
    let changed = when_scored(&mut host, 2);
    assert!(changed.iter().all(|it| it.0 == 2) && !changed.is_empty(), "{changed:?}");
    assert!(host.paused(1.0, 1).is_some(), "it has one again when it loses its seat");
    assert_eq!(host.paused(1.0, 1), None, "a seat is lost once");
}

#[test]
fn steps_are_measured_from_output_to_output_unless_nothing_ran_between() {
    let mut host = host("{}");
    let first_guess_s = host.status().decode_s;
    host.measured(0.0, 0, 4, true);
    assert_eq!(host.status().decode_s, first_guess_s, "the first output says nothing");
    (1..=400).for_each(|step| host.measured(f64::from(step) * 0.1, 0, 4, true));
    assert!((host.status().decode_s - 0.1).abs() < 0.01, "{:?}", host.status());
    host.measured(40.1, 0, 4, false);
    let before_s = host.status().decode_s;
    host.measured(100.0, 0, 4, true);
    assert_eq!(host.status().decode_s, before_s, "an idle minute is no step");
}

#[test]
fn tokens_are_reported_every_few_steps_while_somebody_waits_and_in_each_if_the_policy_reads_them() {
    let due = |settings: &str, waiting: u64| {
        let mut host = host(settings);
        (0..waiting).for_each(|number| assert!(host.submit(0.0, &arrival(number, None)).is_some()));
        (0..128).filter(|_| host.reports_due()).count()
    };
    assert_eq!((due("{}", 1), due("{}", 0)), (16, 2));
    assert_eq!((due(r#"{"policy": "ltr"}"#, 1), due(r#"{"policy": "ltr"}"#, 0)), (128, 128));
}

#[test]
fn those_who_run_count_when_it_learns() {
    // Fifty-five requests ended after 20 to 90 tokens; of thirty like them each has 500 by now, unless they have gone.
    let predicted = |run: bool| {
        let mut host = host(r#"{"policy": "sjf"}"#);
        let prompt = |number: u64| {
            format!("Item {number}: {} it, please.", ["glorp", "zindle"][(number % 2) as usize])
        };
        for number in 0..85 {
            host.submit(0.0, &arrival(number, None));
            host.score(number, prompt(number));
            host.started(number);
        }
        when_scored(&mut host, 85);
        for number in 55..85 {
            host.generated(number, 500);
            if !run {
                host.ended(0.1, number, 500, End::Aborted);
            }
        }
        for number in 0..55 {
            let tokens = 20 + 60 * (number % 2) as u32 + (number % 7) as u32;
            host.ended(0.1, number, tokens, End::Stopped);
        }
        let started = Instant::now();
        let mut next = (100..).step_by(2);
        let mut learned = false;
        loop {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}", host.status());
            // What was learned is taken over with the next job; who comes after that is scored by it.
            let number = next.next().unwrap();
            host.submit(0.2, &arrival(number, None));
            host.score(number, prompt(number));
            std::thread::sleep(Duration::from_millis(5));
            let changed = host.changed(0.3);
            if learned && let Some(&(_, rank)) = changed.iter().find(|&&(id, _)| id == number) {
                return rank;
            }
            learned = host.status().learned > 0;
        }
    };
    let (beside, alone) = (predicted(true), predicted(false));
    assert!(10 * beside > 12 * alone, "{beside} {alone}");
}
