//! Headers on their way through.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use outrank_core::{Placement, Score};

/// Requests ahead in the queue when a request was accepted.
const POSITION: HeaderName = HeaderName::from_static("x-outrank-position");
/// Milliseconds until the end of the answer, as expected when the request was accepted.
const ETA_MS: HeaderName = HeaderName::from_static("x-outrank-eta-ms");
/// Predicted output length (median) in tokens; absent without a score.
const PREDICTED_TOKENS: HeaderName = HeaderName::from_static("x-outrank-predicted-tokens");
/// Milliseconds that the request waited before it was sent to the upstream.
const QUEUE_MS: HeaderName = HeaderName::from_static("x-outrank-queue-ms");
/// The upstream that answered.
const UPSTREAM: HeaderName = HeaderName::from_static("x-outrank-upstream");
/// Tells nginx not to collect the stream.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Headers that are between two neighbours and go no further (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Leaves of a request's headers what goes on to the upstream. The key of a tenant of ours is not for others.
pub(crate) fn forwardable(headers: &mut HeaderMap, ours: bool) {
    end_to_end(headers);
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT);
    // What cannot be read along could not be counted.
    headers.remove(header::ACCEPT_ENCODING);
    if ours {
        headers.remove(header::AUTHORIZATION);
    }
}

/// Leaves of an answer's headers what goes on to the client.
pub(crate) fn answerable(headers: &mut HeaderMap) {
    end_to_end(headers);
}

fn end_to_end(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()) {
        let names: Vec<HeaderName> = named.split(',').filter_map(|name| name.trim().parse().ok()).collect();
        names.into_iter().for_each(|name| drop(headers.remove(name)));
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Tells the client where its request stood and why.
pub(crate) fn tell(
    headers: &mut HeaderMap,
    placement: &Placement,
    score: Option<Score>,
    queued_s: f64,
    upstream: Option<&str>,
) {
    let ms = |seconds: f64| HeaderValue::from((seconds * 1000.0).round() as u64);
    headers.insert(POSITION, HeaderValue::from(placement.position));
    headers.insert(ETA_MS, ms(placement.eta.finish_s));
    headers.insert(QUEUE_MS, ms(queued_s));
    if let Some(score) = score {
        headers.insert(PREDICTED_TOKENS, HeaderValue::from(score.median_tokens().round().max(1.0) as u64));
    }
    if let Some(name) = upstream.and_then(|name| HeaderValue::try_from(name).ok()) {
        headers.insert(UPSTREAM, name);
    }
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_neighbours_stays_there_and_so_do_our_keys() {
        let all = [
            ("connection", "keep-alive, x-private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("host", "gateway"),
            ("content-length", "3"),
            ("accept-encoding", "gzip"),
            ("authorization", "Bearer k"),
            ("x-mine", "2"),
        ];
        let headers = || -> HeaderMap {
            all.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
        };
        for (ours, left) in [(true, vec!["x-mine"]), (false, vec!["authorization", "x-mine"])] {
            let mut headers = headers();
            forwardable(&mut headers, ours);
            let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left);
        }
    }
}
