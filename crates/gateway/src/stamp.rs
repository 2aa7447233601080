//! Telling an engine the priority of a request.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use crate::config::Stamp;

/// Header in which vLLM may be told a priority.
const PRIORITY: HeaderName = HeaderName::from_static("x-vllm-priority");

/// Writes the deadline of a request, in seconds of the Unix epoch, into its body or headers. What the client said of priority is
/// replaced. Engines order by the integer: milliseconds.
pub(crate) fn stamp(
    how: Stamp,
    deadline_s: f64,
    body: &Bytes,
    has_priority: bool,
    headers: &mut HeaderMap,
) -> Bytes {
    // A cast saturates, and an infinite deadline is the last.
    let priority = (deadline_s * 1000.0).round() as i64;
    match how {
        Stamp::Body => with_priority(body, has_priority, priority),
        Stamp::BodyHigherFirst => with_priority(body, has_priority, priority.saturating_neg()),
        Stamp::Header => {
            headers.insert(PRIORITY, HeaderValue::from(priority));
            if has_priority { without_priority(body) } else { body.clone() }
        }
    }
}

/// The body with this priority; everything else stays as it is, to the byte, unless there was a priority already.
fn with_priority(body: &Bytes, has_priority: bool, priority: i64) -> Bytes {
    let body = if has_priority { without_priority(body) } else { body.clone() };
    // It is an object that has fields.
    let Some(end) = body.iter().rposition(|&byte| byte == b'}') else { return body };
    let mut stamped = Vec::with_capacity(body.len() + 40);
    stamped.extend_from_slice(&body[..end]);
    stamped.extend_from_slice(format!(",\"priority\":{priority}}}").as_bytes());
    stamped.into()
}

fn without_priority(body: &Bytes) -> Bytes {
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(body).unwrap_or_default();
    fields.remove("priority");
    serde_json::to_vec(&fields).map_or_else(|_| body.clone(), Bytes::from)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stamped(how: Stamp, body: &'static str, has_priority: bool) -> (Bytes, HeaderMap) {
        let mut headers = HeaderMap::new();
        let body =
            stamp(how, 1_700_000_000.25, &Bytes::from_static(body.as_bytes()), has_priority, &mut headers);
        (body, headers)
    }

    #[test]
    fn the_rest_of_the_body_is_kept_to_the_byte() {
        let (body, _) = stamped(Stamp::Body, "{ \"model\" : \"m\",\"x\":1.50 }\n", false);
        assert_eq!(body, "{ \"model\" : \"m\",\"x\":1.50 ,\"priority\":1700000000250}");
        let (body, _) = stamped(Stamp::BodyHigherFirst, "{\"model\":\"m\"}", false);
        assert_eq!(body, "{\"model\":\"m\",\"priority\":-1700000000250}");
    }

    #[test]
    fn a_priority_of_the_client_is_replaced_or_taken_out() {
        let (body, _) =
            stamped(Stamp::Body, "{\"priority\":-99,\"model\":\"m\",\"seed\":12345678901234567}", true);
        let fields: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            fields,
            json!({"model": "m", "seed": 12_345_678_901_234_567_u64, "priority": 1_700_000_000_250_u64})
        );
        assert_eq!(std::str::from_utf8(&body).unwrap().matches("priority").count(), 1);
        let (body, headers) = stamped(Stamp::Header, "{\"priority\":-99,\"model\":\"m\"}", true);
        assert_eq!(
            (body.as_ref(), headers[PRIORITY].as_bytes()),
            (&b"{\"model\":\"m\"}"[..], &b"1700000000250"[..])
        );
    }
}
