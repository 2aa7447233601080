//! Whether the process lives, and whether it takes requests.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::App;
use outrank_http::{ApiError, json_response};

/// The process answers and its engine has not died; if it has, only a restart helps.
pub(crate) async fn live(State(app): State<Arc<App>>) -> Response {
    match app.backend.stopped() {
        None => json_response(StatusCode::OK, &json!({ "status": "live" })),
        Some(why) => ApiError::engine_stopped(&why, app.drain_retry_after()).into_response(),
    }
}

/// New requests are taken; otherwise the error that they would get.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.check_ready() {
        Ok(()) => json_response(StatusCode::OK, &json!({ "status": "ready" })),
        Err(error) => error.into_response(),
    }
}
