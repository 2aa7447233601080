//! An accepted request under way: its outputs merged in the order in which they come, and the books kept.
//!
//! Dropping a [`Flight`] at any point cancels what still runs and closes the books: a client that vanishes
//! needs no code anywhere else.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use outrank_engine::{FinishReason, Output, Timings, Token, TokenLogprobs};

use crate::app::App;
use crate::records::{End, Lesson, OpenRecord};
use crate::wire::{LogprobEntry, TokenLogprob, UsageBody};
use outrank_http::{Answer, ApiError, Outcome, RequestSpan, Served};

/// Something that an output of a request produced.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Piece {
    /// One token: the text that it completes, which may be none.
    Token { text: String, logprob: Option<TokenLogprob> },
    /// The end of the output.
    End(FinishReason),
}

/// An accepted request under way.
pub(crate) struct Flight {
    /// First, so that what runs is cancelled before the record says that the request has ended.
    outputs: SelectAll<BoxStream<'static, (usize, Output)>>,
    record: OpenRecord,
    app: Arc<App>,
    /// When the request reached the server.
    arrival: Instant,
    choices: Vec<Progress>,
    /// What was asked for, by output.
    asked: Vec<Asked>,
    usage: UsageBody,
    /// Outputs that have not ended.
    open_choices: usize,
    failed: bool,
    span: RequestSpan,
}

/// What was asked for in an output.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) prompt_tokens: u32,
    /// Output limit in tokens, as far as predictions may know it.
    pub(crate) limit_tokens: u32,
    /// Whether the answer may end before its limit.
    pub(crate) ends_by_itself: bool,
    /// Whether its length can be held against its prediction: it may end by itself, or repeats a recorded length.
    pub(crate) length_counts: bool,
}

/// How far an output is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    last_token_at: Option<Instant>,
    /// Characters begun by its tokens, for `text_offset`.
    chars: usize,
}

impl Flight {
    /// A request that has just been accepted; its prompts count once, however many outputs they have.
    pub(crate) fn new(
        app: Arc<App>,
        record: OpenRecord,
        arrival: Instant,
        outputs: Vec<BoxStream<'static, Output>>,
        asked: Vec<Asked>,
        prompt_tokens: u64,
    ) -> Self {
        app.metrics.host.requests.prompt_tokens.inc_by(prompt_tokens);
        let indexed = |(index, outputs): (usize, BoxStream<'static, Output>)| {
            outputs.map(move |output| (index, output)).boxed()
        };
        Self {
            choices: vec![Progress::default(); outputs.len()],
            open_choices: outputs.len(),
            outputs: outputs.into_iter().enumerate().map(indexed).collect(),
            usage: UsageBody::new(prompt_tokens, 0),
            failed: false,
            span: RequestSpan::default(),
            asked,
            app,
            record,
            arrival,
        }
    }

    /// What becomes of it is said in this span.
    pub(crate) fn trace(&mut self, mut span: RequestSpan, request_id: &str) {
        if span.is_on() {
            span.set_request(request_id, self.model());
        }
        self.span = span;
    }

    /// Id of the completion.
    pub(crate) fn completion_id(&self) -> &str {
        &self.record.record().completion_id
    }

    /// When it was accepted, in seconds since the Unix epoch.
    pub(crate) fn created(&self) -> u64 {
        self.record.record().created
    }

    /// Name of the model.
    pub(crate) fn model(&self) -> &str {
        &self.app.config.model_name
    }

    /// Number of its outputs.
    pub(crate) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens used so far.
    pub(crate) fn usage(&self) -> UsageBody {
        self.usage
    }

    /// The next piece of any output, with the output's index; `None` when all have ended. An error ends the
    /// request.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Piece), ApiError>> {
        if self.open_choices == 0 || self.failed {
            return None;
        }
        let output = tokio::select! {
            biased;
            () = self.app.stop.cancelled() => return Some(Err(self.fail(self.app.shutting_down()))),
            output = self.outputs.next() => output,
        };
        Some(match output {
            Some((index, Output::Token { text, token, logprobs })) => {
                let logprob = self.take_token(index, token, logprobs);
                Ok((index, Piece::Token { text, logprob }))
            }
            Some((index, Output::Finished { reason, timings, .. })) => {
                self.finish(index, reason, timings);
                Ok((index, Piece::End(reason)))
            }
            Some((index, Output::Failed(why))) => {
                self.record.record().update(index, |choice| choice.end = Some(End::Failed));
                Err(self.fail(ApiError::generation_failed(&why)))
            }
            None => Err(self.fail(ApiError::generation_failed("the engine has stopped"))),
        })
    }

    fn take_token(
        &mut self,
        index: usize,
        token: Token,
        logprobs: Option<TokenLogprobs>,
    ) -> Option<TokenLogprob> {
        let now = Instant::now();
        let metrics = &self.app.metrics;
        let progress = &mut self.choices[index];
        match progress.last_token_at.replace(now) {
            None => metrics.host.requests.ttft.observe((now - self.arrival).as_secs_f64()),
            Some(last) => metrics.host.requests.itl.observe((now - last).as_secs_f64()),
        }
        metrics.host.requests.generation_tokens.inc();
        self.usage = UsageBody::new(self.usage.prompt_tokens, self.usage.completion_tokens + 1);
        self.record.record().update(index, |choice| choice.output_tokens += 1);
        let logprobs = logprobs?;
        let entry = |token, logprob| LogprobEntry { bytes: self.app.backend.token_bytes(token), logprob };
        let chosen = entry(token, logprobs.logprob);
        let offset_chars = progress.chars;
        progress.chars += chosen.bytes.iter().filter(|&&byte| !is_continuation(byte)).count();
        let top = logprobs.top.into_iter().map(|(token, logprob)| entry(token, logprob)).collect();
        Some(TokenLogprob { chosen, top, offset_chars })
    }

    fn finish(&mut self, index: usize, reason: FinishReason, timings: Timings) {
        self.open_choices -= 1;
        let metrics = &self.app.metrics;
        metrics.host.requests.queue_wait.observe(timings.queue_s);
        if self.open_choices == 0 {
            metrics.host.requests.e2e.observe(self.arrival.elapsed().as_secs_f64());
        }
        let (mut tokens, mut score, mut lesson) = (0, None, None);
        self.record.record().update(index, |choice| {
            (tokens, score, lesson) = (choice.output_tokens, choice.score, choice.lesson.take());
            choice.end = Some(End::Finished(reason, timings));
            metrics.host.trust.note_end(choice.eta_finish_s, timings.e2e_s);
        });
        // Of several outputs, the one that ended last.
        self.span.set_times(Some(timings.queue_s), Some(timings.ttft_s), Some(timings.e2e_s));
        self.span.set_score(score);
        let asked = &self.asked[index];
        let capped = reason == FinishReason::Length && asked.ends_by_itself;
        if asked.length_counts {
            metrics.host.trust.note_answer(score, tokens, capped);
        }
        if let Some(replay) = &self.app.config.replay {
            let served = Served {
                arrival: self.arrival,
                service_s: (timings.e2e_s - timings.queue_s).max(0.0),
                prompt_tokens: asked.prompt_tokens,
                limit_tokens: asked.limit_tokens,
                output_tokens: tokens,
                capped,
                score,
            };
            metrics.host.shadow.note(served, || replay.clone());
        }
        if let Some(Lesson { text, .. }) = lesson {
            self.app.scorer.tell(self.arrival, Answer { text, tokens, censored: capped });
        }
    }

    fn fail(&mut self, error: ApiError) -> ApiError {
        self.failed = true;
        self.span.fail(error.code());
        // What still runs is cancelled now, not when the response has been read.
        self.outputs.clear();
        error
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let outcome = match (self.failed, self.open_choices) {
            (true, _) => Outcome::Failed,
            (false, 0) => Outcome::Completed,
            (false, _) => Outcome::Cancelled,
        };
        self.app.metrics.host.requests.count_request(outcome);
        self.span.set_tokens(self.usage.prompt_tokens, self.usage.completion_tokens);
        self.span.set_outcome(outcome);
    }
}

/// Whether a byte continues a UTF-8 character that an earlier one began.
fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}
