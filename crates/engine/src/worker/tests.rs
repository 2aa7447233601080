//! A paused request that has lost its KV, on the real model.

use std::path::{Path, PathBuf};

use outrank_core::policies::{PolicySettings, by_name};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::executor::ExecutorConfig;
use crate::{EngineConfig, GenerateRequest, Output, SamplingParams, Token, ensure_q8_0};

const LONG: RequestId = RequestId(0);
const SHORT: RequestId = RequestId(1);
/// More steps than any of these requests needs.
const MAX_STEPS: usize = 200;

fn model() -> Model {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
    let source = std::env::var_os("OUTRANK_MODEL")
        .map_or_else(|| cache.join("smollm2-135m-instruct-q4_1.gguf"), PathBuf::from);
    assert!(source.is_file(), "no model at {}: run `make model`, or set OUTRANK_MODEL", source.display());
    Model::load(&ensure_q8_0(&source, source.parent().unwrap()).unwrap()).unwrap()
}

/// One seat, which the request with the least left takes from any other.
fn worker(model: &Model) -> Worker<'_> {
    let config = EngineConfig { seats: 1, context_tokens: 512, threads: 1, ..EngineConfig::default() };
    let EngineConfig { seats, context_tokens, step_tokens, threads, .. } = config;
    let executor =
        Executor::new(model, ExecutorConfig { seats, context_tokens, step_tokens, threads }).unwrap();
    let policy = by_name("oracle-srtf", &PolicySettings::default()).unwrap();
    let scheduler = Scheduler::new(config.scheduler(), policy).unwrap();
    Worker::new(model, executor, scheduler, None, Arc::new(Shared::new()), Instant::now())
}

fn submit(worker: &mut Worker<'_>, id: RequestId, text: &str, tokens: u32) -> UnboundedReceiver<Output> {
    let sampling = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(tokens) };
    let mut request = GenerateRequest::new(worker.model.tokenize(text, true, false), sampling);
    request.true_tokens = Some(tokens);
    let (output, outputs) = unbounded_channel();
    let (reply, mut accepted) = oneshot::channel();
    worker.submit(NewRequest { id, request, output, reply });
    accepted.try_recv().unwrap().unwrap();
    outputs
}

/// Steps until `done`.
fn step_until(worker: &mut Worker<'_>, done: impl Fn(&Worker<'_>) -> bool) {
    for _ in 0..MAX_STEPS {
        if done(worker) {
            return;
        }
        let now = worker.now();
        let mut plan = worker.scheduler.plan(now).clone();
        worker.execute(&mut plan);
    }
    panic!("no end after {MAX_STEPS} steps");
}

fn tokens(mut outputs: UnboundedReceiver<Output>) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Ok(output) = outputs.try_recv() {
        match output {
            Output::Token { token, .. } => tokens.push(token),
            Output::Finished { .. } => return tokens,
            Output::Failed(reason) => panic!("failed: {reason}"),
        }
    }
    panic!("no end of the answer after {} tokens", tokens.len());
}

#[test]
fn a_request_whose_kv_cannot_be_restored_goes_on_as_if_it_had_never_been_paused() {
    let model = model();
    let text = "Once upon a time there was a dragon who";
    let mut undisturbed = worker(&model);
    let expected = submit(&mut undisturbed, LONG, text, 24);
    step_until(&mut undisturbed, |worker| worker.jobs.is_empty());

    let mut worker = worker(&model);
    let outputs = submit(&mut worker, LONG, text, 24);
    step_until(&mut worker, |worker| worker.stats.output_tokens == 5);
    let short = submit(&mut worker, SHORT, "Hello", 1);
    step_until(&mut worker, |worker| worker.stats.swapped_out == 1);
    let saved = worker.jobs.get_mut(&LONG).unwrap().saved.take().unwrap();
    worker.stats.swapped_bytes -= saved.bytes() as u64;
    step_until(&mut worker, |worker| worker.jobs.is_empty());

    assert_eq!(tokens(outputs), tokens(expected));
    assert_eq!(tokens(short).len(), 1);
    assert_eq!((worker.stats.failed, worker.stats.swapped_in), (0, 0));
    assert!(worker.scheduler.counters().recomputed_tokens > 0);
}
