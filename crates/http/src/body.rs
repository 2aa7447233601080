//! Reading request bodies, within limits.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, header};
use futures_util::StreamExt;

use crate::error::ApiError;

/// Bytes of an oversized body that are read and thrown away: a client that is still sending would not read the
/// refusal.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
/// How long a client may take to send its body.
const MAX_BODY_TIME: Duration = Duration::from_secs(60);

/// The whole body of a request that declares JSON.
pub(crate) async fn read_json_body(request: Request<Body>, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
    check_content_type(request.headers())?;
    match tokio::time::timeout(MAX_BODY_TIME, read(request.into_body(), max_bytes)).await {
        Ok(result) => result,
        Err(_) => {
            let seconds = MAX_BODY_TIME.as_secs();
            Err(ApiError::unreadable_body(format!("it took longer than {seconds} seconds: send it faster")))
        }
    }
}

async fn read(body: Body, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk: Bytes =
            chunk.map_err(|error| ApiError::unreadable_body(format!("{error}: send it again")))?;
        if whole.len() + chunk.len() > max_bytes {
            let mut discarded_bytes = whole.len() + chunk.len();
            drop(whole);
            while discarded_bytes < MAX_DISCARDED_BYTES {
                let Some(Ok(chunk)) = chunks.next().await else { break };
                discarded_bytes += chunk.len();
            }
            return Err(ApiError::too_large(max_bytes));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
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
