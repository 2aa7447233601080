//! Greedy output must not depend on who else is in the batch, how the prompt is cut, or whether the request was paused.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use common::{Answer, NewestFirst, ask, ask_all, engine, fcfs, prompts};
use outrank_engine::{GenerateRequest, SamplingParams, Token};

const TOKENS: u32 = 48;

fn greedy() -> SamplingParams {
    SamplingParams { ignore_eos: true, ..SamplingParams::greedy(TOKENS) }
}

/// The output of each prompt alone, prefilled whole.
fn alone(prompts: &[Vec<Token>]) -> Vec<Vec<Token>> {
    let engine = fcfs(|config| config.seats = 1);
    prompts.iter().map(|prompt| ask(&engine, prompt, greedy()).tokens).collect()
}

fn assert_same(expected: &[Vec<Token>], answers: &[Answer], how: &str) {
    for (index, (expected, answer)) in expected.iter().zip(answers).enumerate() {
        assert_eq!(answer.failure, None, "prompt {index} {how}");
        assert_eq!(answer.tokens.len(), TOKENS as usize, "prompt {index} {how}");
        assert_eq!(expected, &answer.tokens, "prompt {index} {how}");
    }
}

#[test]
fn batches_of_8_and_16_and_small_chunks_change_no_token() {
    let prompts = prompts();
    let expected = alone(&prompts);
    for (seats, chunk, how) in [
        (8, 32, "in batches of 8"),
        (16, 32, "in a batch of 16"),
        (16, 16, "in chunks of 16"),
        (5, 7, "in chunks of 7 on 5 seats"),
    ] {
        let engine = fcfs(|config| (config.seats, config.prefill_chunk_tokens) = (seats, chunk));
        assert_same(&expected, &ask_all(&engine, &prompts, &greedy()), how);
    }
}

#[test]
fn a_prompt_cut_into_chunks_of_16_gives_the_same_tokens() {
    let prompts = &prompts()[15..];
    // With step_tokens = 16 even a prompt alone is cut.
    let engine = fcfs(|config| (config.seats, config.step_tokens, config.prefill_chunk_tokens) = (1, 16, 16));
    assert_same(&alone(prompts), &ask_all(&engine, prompts, &greedy()), "in chunks of 16");
}

/// Four requests on two seats, each of which takes the seat of an older one.
fn preempted(max_swapped_blocks: u32) -> (Vec<Answer>, outrank_engine::EngineHandle) {
    let engine = engine(Box::new(NewestFirst), |config| {
        config.seats = 2;
        config.max_swapped_blocks = max_swapped_blocks;
        config.swap_s_per_token = 0.0;
    });
    let mut submissions = Vec::new();
    for prompt in &prompts()[..4] {
        let mut submission = engine.submit_blocking(GenerateRequest::new(prompt.clone(), greedy())).unwrap();
        // It must run before the next one comes, or nothing of it would have to be kept.
        let outputs: Vec<_> = (0..5).filter_map(|_| submission.next_blocking()).collect();
        submissions.push((outputs, submission));
    }
    let answers = submissions.into_iter().map(|(outputs, submission)| {
        let mut answer = common::read(submission);
        let first = outputs.iter().filter_map(|output| match output {
            outrank_engine::Output::Token { token, .. } => Some(*token),
            _ => None,
        });
        answer.tokens.splice(..0, first);
        answer
    });
    (answers.collect(), engine)
}

#[test]
fn a_request_that_was_swapped_out_goes_on_as_if_nothing_had_happened() {
    let (answers, engine) = preempted(10_000);
    assert_same(&alone(&prompts()[..4]), &answers, "after a swap");
    let stats = engine.stats();
    assert!(stats.swapped_out >= 2 && stats.swapped_in == stats.swapped_out, "{stats:?}");
    assert_eq!(stats.swapped_bytes, 0);
    assert_eq!(engine.counters().recomputed_tokens, 0);
    let preemptions = answers.iter().map(|answer| answer.end.unwrap().2.preemptions).sum::<u32>();
    assert_eq!(u64::from(preemptions), engine.counters().preemptions);
}

#[test]
fn a_request_that_is_recomputed_goes_on_as_if_nothing_had_happened() {
    let (answers, engine) = preempted(0);
    assert_same(&alone(&prompts()[..4]), &answers, "after a recomputation");
    assert_eq!(engine.stats().swapped_out, 0);
    let counters = engine.counters();
    let shortest = prompts()[..4].iter().map(Vec::len).min().unwrap() as u64;
    assert!(counters.preemptions >= 2, "{counters:?}");
    // Each time at least the prompt, and the token that showed that it ran.
    assert!(counters.recomputed_tokens > counters.preemptions * shortest, "{counters:?}");
}

#[test]
fn running_out_of_kv_pauses_requests_and_changes_no_token() {
    let prompts = prompts();
    // Room for two to three contexts of 512 / 16 = 32 blocks, and eight seats that want it.
    let engine = fcfs(|config| {
        (config.seats, config.kv_blocks, config.context_tokens) = (8, 33, 512);
        config.watermark_blocks = 1;
    });
    let answers = ask_all(&engine, &prompts, &greedy());
    assert_same(&alone(&prompts), &answers, "under memory pressure");
    assert_eq!(engine.counters().kv_used_blocks, 0, "nothing is held when nobody is left");
}

#[test]
fn seeded_draws_do_not_depend_on_the_batch() {
    let prompts = &prompts()[..8];
    let sampling = |seed| SamplingParams {
        seed: Some(seed),
        temperature: 0.9,
        top_p: 0.95,
        max_tokens: 32,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let single = fcfs(|config| config.seats = 1);
    let batch = fcfs(|config| config.seats = 8);
    let first = ask_all(&batch, prompts, &sampling(5));
    for (prompt, answer) in prompts.iter().zip(&first) {
        assert_eq!(ask(&single, prompt, sampling(5)).tokens, answer.tokens);
    }
    let other = ask_all(&batch, prompts, &sampling(6));
    assert!(first.iter().zip(&other).any(|(a, b)| a.tokens != b.tokens), "another seed draws otherwise");
}
