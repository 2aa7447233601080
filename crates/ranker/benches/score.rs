//! Time to score a prompt, and to compare two orders.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use outrank_ranker::{Ranker, kendall_tau_b};

const SENTENCE: &str = "Please write a clear summary of the following report for the board, in at most 150 words, \
                        and list the three risks that matter most to customers this year. ";

/// A prompt of the given number of words, none of its sentences quite alike.
fn prompt(words: usize) -> String {
    let mut text = String::new();
    for (index, word) in SENTENCE.split_inclusive(' ').cycle().take(words).enumerate() {
        text.push_str(word);
        if index % 7 == 0 {
            text.push_str(&format!("{index}th "));
        }
    }
    text
}

fn score(criterion: &mut Criterion) {
    let ranker = Ranker::shipped();
    for words in [20, 200, 2000, 200_000] {
        let text = prompt(words * 7 / 8);
        criterion.bench_function(&format!("score {words} words"), |bench| {
            bench.iter(|| ranker.score(black_box(&text)));
        });
    }
}

fn tau(criterion: &mut Criterion) {
    let noise = |n: u32| f64::from(n.wrapping_mul(2_654_435_761) >> 12);
    let first: Vec<f64> = (0..10_000).map(|n| f64::from(n) * 30.0 + noise(n)).collect();
    let second: Vec<f64> = (0..10_000).map(|n| (f64::from(n) / 8.0).floor()).collect();
    criterion.bench_function("tau-b of 10,000 requests", |bench| {
        bench.iter(|| kendall_tau_b(black_box(&first), black_box(&second)));
    });
}

criterion_group!(benches, score, tau);
criterion_main!(benches);
