//! The one flow of both generating endpoints: read, score, accept, answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use outrank_engine::{FinishReason, Token};

use crate::accept::{ReadyPrompt, accept};
use crate::app::App;
use crate::backend::Backend;
use crate::flight::{Flight, Piece};
use crate::identity::Identity;
use crate::sse;
use crate::wire::{Call, Envelope, Fields, Prompt, TokenLogprob, Wire};
use outrank_http::PendingScore;
use outrank_http::read_json_body;
use outrank_http::{ApiError, Outcome, RequestSpan, Traces, json_response};

/// Serves a generation request of protocol `W`.
pub(crate) async fn serve<W: Wire>(app: Arc<App>, identity: Identity, request: Request<Body>) -> Response {
    let arrival = Instant::now();
    let begin = |traces: &Arc<Traces>| traces.begin(request.headers(), arrival, W::OPERATION);
    let mut span = app.traces.as_ref().map_or_else(RequestSpan::default, begin);
    match generate::<W>(&app, &identity, request, arrival, &mut span).await {
        Ok(response) => response,
        Err(refusal) => {
            app.metrics.host.requests.count_request(Outcome::Rejected);
            span.set_outcome(Outcome::Rejected);
            span.fail(refusal.code());
            refusal.into_response()
        }
    }
}

/// Reads, accepts and answers a request; an error means that it was not accepted.
async fn generate<W: Wire>(
    app: &Arc<App>,
    identity: &Identity,
    request: Request<Body>,
    arrival: Instant,
    span: &mut RequestSpan,
) -> Result<Response, ApiError> {
    let arriving = app.records.arrive();
    app.check_ready()?;
    let body = read_json_body(request, app.config.max_body_bytes).await?;
    let mut call = W::read(Fields::parse(&body)?, &app.limits())?;
    drop(body);
    app.check_model(&call.model)?;
    let prompts = std::mem::take(&mut call.prompts);
    // Scores are made while the prompts become tokens.
    let facts = call.facts(identity.tenant.as_deref());
    let text = |prompt: &Prompt| prompt.ranking_text().map(|text| facts.before(&text));
    let pending = prompts.iter().map(|prompt| app.scorer.ask(|| text(prompt))).collect();
    let tokens = make_tokens::<W>(app, prompts).await?;
    let prompts = make_ready::<W>(app, &call, tokens, pending).await?;
    let mut accepted = accept(app, identity, arrival, &call, prompts).await?;
    accepted.flight.trace(std::mem::take(span), &identity.request_id);
    drop(arriving);
    let mut response = match call.stream {
        Some(options) => sse::stream::<W>(accepted.flight, options),
        None => answer_whole::<W>(accepted.flight, call.sampling.logprobs.is_some()).await,
    };
    response.headers_mut().extend(accepted.headers);
    Ok(response)
}

/// Tokens of all prompts, made off the async threads.
async fn make_tokens<W: Wire>(app: &App, prompts: Vec<Prompt>) -> Result<Vec<Vec<Token>>, ApiError> {
    let backend = Arc::clone(&app.backend);
    let make = move || prompts.into_iter().map(|prompt| tokens_of(&*backend, prompt)).collect();
    let made: Result<Vec<_>, String> = tokio::task::spawn_blocking(make)
        .await
        .map_err(|error| ApiError::generation_failed(&error.to_string()))?;
    made.map_err(|why| ApiError::invalid(W::PROMPT, why))
}

fn tokens_of(backend: &dyn Backend, prompt: Prompt) -> Result<Vec<Token>, String> {
    match prompt {
        Prompt::Chat(messages) => backend.chat_tokens(&messages).map_err(|error| error.to_string()),
        Prompt::Text(text) => Ok(backend.text_tokens(&text)),
        Prompt::Tokens(tokens) => Ok(tokens),
    }
}

/// Checks that all prompts fit, and waits for their scores until the deadline, which they share.
async fn make_ready<W: Wire>(
    app: &App,
    call: &Call,
    tokens: Vec<Vec<Token>>,
    pending: Vec<PendingScore>,
) -> Result<Vec<ReadyPrompt>, ApiError> {
    let context_tokens = app.backend.context_tokens();
    let default_max_tokens = app.config.default_max_tokens;
    let deadline = Instant::now() + Duration::from_millis(app.config.score_deadline_ms);
    let mut ready = Vec::with_capacity(tokens.len());
    for (tokens, mut pending) in tokens.into_iter().zip(pending) {
        let max_tokens =
            output_limit(W::PROMPT, tokens.len(), call.max_tokens, default_max_tokens, context_tokens)?;
        let score = pending.by(deadline).await;
        ready.push(ReadyPrompt { tokens, max_tokens, score, pending });
    }
    Ok(ready)
}

/// The output limit of a prompt: as asked for, or the default where the context leaves as much.
fn output_limit(
    param: &str,
    prompt_tokens: usize,
    asked: Option<u32>,
    default: u32,
    context_tokens: u32,
) -> Result<u32, ApiError> {
    if prompt_tokens == 0 {
        return Err(ApiError::invalid(param, format!("`{param}` has no tokens: send some text")));
    }
    let room_tokens = context_tokens.saturating_sub(u32::try_from(prompt_tokens).unwrap_or(u32::MAX));
    if room_tokens == 0 {
        let message = format!(
            "the prompt has {prompt_tokens} tokens and the context holds {context_tokens}, prompt and output \
             together: shorten the prompt"
        );
        return Err(ApiError::context_exceeded(param, message));
    }
    match asked {
        Some(asked) if asked > room_tokens => {
            let message = format!(
                "{prompt_tokens} prompt tokens and {asked} output tokens exceed the context of {context_tokens} \
                 tokens: ask for at most {room_tokens} output tokens or shorten the prompt"
            );
            Err(ApiError::context_exceeded("max_tokens", message))
        }
        Some(asked) => Ok(asked),
        None => Ok(default.min(room_tokens)),
    }
}

/// One output of a response that is sent whole.
#[derive(Default)]
struct Collected {
    text: String,
    logprobs: Vec<TokenLogprob>,
    reason: Option<FinishReason>,
}

/// Waits for all outputs and answers with all of them.
async fn answer_whole<W: Wire>(mut flight: Flight, with_logprobs: bool) -> Response {
    let mut choices: Vec<_> = std::iter::repeat_with(Collected::default).take(flight.choices()).collect();
    while let Some(next) = flight.next().await {
        match next {
            Err(error) => return error.into_response(),
            Ok((index, Piece::Token { text, logprob })) => {
                choices[index].text.push_str(&text);
                choices[index].logprobs.extend(logprob);
            }
            Ok((index, Piece::End(reason))) => choices[index].reason = Some(reason),
        }
    }
    let body = |(index, choice): (usize, &Collected)| {
        let logprobs = with_logprobs.then_some(choice.logprobs.as_slice());
        W::choice(index, &choice.text, logprobs, choice.reason.unwrap_or(FinishReason::Stop))
    };
    let envelope = Envelope {
        id: flight.completion_id(),
        object: W::OBJECT,
        created: flight.created(),
        model: flight.model(),
        choices: choices.iter().enumerate().map(body).collect(),
        usage: Some(Some(flight.usage())),
    };
    json_response(StatusCode::OK, &envelope)
}
