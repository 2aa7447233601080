//! One request inside the engine: its context, its sampler and its client.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::executor::SavedSequence;
use crate::stop::StopMatcher;
use crate::text::Utf8Stream;
use crate::{FinishReason, GenerateRequest, Model, Output, Sampler, Timings, Token, Usage};

/// A request that the scheduler knows.
#[derive(Debug)]
pub(crate) struct Job {
    /// Prompt and output so far.
    pub(crate) context: Vec<Token>,
    pub(crate) seat: Option<u32>,
    /// Its KV while it is swapped out.
    pub(crate) saved: Option<SavedSequence>,
    pub(crate) preemptions: u32,
    prompt_tokens: u32,
    max_tokens: u32,
    ignore_eos: bool,
    sampler: Sampler,
    utf8: Utf8Stream,
    stop: StopMatcher,
    /// Unbounded, because the engine must never wait for a client; `max_tokens` bounds it in fact.
    output: UnboundedSender<Output>,
    arrival: Instant,
    seated_at: Option<Instant>,
    first_token_at: Option<Instant>,
}

impl Job {
    pub(crate) fn new(request: GenerateRequest, output: UnboundedSender<Output>) -> Self {
        let GenerateRequest { prompt, sampling, arrival, .. } = request;
        Self {
            prompt_tokens: prompt.len() as u32,
            context: prompt,
            seat: None,
            saved: None,
            preemptions: 0,
            max_tokens: sampling.max_tokens,
            ignore_eos: sampling.ignore_eos,
            sampler: Sampler::new(&sampling),
            utf8: Utf8Stream::default(),
            stop: StopMatcher::new(sampling.stop),
            output,
            arrival,
            seated_at: None,
            first_token_at: None,
        }
    }

    pub(crate) fn sit(&mut self, seat: u32, now: Instant) {
        self.seat = Some(seat);
        self.seated_at.get_or_insert(now);
    }

    /// Draws the next token from `logits` and sends what it prints. Returns the reason if it was the last.
    pub(crate) fn advance(&mut self, model: &Model, logits: &[f32], now: Instant) -> Option<FinishReason> {
        let token = self.sampler.sample(logits);
        let logprobs = self.sampler.logprobs(logits, token);
        self.context.push(token);
        self.first_token_at.get_or_insert(now);
        let mut text = String::new();
        let mut reason = (!self.ignore_eos && model.is_eog(token)).then_some(FinishReason::Stop);
        let mut stopped = false;
        if reason.is_none() {
            let mut piece = String::new();
            self.utf8.push(model.piece(token), &mut piece);
            stopped = self.stop.push(&piece, &mut text);
            if stopped {
                reason = Some(FinishReason::Stop);
            } else if self.output_tokens() >= self.max_tokens {
                reason = Some(FinishReason::Length);
            }
        }
        if reason.is_some() && !stopped {
            self.flush(&mut text);
        }
        self.send(Output::Token { text, token, logprobs });
        if let Some(reason) = reason {
            self.send(Output::Finished { reason, usage: self.usage(), timings: self.timings(now) });
        }
        reason
    }

    /// Tells the client that the engine gives this request up.
    pub(crate) fn fail(&self, reason: &str) {
        self.send(Output::Failed(reason.to_owned()));
    }

    fn output_tokens(&self) -> u32 {
        self.context.len() as u32 - self.prompt_tokens
    }

    /// Appends what was held back of the text.
    fn flush(&mut self, text: &mut String) {
        let mut tail = String::new();
        self.utf8.finish(&mut tail);
        let stopped = self.stop.push(&tail, text);
        if !stopped {
            self.stop.finish(text);
        }
    }

    fn send(&self, output: Output) {
        // A client that is gone cancels through its ticket; what is sent until then is for nobody.
        let _ = self.output.send(output);
    }

    fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens, output_tokens: self.output_tokens() }
    }

    fn timings(&self, now: Instant) -> Timings {
        let since =
            |at: Option<Instant>| at.unwrap_or(now).saturating_duration_since(self.arrival).as_secs_f64();
        Timings {
            queue_s: since(self.seated_at),
            ttft_s: since(self.first_token_at),
            e2e_s: since(Some(now)),
            preemptions: self.preemptions,
        }
    }
}
