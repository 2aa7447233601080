//! What a sequence computes must not depend, to the last bit, on who else is in the batch and on how it was cut: the
//! reason for which greedy output is the same alone, batched, chunked and after a pause.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use common::model;
use outrank_engine::{BatchSlice, Executor, ExecutorConfig, Token};

/// Beyond 512 tokens llama.cpp splits the attention of a lone sequence between threads, if it is let.
const PROMPT_TOKENS: usize = 540;
const STEPS: usize = 4;

fn text(tokens: usize, start: usize) -> Vec<Token> {
    let text =
        "The ship left the harbour at dawn, and nobody on the quay knew where it was bound. ".repeat(60);
    model().tokenize(&text, true, false)[start..start + tokens].to_vec()
}

fn executor(threads: u32) -> Executor<'static> {
    // The model lives as long as the test process.
    let model: &'static _ = Box::leak(Box::new(model()));
    let config = ExecutorConfig { seats: 4, context_tokens: 1024, step_tokens: 768, threads };
    Executor::new(model, config).unwrap()
}

/// Logits after the prompt and after each of a few more tokens, the prompt cut into pieces of `chunk` tokens, while
/// `beside` other sequences decode.
fn logits(executor: &mut Executor<'_>, chunk: usize, beside: u32) -> Vec<Vec<f32>> {
    let sequence = text(PROMPT_TOKENS + STEPS, 0);
    let (prompt, rest) = sequence.split_at(PROMPT_TOKENS);
    let other = text(400, 11);
    let seat = beside / 2;
    let others: Vec<u32> = (0..=beside).filter(|&other| other != seat).collect();
    for &other_seat in &others {
        let slice = BatchSlice { seat: other_seat, start: 0, tokens: &other[..20], samples: false };
        assert_eq!(executor.decode(&[slice], |_, _| {}), []);
    }
    let mut all = Vec::new();
    let mut at = 0;
    let pieces = prompt.chunks(chunk).chain(rest.chunks(1));
    for (step, tokens) in pieces.enumerate() {
        let mut slices = vec![BatchSlice { seat, start: at, tokens, samples: true }];
        at += tokens.len() as u32;
        slices.extend(others.iter().map(|&seat| {
            let start = 20 + step;
            BatchSlice { seat, start: start as u32, tokens: &other[start..=start], samples: true }
        }));
        let failures = executor.decode(&slices, |index, logits| {
            if index == 0 && at as usize >= PROMPT_TOKENS {
                all.push(logits.to_vec());
            }
        });
        assert_eq!(failures, []);
    }
    (0..=beside).for_each(|seat| executor.clear(seat).unwrap());
    all
}

#[test]
fn logits_are_the_same_to_the_bit_however_the_work_is_cut_and_shared() {
    let mut executor = executor(2);
    let whole = logits(&mut executor, PROMPT_TOKENS, 0);
    assert_eq!(whole.len(), 1 + STEPS);
    for (chunk, beside) in
        [(PROMPT_TOKENS, 0), (256, 0), (32, 0), (16, 3), (63, 1), (7, 3), (PROMPT_TOKENS, 3)]
    {
        let other = logits(&mut executor, chunk, beside);
        let differs = whole.iter().zip(&other).position(|(a, b)| a != b);
        assert_eq!(differs, None, "in pieces of {chunk} beside {beside} others, from this step on");
        assert_eq!(whole.len(), other.len());
    }
}
