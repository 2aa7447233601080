//! Who asks: the request id, and the tenant behind the API key.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use outrank_http::{ApiError, ErrorCode, Keys, REQUEST_ID, random_id, sane_request_id};

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// The client's `x-request-id`, or one made here.
    pub(crate) request_id: String,
    /// Which API key was presented, by number.
    pub(crate) tenant: Option<Arc<str>>,
}

/// Middleware around everything: gives the request its id, and counts it if it is refused.
pub(crate) async fn identify(
    State(app): State<Arc<App>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let request_id =
        sane_request_id(request.headers()).map_or_else(|| format!("req-{}", random_id()), str::to_owned);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(Identity { request_id: request_id.clone(), tenant: None });
    let mut response = next.run(request).await;
    if let Some(&ErrorCode(code)) = response.extensions().get() {
        if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
            app.metrics.host.requests.count_rejection(code);
        }
        tracing::debug!(%method, path, request_id, status = response.status().as_u16(), code, "refused");
    }
    // A sane id is made of visible ASCII.
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Middleware of `/v1`: refuses requests without one of the API keys, if there are any.
pub(crate) async fn authenticate(
    State(app): State<Arc<App>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    match tenant(&app.keys, request.headers()) {
        Ok(tenant) => {
            if let Some(identity) = request.extensions_mut().get_mut::<Identity>() {
                identity.tenant = tenant;
            }
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// The tenant behind the key that a request presents.
fn tenant(keys: &Keys, headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let owner = keys.owner(headers)?;
    Ok(Some(format!("key-{owner}").into()))
}
