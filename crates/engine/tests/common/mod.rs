//! The real model for tests, and the shortest way to an answer.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use outrank_core::{Key, Load, Policy, Preemption, RequestView};
use outrank_engine::{
    ChatMessage, Engine, EngineConfig, EngineHandle, FinishReason, GenerateRequest, Model, Output,
    SamplingParams, Submission, Timings, Token, TokenLogprobs, Usage, ensure_q8_0,
};

/// The GGUF file as fetched.
pub fn source() -> PathBuf {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
    let path = std::env::var_os("OUTRANK_MODEL")
        .map_or_else(|| cache.join("smollm2-135m-instruct-q4_1.gguf"), PathBuf::from);
    assert!(path.is_file(), "no model at {}: run `make model`, or set OUTRANK_MODEL", path.display());
    path
}

/// The GGUF file as it is served.
pub fn served() -> PathBuf {
    let source = source();
    ensure_q8_0(&source, source.parent().unwrap()).unwrap()
}

/// The model as it is served.
pub fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    // With its template's system message the model answers what touches France in broken French.
    let load = || Arc::new(Model::load(&served()).unwrap().with_system_prompt("").unwrap());
    MODEL.get_or_init(load).clone()
}

/// A small engine; `change` adjusts its settings. One thread: two are many times slower where other tests run beside.
pub fn engine(policy: Box<dyn Policy>, change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    let mut config = EngineConfig { seats: 4, context_tokens: 512, threads: 1, ..EngineConfig::default() };
    change(&mut config);
    Engine::start(model(), &config, policy).unwrap()
}

/// An engine that serves in order of arrival.
pub fn fcfs(change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    engine(Box::new(outrank_core::policies::Fcfs), change)
}

/// Sixteen prompts of different lengths.
pub fn prompts() -> Vec<Vec<Token>> {
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(12);
    let questions = [
        "What is the capital of France?",
        "Write a short poem about the sea.",
        "List five fruits.",
        "Explain photosynthesis to a child.",
        "Translate 'good morning' to Spanish.",
        "What is 12 times 12?",
        "Write a Python function that reverses a string.",
        "Who wrote Hamlet?",
        "Give me a recipe for pancakes.",
        "Why is the sky blue?",
        "Tell me a story about a dragon.",
        "What are the primary colours?",
        "Summarise: the meeting was moved from Monday to Thursday because of the holiday.",
        "Name three rivers in Africa.",
        "Is a tomato a fruit?",
        &long,
    ];
    questions.iter().map(|question| chat(question)).collect()
}

/// The prompt of one question.
pub fn chat(question: &str) -> Vec<Token> {
    model().chat_prompt(&[ChatMessage::new("user", question)]).unwrap()
}

/// One whole answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<Token>,
    pub logprobs: Vec<TokenLogprobs>,
    pub end: Option<(FinishReason, Usage, Timings)>,
    pub failure: Option<String>,
}

/// Reads a submission to its end.
pub fn read(mut submission: Submission) -> Answer {
    let mut answer = Answer::default();
    while let Some(output) = submission.next_blocking() {
        match output {
            Output::Token { text, token, logprobs } => {
                answer.text.push_str(&text);
                answer.tokens.push(token);
                answer.logprobs.extend(logprobs);
            }
            Output::Finished { reason, usage, timings } => answer.end = Some((reason, usage, timings)),
            Output::Failed(reason) => answer.failure = Some(reason),
        }
    }
    answer
}

/// Submits, and waits for the whole answer.
pub fn ask(engine: &EngineHandle, prompt: &[Token], sampling: SamplingParams) -> Answer {
    read(engine.submit_blocking(GenerateRequest::new(prompt.to_vec(), sampling)).unwrap())
}

/// Submits all at once, and waits for all.
pub fn ask_all(engine: &EngineHandle, prompts: &[Vec<Token>], sampling: &SamplingParams) -> Vec<Answer> {
    let submit = |prompt: &Vec<Token>| {
        engine.submit_blocking(GenerateRequest::new(prompt.clone(), sampling.clone())).unwrap()
    };
    let submissions: Vec<Submission> = prompts.iter().map(submit).collect();
    submissions.into_iter().map(read).collect()
}

/// Serves the newest request first and takes the seat of older ones at once: as much preemption as there can be.
#[derive(Debug)]
pub struct NewestFirst;

impl Policy for NewestFirst {
    fn name(&self) -> &'static str {
        "newest-first"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(-view.request.arrival.secs_f64())
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn why(&self, _view: &RequestView<'_>) -> String {
        "the newest request goes first".into()
    }
}
