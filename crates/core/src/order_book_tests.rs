use super::*;
use crate::policies::{Fcfs, Ltr, OracleSjf, Outrank, Sjf};

const COSTS: ServiceModel = ServiceModel { decode_s: 0.01, prefill_s: 1e-5 };

fn book(policy: impl Policy + 'static, seats: u32) -> OrderBook {
    OrderBook::new(Box::new(policy), seats, COSTS, 200.0, MonitorSettings::default()).unwrap()
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_secs_f64(seconds)
}

fn submit(book: &mut OrderBook, id: u64, now_s: f64, median: Option<f32>) {
    let score = median.map(|median| Score::new(median, 0.3).unwrap());
    book.submit(at(now_s), Request::new(id, at(now_s), 10, 4000), score).unwrap();
}

/// Ids by their last reported key.
fn order(book: &mut OrderBook, now_s: f64) -> Vec<u64> {
    let mut keys: Vec<(Key, u64)> = book.changed(at(now_s)).iter().map(|&(id, key)| (key, id.0)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, id)| id).collect()
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
    assert_eq!(book.waiting.first().unwrap().rank.number, 1);
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

#[test]
fn policies_that_need_the_seats_are_refused() {
    let new = |policy| OrderBook::new(policy, 1, COSTS, 200.0, MonitorSettings::default());
    assert_eq!(new(Box::<Ltr>::default()).unwrap_err(), UnsuitedPolicy("ltr"));
    assert!(new(Box::new(Fcfs)).is_ok() && new(Box::new(OracleSjf)).is_ok());
}
