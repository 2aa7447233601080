//! Reading request bodies, within limits.

use std::fmt::Display;
use std::time::Duration;

use axum::body::{Bytes, HttpBody as Body};
use axum::http::{HeaderMap, Request, header};
use http_body_util::BodyExt;

use crate::ApiError;

/// Bytes of an oversized body that are read and thrown away: a client that is still sending would not read the
/// refusal.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
/// How long a client may take to send its body.
const MAX_BODY_TIME: Duration = Duration::from_secs(60);

/// The whole body of a request that declares JSON.
///
/// # Errors
/// [`ApiError`] if it is declared as something else, is too long, too slow, or breaks off.
pub async fn read_json_body<B>(request: Request<B>, max_bytes: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    check_content_type(request.headers())?;
    match tokio::time::timeout(MAX_BODY_TIME, read(request.into_body(), max_bytes)).await {
        Ok(result) => result,
        Err(_) => {
            let seconds = MAX_BODY_TIME.as_secs();
            Err(ApiError::unreadable_body(format!("it took longer than {seconds} seconds: send it faster")))
        }
    }
}

async fn read<B>(mut body: B, max_bytes: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut first = Bytes::new();
    let mut whole = Vec::new();
    let mut read_bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::unreadable_body(format!("{error}: send it again")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        read_bytes += chunk.len();
        if read_bytes > max_bytes {
            drop((first, whole));
            discard(body, read_bytes).await;
            return Err(ApiError::too_large(max_bytes));
        }
        // Most bodies come in one piece, which needs no copy.
        if first.is_empty() && whole.is_empty() {
            first = chunk;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut first));
        whole.extend_from_slice(&chunk);
    }
    Ok(if whole.is_empty() { first } else { whole.into() })
}

/// Reads on until the client has sent all, within reason.
async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B, mut read_bytes: usize) {
    while read_bytes < MAX_DISCARDED_BYTES {
        let Some(Ok(frame)) = body.frame().await else { return };
        read_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::wrong_content_type("nothing"));
    };
    let value = value.to_str().unwrap_or("an unreadable type");
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::wrong_content_type(value))
}
