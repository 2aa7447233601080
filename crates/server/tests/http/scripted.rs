//! A backend that answers every prompt with the same words, ordered by the real scheduler, one token a step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, StreamExt, stream};
use outrank_core::{
    Capacity, Counters, Event, Explanation, MonitorSettings, Request, RequestId, Scheduler, SchedulerConfig,
    Score, ServiceModel, SwitchCost, Timestamp, Trust, blocks_for, policies,
};
use outrank_engine::{
    ChatMessage, FinishReason, GenerateRequest, Output, SubmitError, Timings, Token, TokenLogprobs, Usage,
};
use outrank_server::{Backend, Generation, PromptError};
use tokio::sync::mpsc;

/// What every prompt is answered with.
pub(crate) const REPLY: [&str; 5] = ["The", " capital", " is", " Paris", "."];
/// Tokens of [`REPLY`] are numbered from here; below are the bytes of prompts.
const REPLY_TOKENS: Token = 1000;
pub(crate) const CONTEXT_TOKENS: u32 = 512;

/// How a scripted engine behaves.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    pub(crate) policy: &'static str,
    pub(crate) seats: u32,
    pub(crate) max_queue_requests: usize,
    pub(crate) step: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self { policy: "outrank", seats: 4, max_queue_requests: 64, step: Duration::from_millis(1) }
    }
}

#[derive(Clone)]
pub(crate) struct Scripted(Arc<Mutex<State>>);

struct State {
    scheduler: Scheduler,
    epoch: Instant,
    live: HashMap<RequestId, Live>,
    seen: Vec<GenerateRequest>,
    next_id: u64,
    /// While held, no step is made.
    held: bool,
    /// Fails whatever runs in the next step.
    fail: bool,
}

struct Live {
    request: GenerateRequest,
    generated: u32,
    /// When it took its seat: every seat makes a token a step.
    seated: Option<Instant>,
    output: mpsc::UnboundedSender<Output>,
}

/// Cancels on drop, like the engine's own ticket.
struct Ticket(Scripted, RequestId);

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let now = state.now();
        state.live.remove(&self.1);
        state.scheduler.observe(now, Event::Cancelled(self.1));
    }
}

impl Scripted {
    /// Starts stepping on the current runtime.
    pub(crate) fn start(script: Script) -> Self {
        let Script { policy, seats, max_queue_requests, step } = script;
        let capacity = Capacity {
            seats,
            kv_blocks: seats * blocks_for(CONTEXT_TOKENS),
            watermark_blocks: 0,
            step_tokens: seats * CONTEXT_TOKENS + 1,
            prefill_chunk_tokens: seats * CONTEXT_TOKENS,
            context_tokens: CONTEXT_TOKENS,
        };
        let config = SchedulerConfig {
            capacity,
            max_queue_requests,
            switch_cost: SwitchCost::RECOMPUTE_ONLY,
            service: ServiceModel::default(),
            unscored_tokens: 100.0,
            max_bypass_s: 1.0,
            monitor: MonitorSettings::default(),
        };
        let policy = policies::by_name(policy, &policies::PolicySettings::default()).unwrap();
        let state = State {
            scheduler: Scheduler::new(config, policy).unwrap(),
            epoch: Instant::now(),
            live: HashMap::new(),
            seen: Vec::new(),
            next_id: 0,
            held: false,
            fail: false,
        };
        let this = Self(Arc::new(Mutex::new(state)));
        let weak = Arc::downgrade(&this.0);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(step);
            while let Some(state) = weak.upgrade() {
                state.lock().unwrap().step();
                drop(state);
                ticks.tick().await;
            }
        });
        this
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes no more steps until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.lock().held = true;
    }

    pub(crate) fn release(&self) {
        self.lock().held = false;
    }

    /// Fails whatever runs.
    pub(crate) fn fail(&self) {
        self.lock().fail = true;
    }

    /// All requests that were submitted, in order.
    pub(crate) fn seen(&self) -> Vec<GenerateRequest> {
        self.lock().seen.clone()
    }
}

impl State {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs_f64(self.epoch.elapsed().as_secs_f64())
    }

    fn step(&mut self) {
        if self.held {
            return;
        }
        let now = self.now();
        let sampled: Vec<_> = self
            .scheduler
            .plan(now)
            .batch
            .iter()
            .filter(|slice| slice.samples)
            .map(|slice| slice.id)
            .collect();
        for id in sampled {
            if std::mem::take(&mut self.fail) {
                let live = self.live.remove(&id).unwrap();
                live.output.send(Output::Failed("it was told to".into())).ok();
                self.scheduler.observe(now, Event::Cancelled(id));
                continue;
            }
            self.scheduler.observe(now, Event::Token(id));
            if self.live.get_mut(&id).unwrap().generate() {
                self.live.remove(&id);
                self.scheduler.observe(now, Event::Finished(id));
            }
        }
    }
}

impl Live {
    /// Produces a token and says whether it was the last.
    fn generate(&mut self) -> bool {
        let nth = self.generated as usize % REPLY.len();
        let token = REPLY_TOKENS + nth as Token;
        let sampling = &self.request.sampling;
        let logprobs = sampling.logprobs.map(|top| TokenLogprobs {
            logprob: -0.5,
            top: (0..Token::from(top)).map(|i| (REPLY_TOKENS + i % 5, -0.5 - i as f32)).collect(),
        });
        self.generated += 1;
        let seated = *self.seated.get_or_insert_with(Instant::now);
        self.output.send(Output::Token { text: REPLY[nth].into(), token, logprobs }).ok();
        let reason = if self.generated == sampling.max_tokens {
            FinishReason::Length
        } else if self.generated as usize == REPLY.len() && !sampling.ignore_eos {
            FinishReason::Stop
        } else {
            return false;
        };
        let usage = Usage { prompt_tokens: self.request.prompt.len() as u32, output_tokens: self.generated };
        let e2e_s = self.request.arrival.elapsed().as_secs_f64();
        let queue_s = (seated - self.request.arrival).as_secs_f64();
        let timings = Timings { queue_s, ttft_s: queue_s, e2e_s, preemptions: 0 };
        self.output.send(Output::Finished { reason, usage, timings }).ok();
        true
    }
}

impl Backend for Scripted {
    fn context_tokens(&self) -> u32 {
        CONTEXT_TOKENS
    }

    fn chat_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, PromptError> {
        if messages[0].role == "assistant" {
            return Err(PromptError("the template wants a user first".into()));
        }
        let text = |m: &ChatMessage| format!("<{}>{}", m.role, m.content);
        Ok(self.text_tokens(&messages.iter().map(text).collect::<String>()))
    }

    fn text_tokens(&self, text: &str) -> Vec<Token> {
        text.bytes().map(Token::from).collect()
    }

    fn token_bytes(&self, token: Token) -> Vec<u8> {
        REPLY.get((token - REPLY_TOKENS) as usize).map_or_else(Vec::new, |text| text.as_bytes().to_vec())
    }

    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        let mut state = self.lock();
        let now = state.now();
        state.next_id += 1;
        let facts = Request {
            true_tokens: request.true_tokens,
            limit_is_recorded: request.true_tokens.is_some() && request.sampling.ignore_eos,
            ..Request::new(state.next_id, now, request.prompt.len() as u32, request.sampling.max_tokens)
        };
        let id = facts.id;
        let placement = match state.scheduler.submit(now, facts, request.score) {
            Ok(placement) => placement,
            Err(rejection) => return ready(Err(rejection.into())).boxed(),
        };
        let (output, outputs) = mpsc::unbounded_channel();
        state.seen.push(request.clone());
        state.live.insert(id, Live { request, generated: 0, seated: None, output });
        let ticket = Ticket(self.clone(), id);
        let outputs = stream::unfold((outputs, ticket), |(mut outputs, ticket)| async {
            outputs.recv().await.map(|output| (output, (outputs, ticket)))
        });
        ready(Ok(Generation { id, placement, outputs: outputs.boxed() })).boxed()
    }

    fn score(&self, id: RequestId, score: Score) {
        let mut state = self.lock();
        let now = state.now();
        state.scheduler.observe(now, Event::Scored(id, score));
    }

    fn explain(&self, id: RequestId) -> BoxFuture<'_, Option<Explanation>> {
        let state = self.lock();
        ready(state.scheduler.explain(state.now(), id)).boxed()
    }

    fn counters(&self) -> Counters {
        self.lock().scheduler.counters()
    }

    fn trust(&self) -> Trust {
        self.lock().scheduler.monitor().trust()
    }

    fn stopped(&self) -> Option<String> {
        None
    }
}
