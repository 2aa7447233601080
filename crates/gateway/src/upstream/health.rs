//! Asking upstreams how they are, and what they serve.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method, StatusCode, header};
use bytes::Bytes;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Lease, Outgoing, SendError, Upstream, seats};
use crate::desk::{Desk, Models};

/// How long an upstream may take to answer a health check.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Good checks in a row after which an engine is asked for its seats again: it may have been started anew between two of them.
const CHECKS_PER_SEATS: u32 = 30;
/// Checks in a row that fail before an upstream that accepts connections is taken for dead.
const MAX_FAILURES: u32 = 2;

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// What a check told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// It answers; these are its models, if it told.
    Up(Option<Models>),
    /// It cannot be reached.
    Unreachable,
    /// It answers wrongly, or not in time.
    Failing,
}

/// Checks an upstream again and again until `gone`.
pub(crate) async fn watch(
    desk: Arc<Desk>,
    upstream: Arc<Upstream>,
    interval: Duration,
    gone: CancellationToken,
) {
    let (mut failures, mut successes) = (0, 0u32);
    loop {
        match check(&upstream).await {
            Health::Up(models) => {
                failures = 0;
                desk.probed(&upstream, true, models);
                if upstream.wants_seats() && successes.is_multiple_of(CHECKS_PER_SEATS) {
                    desk.engine_says(&upstream, seats::ask(&upstream).await);
                }
                successes += 1;
            }
            Health::Unreachable => {
                successes = 0;
                desk.probed(&upstream, false, None);
            }
            Health::Failing => {
                successes = 0;
                failures += 1;
                if failures >= MAX_FAILURES {
                    desk.probed(&upstream, false, None);
                }
            }
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Asks an upstream for its models.
pub(crate) async fn check(upstream: &Upstream) -> Health {
    tokio::time::timeout(PROBE_TIMEOUT, ask(upstream)).await.unwrap_or(Health::Failing)
}

async fn ask(upstream: &Upstream) -> Health {
    let (status, body) = match get(upstream, "/v1/models").await {
        Ok(answered) => answered,
        Err(health) => return health,
    };
    if status.is_server_error() {
        return Health::Failing;
    }
    if status != StatusCode::OK {
        // It lives, and does not tell its models, or not to us.
        return Health::Up(None);
    }
    let list = serde_json::from_slice::<ModelList>(&body);
    Health::Up(
        list.ok()
            .filter(|list| !list.data.is_empty())
            .map(|list| Models::Listed(list.data.into_iter().map(|model| model.id).collect())),
    )
}

/// Asks an upstream for a path; what to think of it, if it does not answer.
pub(super) async fn get(upstream: &Upstream, path: &str) -> Result<(StatusCode, Vec<u8>), Health> {
    let mut headers = HeaderMap::new();
    if let Some(authorization) = &upstream.authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    let uri = format!("{}{path}", upstream.config.path).parse().map_err(|_| Health::Failing)?;
    let outgoing = Outgoing { method: Method::GET, uri, headers, body: Bytes::new() };
    let (response, mut lease) = match upstream.connections.send(&outgoing).await {
        Ok(answered) => answered,
        Err(SendError::Connect(_)) => return Err(Health::Unreachable),
        Err(SendError::Broken(_)) => return Err(Health::Failing),
    };
    let status = response.status();
    let body = read_all(&mut lease, response.into_body()).await.ok_or(Health::Failing)?;
    lease.give_back();
    Ok((status, body))
}

/// The body of an answer, unless it breaks off or is too long.
async fn read_all(lease: &mut Lease, mut body: Incoming) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| lease.poll_frame(&mut body, cx)).await {
        if let Ok(piece) = frame.ok()?.into_data() {
            whole.extend_from_slice(&piece);
        }
        if whole.len() > MAX_ANSWER_BYTES {
            return None;
        }
    }
    Some(whole)
}
