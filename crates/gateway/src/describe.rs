//! Answers to "where is my request, and why?", and to "who is there?".

use axum::http::StatusCode;
use axum::response::Response;
use outrank_core::State;
use outrank_http::{ApiError, Outcome, PredictedTokens, json_response, milliseconds};
use serde_json::{Value, json};

use crate::app::App;
use crate::desk::Known;
use crate::records::Facts;
use crate::scan::Finish;

/// `GET /v1/models`: those of all upstreams.
pub(crate) fn models(app: &App) -> Value {
    let data: Vec<Value> = app.desk.models().iter().map(|name| card(app, name)).collect();
    json!({ "object": "list", "data": data })
}

/// `GET /v1/models/{id}`
pub(crate) fn model(app: &App, name: &str) -> Result<Response, ApiError> {
    if !app.desk.models().iter().any(|known| known == name) {
        return Err(ApiError::model_not_served(name));
    }
    Ok(json_response(StatusCode::OK, &card(app, name)))
}

fn card(app: &App, name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": app.clock.unix_s(0.0) as u64, "owned_by": "outrank" })
}

/// `GET /v1/outrank/upstreams`
pub(crate) fn upstreams(app: &App) -> Value {
    let site = |site: crate::desk::SiteReport| {
        let breaker = ["closed", "half_open", "open"][site.breaker.clamp(0, 2) as usize];
        json!({
            "name": site.name,
            "url": site.url,
            "mode": site.mode,
            "up": site.up,
            "breaker": breaker,
            "in_flight": site.in_flight,
            "window": site.window,
            "seats": site.seats,
            "work_tokens": site.work_tokens.round(),
        })
    };
    let pool = |pool: crate::desk::PoolReport| {
        json!({
            "model": pool.model,
            "waiting": pool.waiting.iter().sum::<usize>(),
            "running": pool.running,
            "backlog_s": pool.backlog_s,
            "decode_ms": milliseconds(pool.decode_s),
            "trusted": pool.trusted,
            "concordance": pool.concordance,
        })
    };
    json!({
        "object": "outrank.upstreams",
        "upstreams": app.desk.sites().into_iter().map(site).collect::<Vec<_>>(),
        "queues": app.desk.pools().into_iter().map(pool).collect::<Vec<_>>(),
    })
}

/// `GET /v1/outrank/requests/{id}`: where a request stands and why, and afterwards how it went.
pub(crate) fn request(app: &App, id: &str) -> Result<Response, ApiError> {
    let record = app.records.find(id).ok_or_else(|| ApiError::unknown_request(id))?;
    let facts = record.facts.lock().clone();
    let known = match facts.outcome {
        None => app.desk.explain(record.desk_id.load(std::sync::atomic::Ordering::Relaxed)),
        Some(_) => None,
    };
    let status = status(&facts, known.as_ref());
    let whole = if facts.outcome.is_none() { "in_progress" } else { status };
    let score = known.as_ref().and_then(|known| known.explanation.score).or(facts.score);
    let tokens = known.as_ref().map_or(facts.output_tokens, |known| known.explanation.generated_tokens);
    let timings = facts.outcome.is_some().then(|| {
        json!({
            "queue_ms": facts.queue_s.map(milliseconds),
            "ttft_ms": facts.ttft_s.map(milliseconds),
            "e2e_ms": facts.e2e_s.map(milliseconds),
        })
    });
    let choice = json!({
        "index": 0,
        "status": status,
        "finish_reason": facts.finish.map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }),
        "predicted_tokens": score.map(PredictedTokens::from),
        "output_tokens": tokens,
        "expected_e2e_ms": milliseconds(record.eta_finish_s),
        "schedule": known.as_ref().map(schedule),
        "timings": timings,
    });
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "id": record.request_id,
            "object": "outrank.request",
            "request_id": record.request_id,
            "model": record.model,
            "created": record.created as u64,
            "status": whole,
            "class": record.class.name(),
            "tenant": record.tenant,
            "upstream": facts.upstream,
            "attempts": facts.attempts,
            "choices": [choice],
        }),
    ))
}

fn status(facts: &Facts, known: Option<&Known>) -> &'static str {
    match facts.outcome {
        Some(Outcome::Completed) => "finished",
        Some(Outcome::Cancelled) => "cancelled",
        Some(Outcome::Failed | Outcome::Rejected) => "failed",
        None => match known {
            Some(known) if known.stamped && known.explanation.state == State::Waiting => "forwarded",
            Some(known) if known.explanation.state != State::Running => "waiting",
            _ => "running",
        },
    }
}

fn schedule(known: &Known) -> Value {
    let explanation = &known.explanation;
    json!({
        "policy": explanation.policy,
        "class": known.class.name(),
        "upstream": known.upstream,
        "position": explanation.position,
        "eta_start_ms": milliseconds(explanation.eta.start_s),
        "eta_finish_ms": milliseconds(explanation.eta.finish_s),
        "waited_ms": milliseconds(explanation.waited_s),
        "remaining_tokens": explanation.remaining_tokens,
        "overtaken_by": explanation.overtaken_by,
        "key": explanation.key,
        "why": explanation.why,
    })
}
