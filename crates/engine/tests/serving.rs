//! What a client sees: text, stop strings, limits, cancellation, errors.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{ask, chat, engine, fcfs, model, read};
use outrank_core::Score;
use outrank_engine::{FinishReason, GenerateRequest, Output, SamplingParams, SubmitError};

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams::greedy(max_tokens)
}

/// Waits until `holds`, for at most 10 s.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_capital_of_france_is_paris() {
    let answer = ask(&fcfs(|_| {}), &chat("What is the capital of France?"), greedy(64));
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    let (reason, usage, timings) = answer.end.unwrap();
    assert_eq!(reason, FinishReason::Stop, "it ends by itself");
    assert_eq!(usage.output_tokens as usize, answer.tokens.len());
    assert!(model().is_eog(*answer.tokens.last().unwrap()));
    assert!(timings.queue_s <= timings.ttft_s && timings.ttft_s <= timings.e2e_s, "{timings:?}");
    assert!(!answer.text.contains("<|im_end|>"), "control tokens print nothing");
}

#[test]
fn the_streamed_text_is_the_detokenised_output() {
    // Characters that SmolLM2 splits into several tokens.
    let prompt =
        model().tokenize("Repeat: 日本語 😀 🎉 naïve Ω 日本語 😀 🎉 naïve Ω 日本語 😀 🎉 naïve", true, false);
    let engine = fcfs(|_| {});
    let mut split = 0;
    for seed in 0..4 {
        let sampling = SamplingParams {
            max_tokens: 48,
            seed: Some(seed),
            temperature: 0.7,
            ..SamplingParams::default()
        };
        let mut submission = engine.submit_blocking(GenerateRequest::new(prompt.clone(), sampling)).unwrap();
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(output) = submission.next_blocking() {
            if let Output::Token { text: piece, token, .. } = output {
                split += u32::from(piece.is_empty() && !model().is_eog(token));
                text.push_str(&piece);
                tokens.push(token);
            }
        }
        assert_eq!(text, model().detokenize(&tokens));
    }
    assert!(split > 0, "no character was split: the test tests nothing");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let engine = fcfs(|_| {});
    let prompt = chat("What is the capital of France?");
    let whole = ask(&engine, &prompt, greedy(32)).text;
    // A stop string inside the text that spans several tokens.
    let at = whole.find("of France").unwrap();
    let sampling = SamplingParams { stop: vec!["never".into(), "of France".into()], ..greedy(32) };
    let stopped = ask(&engine, &prompt, sampling);
    assert_eq!(stopped.text, whole[..at]);
    assert_eq!(stopped.end.unwrap().0, FinishReason::Stop);
    let sampling = SamplingParams { stop: vec!["of Franks".into()], ..greedy(32) };
    assert_eq!(ask(&engine, &prompt, sampling).text, whole, "text held back in vain is sent in the end");
}

#[test]
fn max_tokens_ends_the_output_and_ignore_eos_goes_on_past_the_end_of_text() {
    let engine = fcfs(|_| {});
    let prompt = chat("What is the capital of France?");
    let short = ask(&engine, &prompt, greedy(3));
    assert_eq!((short.tokens.len(), short.end.unwrap().0), (3, FinishReason::Length));
    let long = ask(&engine, &prompt, SamplingParams { ignore_eos: true, ..greedy(80) });
    assert_eq!((long.tokens.len(), long.end.unwrap().0), (80, FinishReason::Length));
    assert!(long.tokens[..79].iter().any(|&token| model().is_eog(token)), "it passed its end of text");
}

#[test]
fn logprobs_of_greedy_tokens_are_the_likeliest() {
    let engine = fcfs(|_| {});
    let answer = ask(&engine, &chat("Name a colour."), SamplingParams { logprobs: Some(3), ..greedy(8) });
    assert_eq!(answer.logprobs.len(), answer.tokens.len());
    for (logprobs, token) in answer.logprobs.iter().zip(&answer.tokens) {
        assert_eq!(logprobs.top.len(), 3);
        assert_eq!((logprobs.top[0].0, logprobs.top[0].1), (*token, logprobs.logprob));
        assert!(logprobs.logprob <= 0.0 && logprobs.top[1].1 <= logprobs.top[0].1);
    }
}

#[test]
fn a_dropped_submission_frees_queue_place_seat_and_memory() {
    let engine = fcfs(|config| config.seats = 1);
    let endless = SamplingParams { ignore_eos: true, ..greedy(450) };
    let submit = || engine.submit_blocking(GenerateRequest::new(chat("Count."), endless.clone())).unwrap();
    let mut running = submit();
    running.next_blocking();
    let waiting = submit();
    assert_eq!(waiting.placement().position, 0, "next in the queue");
    let last = submit();
    assert_eq!(last.placement().position, 1);
    drop(waiting);
    eventually("the queue place is free", || engine.counters().waiting == 1);
    drop(running);
    drop(last);
    eventually("everything is free", || {
        let counters = engine.counters();
        (counters.waiting, counters.running, counters.kv_used_blocks) == (0, 0, 0)
    });
    assert_eq!(engine.counters().cancelled, 3);
    let next = ask(&engine, &chat("What is the capital of France?"), greedy(32));
    assert!(next.text.contains("Paris"), "the seat serves the next request: {}", next.text);
}

#[test]
fn what_cannot_be_served_is_refused_with_a_reason() {
    let engine = fcfs(|config| (config.seats, config.max_queue_requests) = (1, 2));
    let submit = |prompt: Vec<i32>, sampling| engine.submit_blocking(GenerateRequest::new(prompt, sampling));
    let refused = |prompt: Vec<i32>, sampling| submit(prompt, sampling).unwrap_err().to_string();
    assert!(refused(vec![1; 600], greedy(1)).contains("exceed the context of 512 tokens"));
    assert!(refused(vec![1; 500], greedy(100)).contains("exceed the context"));
    assert!(refused(vec![], greedy(1)).contains("at least one prompt token"));
    assert!(refused(vec![1], greedy(0)).starts_with("max_tokens"));
    assert!(
        refused(vec![1], SamplingParams { temperature: f32::NAN, ..greedy(1) }).starts_with("temperature")
    );
    assert!(matches!(
        submit(vec![1_000_000], greedy(1)),
        Err(SubmitError::InvalidToken { token: 1_000_000, .. })
    ));
    assert!(matches!(submit(vec![-1], greedy(1)), Err(SubmitError::InvalidToken { token: -1, .. })));
    let endless = SamplingParams { ignore_eos: true, ..greedy(450) };
    let mut kept = vec![submit(chat("Count."), endless.clone()).unwrap()];
    kept[0].next_blocking();
    kept.extend((0..2).map(|_| submit(chat("Count."), endless.clone()).unwrap()));
    assert!(refused(chat("Count."), endless).contains("the queue is full (2 requests wait)"));
}

#[test]
fn explanations_and_late_scores_reach_the_scheduler() {
    let settings = outrank_core::policies::PolicySettings::default();
    let engine =
        engine(outrank_core::policies::by_name("outrank", &settings).unwrap(), |config| config.seats = 1);
    let endless = SamplingParams { ignore_eos: true, ..greedy(400) };
    let mut running = engine.submit_blocking(GenerateRequest::new(chat("Count."), endless.clone())).unwrap();
    running.next_blocking();
    let waiting = engine.submit_blocking(GenerateRequest::new(chat("Count."), endless)).unwrap();
    engine.score(waiting.id(), Score::new(30.0, 0.5).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let explanation = runtime.block_on(engine.explain(waiting.id())).unwrap();
    assert_eq!(explanation.id, waiting.id());
    assert_eq!(explanation.score.unwrap().median_tokens(), 30.0);
    assert!(runtime.block_on(engine.explain(outrank_core::RequestId(999))).is_none());
}

#[test]
fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let engine = fcfs(|_| {});
    let accepted = engine.submit_blocking(GenerateRequest::new(chat("Count."), greedy(24))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.drain());
    assert!(matches!(
        engine.submit_blocking(GenerateRequest::new(chat("Count."), greedy(1))),
        Err(SubmitError::Draining)
    ));
    assert!(read(accepted).end.is_some());
    runtime.block_on(engine.drain());
    engine.shutdown();
    assert_eq!(engine.stopped().as_deref(), Some("it was shut down"));
    assert!(matches!(
        engine.submit_blocking(GenerateRequest::new(chat("Count."), greedy(1))),
        Err(SubmitError::Stopped(_))
    ));
}

#[test]
fn shutting_down_fails_what_is_left_with_a_reason() {
    let engine = fcfs(|_| {});
    let endless = SamplingParams { ignore_eos: true, ..greedy(450) };
    let left = engine.submit_blocking(GenerateRequest::new(chat("Count."), endless)).unwrap();
    engine.shutdown();
    assert_eq!(read(left).failure.as_deref(), Some("the engine has stopped: it was shut down"));
}

#[test]
fn every_step_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steps.jsonl");
    let engine = fcfs(|config| config.step_log = Some(path.clone()));
    let prompt = chat("Why?");
    let answer = ask(&engine, &prompt, greedy(8));
    engine.shutdown();
    let lines = std::fs::read_to_string(&path).unwrap();
    let records: Vec<outrank_engine::StepRecord> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let samples: Vec<_> = records.iter().map(|record| record.sample).collect();
    assert_eq!(samples.iter().map(|step| step.prefill_tokens as usize).sum::<usize>(), prompt.len());
    assert_eq!(samples.iter().map(|step| step.decodes as usize).sum::<usize>(), answer.tokens.len() - 1);
    // The newest token of an answer has not been attended to.
    let context_tokens = (prompt.len() + answer.tokens.len() - 1) as u64;
    assert_eq!(samples.last().unwrap().context_tokens, context_tokens);
    assert!(records.iter().all(|record| record.sample.took_s > 0.0 && record.policy == "fcfs"));
}
