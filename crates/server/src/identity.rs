//! Who asks: the request id, and the tenant behind the API key.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::app::App;
use crate::error::{ApiError, ErrorCode};

/// Names a request, on the way in and on the way out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

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
    let request_id = sane_request_id(request.headers()).unwrap_or_else(|| format!("req-{}", random_id()));
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(Identity { request_id: request_id.clone(), tenant: None });
    let mut response = next.run(request).await;
    if let Some(&ErrorCode(code)) = response.extensions().get() {
        if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
            app.metrics.count_rejection(code);
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
    match tenant(&app.config.api_keys, request.headers()) {
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
fn tenant(keys: &[String], headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let presented = headers.get(header::AUTHORIZATION).and_then(bearer).ok_or_else(|| {
        ApiError::unauthorized(
            "no API key: send the header `authorization: Bearer KEY` with a key of this server",
        )
    })?;
    // Every key is compared, so that the time tells nothing of which one matched.
    let mut matched = u32::MAX;
    for (number, key) in (0u32..).zip(keys) {
        let equal: Choice = key.as_bytes().ct_eq(presented);
        matched.conditional_assign(&number, equal);
    }
    if matched == u32::MAX {
        return Err(ApiError::unauthorized(
            "wrong API key: send one of this server's keys, exactly as it was given",
        ));
    }
    Ok(Some(format!("key-{matched}").into()))
}

/// The token of `Bearer TOKEN`; the scheme's name may be in any case (RFC 9110), the token not.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token)
}

fn sane_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    let fits = (1..=MAX_REQUEST_ID_BYTES).contains(&id.len());
    // Clients resolve these two away in the path under which a request is found.
    let path_step = matches!(id, "." | "..");
    (fits && !path_step && id.bytes().all(sane)).then(|| id.to_owned())
}

/// An id that no other request has: 96 random bits. It is a name, not a secret.
pub(crate) fn random_id() -> String {
    format!("{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    fn tenant_of(authorization: &str) -> Result<Option<Arc<str>>, ApiError> {
        tenant(&["sk-One".into(), "sk-Two".into()], &headers(header::AUTHORIZATION, authorization))
    }

    #[test]
    fn keys_are_compared_exactly() {
        assert_eq!(tenant_of("Bearer sk-Two").unwrap().as_deref(), Some("key-1"));
        assert_eq!(tenant_of("bearer sk-One").unwrap().as_deref(), Some("key-0"));
        for wrong in
            ["Bearer sk-one", "Bearer SK-ONE", "Bearer sk-On", "Bearer sk-One ", "Bearer ", "sk-One", ""]
        {
            assert!(tenant_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_client_may_name_its_request_with_a_sane_id_only() {
        assert_eq!(sane_request_id(&headers(REQUEST_ID, "a-1.b")).as_deref(), Some("a-1.b"));
        for odd in ["", "a b", "<script>", "x\ty", ".", "..", &"x".repeat(129)] {
            assert_eq!(sane_request_id(&headers(REQUEST_ID, odd)), None, "{odd:?}");
        }
    }
}
