//! Submitting the outputs of a request: all or none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures_util::future::try_join_all;
use outrank_core::{Rejection, Score};
use outrank_engine::{GenerateRequest, SamplingError, SubmitError, Token};

use crate::app::{App, unix_time};
use crate::backend::Generation;
use crate::flight::{Asked, Flight};
use crate::identity::Identity;
use crate::records::{ChoiceRecord, Lesson, OpenRecord, Record};
use crate::wire::Call;
use outrank_http::ApiError;
use outrank_http::PendingScore;
use outrank_http::random_id;

/// Requests ahead in the queue when a request was accepted; of several outputs, the largest number.
const POSITION: HeaderName = HeaderName::from_static("x-outrank-position");
/// Milliseconds until the last token of the last output, as expected when the request was accepted.
const ETA_MS: HeaderName = HeaderName::from_static("x-outrank-eta-ms");
/// Predicted output length (median) in tokens, of the longest output; absent without a score.
const PREDICTED_TOKENS: HeaderName = HeaderName::from_static("x-outrank-predicted-tokens");

/// A prompt that fits the context.
pub(crate) struct ReadyPrompt {
    pub(crate) tokens: Vec<Token>,
    pub(crate) max_tokens: u32,
    /// Its score, if it came in time.
    pub(crate) score: Option<Score>,
    /// Its score, if it may still come.
    pub(crate) pending: PendingScore,
}

/// An accepted request, and what its client is told at once.
pub(crate) struct Accepted {
    pub(crate) flight: Flight,
    pub(crate) headers: HeaderMap,
}

/// Submits all outputs of a request, or none.
pub(crate) async fn accept(
    app: &Arc<App>,
    identity: &Identity,
    arrival: Instant,
    call: &Call,
    prompts: Vec<ReadyPrompt>,
) -> Result<Accepted, ApiError> {
    let outputs = || prompts.iter().flat_map(|prompt| (0..call.n).map(move |nth| (prompt, nth)));
    let submissions = outputs().map(|(prompt, nth)| {
        app.backend.submit(GenerateRequest {
            prompt: prompt.tokens.clone(),
            score: prompt.score,
            true_tokens: call.true_tokens,
            sampling: call.sampling_of(nth, prompt.max_tokens),
            arrival,
            tenant: identity.tenant.clone(),
            class: None,
        })
    });
    // The first refusal drops, and so cancels, all the others. From here to the `Flight` nothing is awaited.
    let generations = try_join_all(submissions).await.map_err(|error| refusal(app, error))?;
    let scores: Vec<_> = outputs().map(|(prompt, _)| prompt.score).collect();
    let headers = headers_of(&generations, &scores);
    let accepted_s = arrival.elapsed().as_secs_f64();
    let choice = |(generation, (prompt, _)): (&Generation, (&ReadyPrompt, u32))| ChoiceRecord {
        id: generation.id,
        score: prompt.score,
        eta_finish_s: accepted_s + generation.placement.eta.finish_s,
        output_tokens: 0,
        end: None,
        lesson: lesson(call, prompt),
    };
    let choices = generations.iter().zip(outputs()).map(choice).collect();
    let completion_id = format!("{}{}", call.id_prefix, random_id());
    let record =
        app.records.open(Record::new(completion_id, identity.request_id.clone(), unix_time(), choices));
    let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum();
    let asked = outputs().map(|(prompt, _)| asked(call, prompt)).collect();
    deliver_late_scores(app, &record, prompts, call.n as usize);
    let outputs = generations.into_iter().map(|generation| generation.outputs).collect();
    Ok(Accepted {
        flight: Flight::new(Arc::clone(app), record, arrival, outputs, asked, prompt_tokens),
        headers,
    })
}

fn asked(call: &Call, prompt: &ReadyPrompt) -> Asked {
    let ends_by_itself = !call.sampling.ignore_eos;
    Asked {
        prompt_tokens: u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX),
        limit_tokens: if ends_by_itself { prompt.max_tokens } else { u32::MAX },
        ends_by_itself,
        length_counts: ends_by_itself || call.true_tokens.is_some(),
    }
}

/// Answers that could not end by themselves teach nothing.
fn lesson(call: &Call, prompt: &ReadyPrompt) -> Option<Lesson> {
    let text = prompt.pending.text().filter(|_| !call.sampling.ignore_eos)?;
    Some(Lesson { text, limit_tokens: prompt.max_tokens })
}

fn headers_of(generations: &[Generation], scores: &[Option<Score>]) -> HeaderMap {
    let position = generations.iter().map(|generation| generation.placement.position).max();
    let eta_s = generations.iter().map(|generation| generation.placement.eta.finish_s).fold(0.0, f64::max);
    let predicted = scores.iter().flatten().map(|score| score.median_tokens()).reduce(f32::max);
    let mut headers = HeaderMap::new();
    headers.insert(POSITION, HeaderValue::from(position.unwrap_or(0)));
    headers.insert(ETA_MS, HeaderValue::from((eta_s * 1000.0).round() as u64));
    if let Some(tokens) = predicted {
        headers.insert(PREDICTED_TOKENS, HeaderValue::from(tokens.round().max(1.0) as u64));
    }
    headers
}

/// Scores that missed the deadline reach the scheduler when they come, unless the request has left by then.
fn deliver_late_scores(app: &Arc<App>, open: &OpenRecord, prompts: Vec<ReadyPrompt>, n: usize) {
    for (nth, prompt) in prompts.into_iter().enumerate() {
        let Some(late) = prompt.pending.late() else { continue };
        let (app, record) = (Arc::clone(app), Arc::downgrade(open.record()));
        tokio::spawn(async move {
            let (Some(score), Some(record)) = (late.await, record.upgrade()) else { return };
            for index in nth * n..(nth + 1) * n {
                record.update(index, |choice| {
                    choice.score = Some(score);
                    app.backend.score(choice.id, score);
                });
            }
        });
    }
}

fn refusal(app: &App, error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::Rejected(Rejection::QueueFull { limit, retry_after_s }) => {
            ApiError::queue_full(limit, Duration::from_secs_f64(retry_after_s))
        }
        SubmitError::Rejected(Rejection::TooLong { .. }) => ApiError::context_exceeded("max_tokens", message),
        SubmitError::Rejected(Rejection::Empty) => ApiError::invalid("prompt", message),
        SubmitError::Rejected(Rejection::DuplicateId(_)) => ApiError::generation_failed(&message),
        SubmitError::Sampling(SamplingError::Range { field, .. }) => ApiError::invalid(field, message),
        SubmitError::Sampling(SamplingError::Stop(_)) => ApiError::invalid("stop", message),
        SubmitError::InvalidToken { .. } => ApiError::invalid("prompt", message),
        SubmitError::Draining => app.shutting_down(),
        SubmitError::Stopped(why) => ApiError::engine_stopped(&why, app.drain_retry_after()),
    }
}
