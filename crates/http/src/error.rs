//! Errors as the OpenAI API words them. Each message says what is wrong and what to do.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal or failure that a client is told of.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

/// Label of the error that a response carries, for the metrics; attached to the response as an extension.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub &'static str);

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None }
    }

    fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn with_retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The body is not JSON, or not a JSON object.
    pub fn broken_json(why: impl std::fmt::Display) -> Self {
        let message = format!("the request body is not a JSON object that can be read: {why}");
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// A field has a wrong type or value.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    /// A field that must be there is not.
    pub fn missing(param: impl Into<String>, what: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is missing: send {what}");
        Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).with_param(param)
    }

    /// A field that asks for something this server does not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported", message).with_param(param)
    }

    /// Fields that nobody knows.
    pub fn unknown_fields(names: &[String]) -> Self {
        let listed = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = format!(
            "unknown field {listed}: remove it, this server ignores nothing that it does not understand"
        );
        let param = names.first().cloned().unwrap_or_default();
        Self::new(StatusCode::BAD_REQUEST, "unknown_field", message).with_param(param)
    }

    /// Prompt, or prompt and output together, do not fit the context.
    pub fn context_exceeded(param: &str, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).with_param(param)
    }

    /// No or a wrong API key.
    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// Nothing is served at this path.
    pub fn unknown_route(path: &str) -> Self {
        let message = format!("nothing is served at {path}: GET /openapi.json lists what is");
        Self::new(StatusCode::NOT_FOUND, "unknown_url", message)
    }

    /// The path exists, the method does not.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}: see the Allow header");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// The model asked for is not the one served.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` does not exist here: use `{served}`");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    /// No request of this id is running or remembered.
    pub fn unknown_request(id: &str) -> Self {
        let message = format!(
            "no request `{id}` is running or recently finished: use the x-request-id header or the id of a \
             completion; only the latest requests are remembered"
        );
        Self::new(StatusCode::NOT_FOUND, "request_not_found", message).with_param("id")
    }

    /// The body is longer than allowed.
    pub fn too_large(max_body_bytes: usize) -> Self {
        let message = format!(
            "the request body is longer than {max_body_bytes} bytes: shorten the prompt or raise the server's \
             limit (max_body_bytes)"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    /// The body is not declared as JSON.
    pub fn wrong_content_type(found: &str) -> Self {
        let message = format!("the body is declared as {found}: send `content-type: application/json`");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", message)
    }

    /// The body did not arrive whole.
    pub fn unreadable_body(why: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unreadable_body", format!("the request body broke off: {why}"))
    }

    /// The queue is full.
    pub fn queue_full(limit: usize, retry_after: Duration) -> Self {
        let message =
            format!("the queue is full ({limit} requests wait): try again after the seconds in Retry-After");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).with_retry(retry_after)
    }

    /// The server is about to exit.
    pub fn shutting_down(retry_after: Duration) -> Self {
        let message = "the server is shutting down: try again after the seconds in Retry-After";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message).with_retry(retry_after)
    }

    /// The engine does not answer any more.
    pub fn engine_stopped(why: &str, retry_after: Duration) -> Self {
        let message =
            format!("the engine has stopped ({why}): the server must be restarted; try again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_stopped", message).with_retry(retry_after)
    }

    /// Generation broke off after the request was accepted.
    pub fn generation_failed(why: &str) -> Self {
        let message = format!("generation failed: {why}; the request may be sent again");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "generation_failed", message)
    }

    /// The part of the queue that a tenant may take is full.
    pub fn tenant_queue_full(limit: usize, retry_after: Duration) -> Self {
        let message = format!(
            "{limit} of your requests wait, which is as much of the queue as one tenant may take now: try again after the \
             seconds in Retry-After"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "tenant_queue_full", message).with_retry(retry_after)
    }

    /// It would wait longer than its client, or the settings, allow.
    pub fn would_wait(wait_s: f64, retry_after: Duration) -> Self {
        let message = format!(
            "it would wait about {wait_s:.1} s, which is longer than it may: try again after the seconds in Retry-After"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "would_wait_too_long", message).with_retry(retry_after)
    }

    /// The tenant sends too many requests a minute.
    pub fn rate_limited(per_minute: u32, retry_after: Duration) -> Self {
        let message =
            format!("more than {per_minute} requests a minute: try again after the seconds in Retry-After");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message).with_retry(retry_after)
    }

    /// The tenant has too many requests under way.
    pub fn too_many_at_once(most: u32) -> Self {
        let message =
            format!("{most} of your requests are under way, which is your limit: wait until one has ended");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_at_once", message)
            .with_retry(Duration::from_secs(1))
    }

    /// No upstream can be reached.
    pub fn no_upstream(retry_after: Duration) -> Self {
        let message = "no upstream answers: try again after the seconds in Retry-After";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_upstream", message).with_retry(retry_after)
    }

    /// No upstream serves the model.
    pub fn model_not_served(asked: &str) -> Self {
        let message =
            format!("no upstream serves the model `{asked}`: GET /v1/models lists those that are served");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    /// The upstream failed before an answer began, and so did all other attempts.
    pub fn upstream_failed(why: &str) -> Self {
        let message = format!("the upstream failed: {why}; the request may be sent again");
        Self::new(StatusCode::BAD_GATEWAY, "upstream_failed", message)
    }

    /// The upstream was silent for too long.
    pub fn upstream_timeout(waited_s: f64) -> Self {
        let message = format!(
            "the upstream was silent for {waited_s} s and was given up; the request may be sent again"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", message)
    }

    /// The time that the request had is over.
    pub fn deadline_exceeded(timeout_s: f64) -> Self {
        let message = format!(
            "the request was not answered within its {timeout_s} s: give it more time (header x-outrank-timeout-ms, or \
             request_timeout_s of the gateway)"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
    }

    /// Label in metrics and logs.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// A fault of the server itself.
    pub fn internal(why: &str) -> Self {
        let message = format!("internal error: {why}; please report it");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// OpenAI's family of the error, from its status.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The error object, as in a response body or as an event of a stream.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from((after.as_secs_f64().ceil() as u64).max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ErrorCode(self.code));
        response
    }
}

/// A response of JSON.
pub fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let text = match serde_json::to_string(body) {
        Ok(text) => text,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
