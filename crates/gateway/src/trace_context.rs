//! W3C trace context: the request's trace goes on through the gateway.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Replaces the header `traceparent` by one with a span of this gateway, in the trace that the client began, or in a new one.
/// Returns the trace id.
pub(crate) fn advance(headers: &mut HeaderMap) -> String {
    let came = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(parse);
    let (trace, flags) = match came {
        Some((trace, flags)) => (trace.to_owned(), flags.to_owned()),
        None => (format!("{:032x}", fastrand::u128(1..)), "00".to_owned()),
    };
    let value = format!("00-{trace}-{:016x}-{flags}", fastrand::u64(1..));
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(TRACEPARENT, value);
    }
    trace
}

/// Trace id and flags of `version-traceid-parentid-flags`, if they make sense.
fn parse(value: &str) -> Option<(&str, &str)> {
    let mut parts = value.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let sane = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let meaningful =
        version != "ff" && trace.bytes().any(|it| it != b'0') && parent.bytes().any(|it| it != b'0');
    let complete = version != "00" || parts.next().is_none();
    (sane && meaningful && complete).then_some((trace, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advanced(value: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        advance(&mut headers);
        headers[TRACEPARENT].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_trace_goes_on_under_a_span_of_our_own() {
        let came = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let sent = advanced(came);
        assert_eq!(parse(&sent), Some(("0af7651916cd43dd8448eb211c80319c", "01")));
        assert_ne!(sent, came);
    }

    #[test]
    fn what_makes_no_sense_begins_a_new_trace() {
        for odd in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            let sent = advanced(odd);
            assert!(
                parse(&sent).is_some_and(|(trace, flags)| flags == "00" && !odd.contains(trace)),
                "{odd}"
            );
        }
    }
}
