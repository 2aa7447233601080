//! Decode throughput of the engine against a bare llama.cpp batch loop with the same model, threads and batch.
//!
//! Both generate the same number of tokens for the same prompts, greedily, in the same process, turn by turn; the
//! order within a round alternates. A round's ratio compares neighbours in time, so a machine that slows down for
//! a while slows both. usage: `cargo bench -p outrank-engine --bench throughput -- [ROUNDS] [TOKENS] [THREADS]`

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::io::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use outrank_core::policies::{Outrank, PolicySettings};
use outrank_engine::{
    Engine, EngineConfig, EngineHandle, GenerateRequest, Model, Output, SamplingParams, StepRecord, Token,
    ensure_q8_0,
};

const CONTEXT_TOKENS: u32 = 512;
const STEP_TOKENS: u32 = 512;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let numbers: Vec<u32> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let number = |at: usize, default: u32| numbers.get(at).copied().unwrap_or(default);
    let (rounds, tokens) = (number(0, 9), number(1, 96));
    let threads = number(2, EngineConfig::default().threads());
    let model = Arc::new(Model::load(&model_path()?)?);
    let mut out = std::io::stdout();
    writeln!(out, "{}: {threads} threads, {tokens} tokens a sequence, {rounds} rounds", model.name())?;
    writeln!(out, "sequences  bare tok/s  engine tok/s  ratio min  median    max")?;
    for seats in [8, 16] {
        let (bare_s, engine_s) = measure(&model, seats, threads, rounds, tokens)?;
        let bare = quantiles(bare_s.iter().map(|step_s| f64::from(seats) / step_s));
        let served = quantiles(engine_s.iter().map(|step_s| f64::from(seats) / step_s));
        let [low, median, high] = quantiles(bare_s.iter().zip(&engine_s).map(|(bare, engine)| bare / engine));
        writeln!(
            out,
            "{seats:9}  {:10.0}  {:12.0}  {low:9.3}  {median:6.3}  {high:5.3}",
            bare[1], served[1]
        )?;
    }
    Ok(())
}

/// Seconds of a step of each round, bare and in the engine.
fn measure(
    model: &Arc<Model>,
    seats: u32,
    threads: u32,
    rounds: u32,
    tokens: u32,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let log = std::env::temp_dir().join(format!("outrank-throughput-{}.jsonl", std::process::id()));
    let engine = start(model, seats, threads, log.clone())?;
    let mut bare = Bare::new(model, seats, threads)?;
    let prompts: Vec<Vec<Token>> = (0..seats).map(|seat| prompt(model, seat)).collect();
    let mut bare_s = Vec::new();
    for round in 0..=rounds {
        if round % 2 == 0 {
            bare_s.push(bare.run(&prompts, tokens)?);
        }
        run(&engine, &prompts, tokens)?;
        if round % 2 == 1 {
            bare_s.push(bare.run(&prompts, tokens)?);
        }
    }
    engine.shutdown();
    let engine_s = full_steps(&std::fs::read_to_string(&log)?, seats, tokens)?;
    std::fs::remove_file(&log)?;
    if engine_s.len() != bare_s.len() {
        return Err(format!("{} rounds became {}", bare_s.len(), engine_s.len()).into());
    }
    // Round 0 warms up.
    Ok((bare_s[1..].to_vec(), engine_s[1..].to_vec()))
}

/// Seconds of a step in each stretch of steps in which all sequences decoded and none prefilled, everything between
/// the steps included.
fn full_steps(log: &str, seats: u32, tokens: u32) -> Result<Vec<f64>, Error> {
    let mut records = Vec::new();
    for line in log.lines() {
        records.push(serde_json::from_str::<StepRecord>(line)?);
    }
    let full = |record: &StepRecord| record.sample.decodes == seats && record.sample.prefill_tokens == 0;
    let stretches = records.split(|record| !full(record)).filter(|stretch| stretch.len() as u32 > tokens / 2);
    let step_s = |stretch: &[StepRecord]| {
        let (first, last) = (&stretch[0], &stretch[stretch.len() - 1]);
        (last.ended_s - first.ended_s) / (stretch.len() - 1) as f64
    };
    Ok(stretches.map(step_s).collect())
}

fn model_path() -> Result<PathBuf, Error> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
    let source = std::env::var_os("OUTRANK_MODEL")
        .map_or_else(|| cache.join("smollm2-135m-instruct-q4_1.gguf"), PathBuf::from);
    if !source.is_file() {
        return Err(
            format!("no model at {}: run `make model`, or set OUTRANK_MODEL", source.display()).into()
        );
    }
    Ok(ensure_q8_0(&source, source.parent().unwrap_or(&cache))?)
}

fn prompt(model: &Model, seat: u32) -> Vec<Token> {
    model.tokenize(
        &format!("Here is story number {seat} about a dragon and a castle. Once upon a time"),
        true,
        false,
    )
}

fn start(model: &Arc<Model>, seats: u32, threads: u32, log: PathBuf) -> Result<EngineHandle, Error> {
    let config = EngineConfig {
        seats,
        threads,
        context_tokens: CONTEXT_TOKENS,
        step_tokens: STEP_TOKENS,
        prefill_chunk_tokens: STEP_TOKENS,
        step_log: Some(log),
        ..EngineConfig::default()
    };
    // The default policy, which ranks running requests in every step, as it serves.
    let policy: Outrank = PolicySettings::default().outrank;
    Ok(Engine::start(model.clone(), &config, Box::new(policy))?)
}

/// Serves all prompts at once, each to its own thread.
fn run(engine: &EngineHandle, prompts: &[Vec<Token>], tokens: u32) -> Result<(), Error> {
    let sampling = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(tokens) };
    let serve = |prompt: &Vec<Token>| -> Result<(), String> {
        let request = GenerateRequest::new(prompt.clone(), sampling.clone());
        let mut submission = engine.submit_blocking(request).map_err(|error| error.to_string())?;
        while let Some(output) = submission.next_blocking() {
            if let Output::Failed(reason) = output {
                return Err(reason);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = prompts.iter().map(|prompt| scope.spawn(|| serve(prompt))).collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(served) => served.map_err(Error::from),
            Err(_) => Err("a client panicked".into()),
        })
    })
}

/// What one would write around llama.cpp without any scheduler: all sequences in one batch, step after step.
struct Bare<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
}

impl<'m> Bare<'m> {
    fn new(model: &'m Model, seats: u32, threads: u32) -> Result<Self, Error> {
        let threads = i32::try_from(threads)?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(CONTEXT_TOKENS * seats))
            .with_n_seq_max(seats)
            .with_kv_unified(false)
            .with_n_batch(STEP_TOKENS)
            .with_n_ubatch(STEP_TOKENS)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        let context = model.new_context(params)?;
        Ok(Self { context, batch: LlamaBatch::new(STEP_TOKENS as usize, 1) })
    }

    /// Seconds of a step, from the first token of all sequences to the last.
    fn run(&mut self, prompts: &[Vec<Token>], tokens: u32) -> Result<f64, Error> {
        self.context.clear_kv_cache();
        self.batch.clear();
        let mut last = Vec::new();
        for (seat, prompt) in (0..).zip(prompts) {
            for (position, &token) in (0..).zip(prompt) {
                self.batch.add(
                    LlamaToken(token),
                    position,
                    &[seat],
                    position as usize + 1 == prompt.len(),
                )?;
            }
            last.push(self.batch.n_tokens() - 1);
        }
        self.context.decode(&mut self.batch)?;
        let mut next: Vec<LlamaToken> =
            last.iter().map(|&at| argmax(self.context.get_logits_ith(at))).collect();
        let start = Instant::now();
        for step in 0..tokens - 1 {
            self.batch.clear();
            for ((seat, prompt), &token) in (0..).zip(prompts).zip(&next) {
                let position = i32::try_from(prompt.len())? + i32::try_from(step)?;
                self.batch.add(token, position, &[seat], true)?;
            }
            self.context.decode(&mut self.batch)?;
            for (at, token) in (0..).zip(&mut next) {
                *token = argmax(self.context.get_logits_ith(at));
            }
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(tokens - 1))
    }
}

fn argmax(logits: &[f32]) -> LlamaToken {
    let mut best = (f32::NEG_INFINITY, 0);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.0 {
            best = (logit, token);
        }
    }
    LlamaToken(best.1)
}

/// Minimum, median and maximum.
fn quantiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}
