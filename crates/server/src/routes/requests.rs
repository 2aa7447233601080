//! `GET /v1/outrank/requests/{id}`: where a request stands and why, and afterwards how it went.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use futures_util::future::join_all;
use outrank_core::{Explanation, State as Stage};
use outrank_engine::FinishReason;
use serde::Serialize;

use crate::app::App;
use crate::records::{ChoiceRecord, End, Record};
use outrank_http::{ApiError, PredictedTokens, json_response, milliseconds};

#[derive(Serialize)]
struct RequestBody {
    id: String,
    object: &'static str,
    request_id: String,
    model: String,
    created: u64,
    status: &'static str,
    choices: Vec<ChoiceBody>,
}

/// One output. `schedule` is there while it waits or runs, `timings` once it has finished.
#[derive(Serialize)]
struct ChoiceBody {
    index: usize,
    status: &'static str,
    finish_reason: Option<FinishReason>,
    predicted_tokens: Option<PredictedTokens>,
    output_tokens: u32,
    expected_e2e_ms: f64,
    schedule: Option<ScheduleBody>,
    timings: Option<TimingsBody>,
}

#[derive(Serialize)]
struct ScheduleBody {
    policy: String,
    position: usize,
    eta_start_ms: f64,
    eta_finish_ms: f64,
    waited_ms: f64,
    remaining_tokens: f64,
    overtaken_by: u64,
    preemptions: u32,
    promoted: bool,
    key: f64,
    why: String,
}

#[derive(Serialize)]
struct TimingsBody {
    queue_ms: f64,
    ttft_ms: f64,
    e2e_ms: f64,
    preemptions: u32,
}

/// `GET /v1/outrank/requests/{id}`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // An id that is not UTF-8 is the id of no request.
    let id = id.map_or_else(|_| uri.path().to_owned(), |Path(id)| id);
    let record = app.records.find(&id).or_else(|| app.records.get(&id));
    let record = record.ok_or_else(|| ApiError::unknown_request(&id))?;
    let body = describe(&app, &record).await;
    Ok(json_response(StatusCode::OK, &body))
}

async fn describe(app: &App, record: &Record) -> RequestBody {
    let known = record.choices();
    // All at once: the engine answers between two steps.
    let explanations = join_all(known.iter().map(|choice| async {
        if choice.end.is_none() { app.backend.explain(choice.id).await } else { None }
    }));
    let explained = known.iter().zip(explanations.await).enumerate();
    let choices =
        explained.map(|(index, (choice, explanation))| describe_choice(index, choice, explanation)).collect();
    RequestBody {
        id: record.completion_id.clone(),
        object: "outrank.request",
        request_id: record.request_id.clone(),
        model: app.config.model_name.clone(),
        created: record.created,
        status: status_of_all(&known),
        choices,
    }
}

fn describe_choice(index: usize, choice: &ChoiceRecord, explanation: Option<Explanation>) -> ChoiceBody {
    let score = explanation.as_ref().and_then(|known| known.score).or(choice.score);
    let (status, finish_reason, timings) = match choice.end {
        Some(End::Finished(reason, timings)) => ("finished", Some(reason), Some(timings)),
        Some(End::Failed) => ("failed", None, None),
        Some(End::Cancelled) => ("cancelled", None, None),
        None => (explanation.as_ref().map_or("running", |known| stage_word(known.state)), None, None),
    };
    ChoiceBody {
        index,
        status,
        finish_reason,
        predicted_tokens: score.map(PredictedTokens::from),
        output_tokens: choice.output_tokens,
        expected_e2e_ms: milliseconds(choice.eta_finish_s),
        schedule: explanation.map(schedule),
        timings: timings.map(|timings| TimingsBody {
            queue_ms: milliseconds(timings.queue_s),
            ttft_ms: milliseconds(timings.ttft_s),
            e2e_ms: milliseconds(timings.e2e_s),
            preemptions: timings.preemptions,
        }),
    }
}

fn schedule(known: Explanation) -> ScheduleBody {
    ScheduleBody {
        policy: known.policy,
        position: known.position,
        eta_start_ms: milliseconds(known.eta.start_s),
        eta_finish_ms: milliseconds(known.eta.finish_s),
        waited_ms: milliseconds(known.waited_s),
        remaining_tokens: known.remaining_tokens,
        overtaken_by: known.overtaken_by,
        preemptions: known.preemptions,
        promoted: known.promoted,
        key: known.key,
        why: known.why,
    }
}

/// The status of a request from those of its outputs.
fn status_of_all(choices: &[ChoiceRecord]) -> &'static str {
    let any = |wanted: fn(&Option<End>) -> bool| choices.iter().any(|choice| wanted(&choice.end));
    if any(Option::is_none) {
        "in_progress"
    } else if any(|end| matches!(end, Some(End::Failed))) {
        "failed"
    } else if any(|end| matches!(end, Some(End::Cancelled))) {
        "cancelled"
    } else {
        "finished"
    }
}

fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting",
        Stage::Paused => "paused",
        Stage::Running => "running",
    }
}
