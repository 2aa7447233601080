//! What is served where.

mod health;
mod models;
pub(crate) mod openapi;
mod requests;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{Method, Request, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::app::App;
use crate::generate;
use crate::identity::{Identity, authenticate, identify};
use crate::wire::{Chat, Completions};
use outrank_http::{ApiError, METRICS_CONTENT_TYPE};

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models::list))
        // Names of models often have slashes.
        .route("/v1/models/{*id}", get(models::one))
        // So may the ids that clients give.
        .route("/v1/outrank/requests/{*id}", get(requests::one))
        .route_layer(from_fn_with_state(Arc::clone(&app), authenticate));
    Router::new()
        .merge(guarded)
        .route("/health", get(health::ready))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/metrics", get(render_metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), identify))
        .with_state(app)
}

async fn chat_completions(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    request: Request<Body>,
) -> Response {
    generate::serve::<Chat>(app, identity, request).await
}

async fn completions(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    request: Request<Body>,
) -> Response {
    generate::serve::<Completions>(app, identity, request).await
}

async fn render_metrics(State(app): State<Arc<App>>) -> Response {
    if let (Some(replay), 0) = (&app.config.replay, app.records.under_way()) {
        app.metrics.host.shadow.settle(|| replay.clone()).await;
    }
    match app.metrics.render(&app.backend.counters(), app.backend.trust()) {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => ApiError::internal(&error.to_string()).into_response(),
    }
}

async fn unknown_route(uri: Uri) -> ApiError {
    ApiError::unknown_route(uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(method.as_str(), uri.path())
}
