//! The model that is served, as a list of one.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use outrank_http::{ApiError, json_response};

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({ "object": "list", "data": [card(&app)] }))
}

/// `GET /v1/models/{id}`
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // A name that is not UTF-8 is the name of no model.
    let id = id.map_or_else(|_| uri.path().to_owned(), |Path(id)| id);
    app.check_model(&id)?;
    Ok(json_response(StatusCode::OK, &card(&app)))
}

fn card(app: &App) -> Value {
    json!({
        "id": app.config.model_name,
        "object": "model",
        "created": app.started,
        "owned_by": "outrank",
        // vLLM's name for it.
        "max_model_len": app.backend.context_tokens(),
    })
}
