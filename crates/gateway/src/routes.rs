//! What is served where.

use std::sync::Arc;

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use outrank_http::{
    ApiError, ErrorCode, METRICS_CONTENT_TYPE, Outcome, REQUEST_ID, json_response, random_id, sane_request_id,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::describe;
use crate::forward::{self, Unanswered};
use crate::relay::GatewayBody;

const OPENAPI: &str = include_str!("openapi.json");
/// Where a request is found.
const REQUESTS: &str = "/v1/outrank/requests/";

/// Serves any request.
pub(crate) async fn serve(app: &Arc<App>, request: Request<Incoming>) -> Response<GatewayBody> {
    let request_id =
        sane_request_id(request.headers()).map_or_else(|| format!("req-{}", random_id()), str::to_owned);
    let mut response = match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/chat/completions") => generate(app, request, &request_id, true).await,
        (&Method::POST, "/v1/completions") => generate(app, request, &request_id, false).await,
        _ => own(other(app, &request, &request_id).await),
    };
    // A sane id is made of visible ASCII.
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

async fn generate(
    app: &Arc<App>,
    request: Request<Incoming>,
    request_id: &str,
    chat: bool,
) -> Response<GatewayBody> {
    let error = match forward::generate(app, request, request_id, chat).await {
        Ok(response) => return response,
        Err(Unanswered::Failed(error)) => error,
        Err(Unanswered::Refused(error)) => {
            app.metrics.host.requests.count_rejection(error.code());
            app.metrics.host.requests.count_request(Outcome::Rejected);
            error
        }
    };
    tracing::debug!(request_id, code = error.code(), "not answered");
    own(error.into_response())
}

fn own(response: axum::response::Response) -> Response<GatewayBody> {
    response.map(GatewayBody::Own)
}

/// Serves what is not forwarded.
async fn other(app: &App, request: &Request<Incoming>, request_id: &str) -> axum::response::Response {
    let (method, path) = (request.method(), request.uri().path());
    let response = match (method, path) {
        (&Method::GET | &Method::HEAD, _) if is_get(path) => get(app, request, path).await.into_response(),
        (_, "/v1/chat/completions" | "/v1/completions") => wrong_method(method, path, "POST"),
        _ if is_get(path) => wrong_method(method, path, "GET, HEAD"),
        _ => ApiError::unknown_route(path).into_response(),
    };
    if let Some(&ErrorCode(code)) = response.extensions().get() {
        app.metrics.host.requests.count_rejection(code);
        // The path is not logged: people put keys into the oddest places.
        tracing::debug!(%method, request_id, code, "refused");
    }
    response
}

fn is_get(path: &str) -> bool {
    matches!(path, "/v1/models" | "/v1/outrank/upstreams" | "/metrics" | "/openapi.json")
        || matches!(path, "/health" | "/health/live" | "/health/ready")
        || path.starts_with("/v1/models/")
        || path.starts_with(REQUESTS)
}

async fn get(
    app: &App,
    request: &Request<Incoming>,
    path: &str,
) -> Result<axum::response::Response, ApiError> {
    if path.starts_with("/v1/") {
        app.tenants().identify(request.headers())?;
    }
    match path {
        "/v1/models" => Ok(json_response(StatusCode::OK, &describe::models(app))),
        "/v1/outrank/upstreams" => Ok(json_response(StatusCode::OK, &describe::upstreams(app))),
        "/metrics" => metrics(app).await,
        "/openapi.json" => document(app),
        "/health/live" => Ok(json_response(StatusCode::OK, &json!({ "status": "live" }))),
        "/health" | "/health/ready" => ready(app),
        _ => match (path.strip_prefix("/v1/models/"), path.strip_prefix(REQUESTS)) {
            (Some(name), _) => describe::model(app, &percent_decoded(name)),
            (None, Some(id)) => describe::request(app, &percent_decoded(id)),
            (None, None) => Err(ApiError::unknown_route(path)),
        },
    }
}

async fn metrics(app: &App) -> Result<axum::response::Response, ApiError> {
    if app.records.under_way() == 0 {
        app.metrics.host.shadow.settle(|| app.replay()).await;
    }
    let text = app.metrics.render(&app.desk).map_err(|error| ApiError::internal(&error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response())
}

/// The OpenAPI document, kept by hand in `openapi.json`. Where no key is needed, it asks for none.
fn document(app: &App) -> Result<axum::response::Response, ApiError> {
    let mut document: Value =
        serde_json::from_str(OPENAPI).map_err(|error| ApiError::internal(&error.to_string()))?;
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    if app.tenants().list().is_empty() {
        let paths = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
        for operation in paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut()) {
            operation.as_object_mut().map(|operation| operation.remove("security"));
        }
    }
    Ok(json_response(StatusCode::OK, &document))
}

fn ready(app: &App) -> Result<axum::response::Response, ApiError> {
    app.check_open()?;
    if !app.desk.is_ready() {
        return Err(ApiError::no_upstream(std::time::Duration::from_secs(2)));
    }
    Ok(json_response(StatusCode::OK, &json!({ "status": "ready" })))
}

fn wrong_method(method: &Method, path: &str, allowed: &'static str) -> axum::response::Response {
    let mut response = ApiError::wrong_method(method.as_str(), path).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A path with its `%XX` resolved; what is no UTF-8 then is the name of nothing.
fn percent_decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_decoded() {
        for (path, name) in
            [("a%2Fb", "a/b"), ("100%", "100%"), ("%zz", "%zz"), ("%ff", ""), ("plain", "plain")]
        {
            assert_eq!(percent_decoded(path), name);
        }
    }

    #[test]
    fn the_document_is_json() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        assert!(document["paths"]["/v1/chat/completions"]["post"].is_object());
    }
}
