//! One request from its head to the first byte of its answer: read, taken by the desk, sent, and sent again where an upstream failed
//! before a byte had come. From there on the answer is a [`Relay`].

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use outrank_core::{Placement, Score};
use outrank_http::{ApiError, Outcome, REQUEST_ID, RequestSpan, Traces, read_json_body};
use parking_lot::Mutex;

use crate::app::{App, DRAIN_RETRY_AFTER};
use crate::call::Call;
use crate::config::{Affinity, GatewayConfig};
use crate::desk::{Admitted, Ask, Refused, Turn, Verdict};
use crate::flight::{self, Flight};
use crate::headers;
use crate::records::{self, Record};
use crate::relay::{GatewayBody, Relay};
use crate::scan::Scan;
use crate::stamp::stamp;
use crate::tenants::{Class, Counted, Tenant};
use crate::trace_context;
use crate::upstream::{Lease, Outgoing, SendError, Upstream};

/// Attempts at upstreams that say that they have too much, beside the ordinary retries.
const MAX_OVERLOADED: u32 = 20;

const CLASS: HeaderName = HeaderName::from_static("x-outrank-class");
const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-outrank-timeout-ms");
const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// What a client asks for, read and checked.
struct Order {
    call: Call,
    /// What the ranker reads; `None` for prompts of token numbers.
    ranked: Option<Arc<str>>,
    body: Bytes,
    uri: Uri,
    headers: HeaderMap,
    class: Class,
    deadline: Instant,
    timeout_s: f64,
    config: Arc<GatewayConfig>,
}

/// Why an attempt brought no answer.
struct Failed {
    verdict: Verdict,
    label: &'static str,
    error: ApiError,
    /// What the upstream said, to be passed on if nobody says anything better.
    response: Option<(Response<Incoming>, Lease)>,
}

/// Why a request gets no answer of an upstream.
pub(crate) enum Unanswered {
    /// It was not accepted.
    Refused(ApiError),
    /// It was accepted, and counted where it failed.
    Failed(ApiError),
}

impl From<ApiError> for Unanswered {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

/// Serves a generation request.
pub(crate) async fn generate(
    app: &Arc<App>,
    request: Request<Incoming>,
    request_id: &str,
    chat: bool,
) -> Result<Response<GatewayBody>, Unanswered> {
    let arrival = Instant::now();
    let operation = if chat { "chat" } else { "text_completion" };
    let begin = |traces: &Arc<Traces>| traces.begin(request.headers(), arrival, operation);
    let mut span = app.traces.as_ref().map_or_else(RequestSpan::default, begin);
    let (order, flight, admitted, placement) =
        match accept(app, request, request_id, arrival, chat, &mut span).await {
            Ok(accepted) => accepted,
            Err(error) => {
                span.set_outcome(Outcome::Rejected);
                span.fail(error.code());
                return Err(error.into());
            }
        };
    run(app, order, flight, admitted, placement).await.map_err(Unanswered::Failed)
}

/// Reads a request and gives it to the desk.
async fn accept(
    app: &Arc<App>,
    request: Request<Incoming>,
    request_id: &str,
    arrival: Instant,
    chat: bool,
    span: &mut RequestSpan,
) -> Result<(Order, Flight, Admitted, Placement), ApiError> {
    let arriving = app.records.arrive();
    app.check_open()?;
    let tenants = app.tenants();
    let tenant = tenants.identify(request.headers())?.map(Arc::clone);
    let mut order = read(app, request, request_id, tenant.as_deref(), arrival, chat).await?;
    if !span.propagate(&mut order.headers) {
        trace_context::advance(&mut order.headers);
    }
    let counted = tenant.as_ref().map(|tenant| tenant.admit(arrival)).transpose()?;
    // Later it can no longer be told to an upstream that orders by itself.
    let in_time = app.desk.stamps();
    let score = if in_time { score_in_time(app, &order).await } else { None };
    let (mut flight, admitted, placement) =
        submit(app, &order, request_id, tenant.as_deref(), counted, score, arrival)?;
    let waits = matches!(admitted, Admitted::Waits(_));
    if score.is_none() && (waits || !in_time) {
        score_beside(app, &order, &flight, waits);
    }
    flight.trace(std::mem::take(span));
    drop(arriving);
    Ok((order, flight, admitted, placement))
}

async fn read(
    app: &App,
    request: Request<Incoming>,
    request_id: &str,
    tenant: Option<&Tenant>,
    arrival: Instant,
    chat: bool,
) -> Result<Order, ApiError> {
    let config = app.config();
    let class = class_of(request.headers(), tenant)?;
    let timeout = timeout_of(request.headers(), &config)?;
    let uri = request.uri().clone();
    let mut headers = request.headers().clone();
    let body = read_json_body(request, config.max_body_bytes).await?;
    let call = Call::read(&body, chat)?;
    let ranked = call.ranked_text(tenant.map(|tenant| &*tenant.name));
    headers::forwardable(&mut headers, tenant.is_some());
    if let Ok(name) = HeaderValue::try_from(request_id) {
        headers.insert(REQUEST_ID, name);
    }
    let deadline = arrival + timeout;
    Ok(Order { call, ranked, body, uri, headers, class, deadline, timeout_s: timeout.as_secs_f64(), config })
}

fn class_of(headers: &HeaderMap, tenant: Option<&Tenant>) -> Result<Class, ApiError> {
    let asked = match headers.get(CLASS) {
        None => None,
        Some(name) => Some(name.to_str().ok().and_then(Class::of).ok_or_else(|| {
            ApiError::invalid(CLASS.as_str(), "`x-outrank-class` must be interactive, default or batch")
        })?),
    };
    Ok(tenant.map_or(asked.unwrap_or_default(), |tenant| tenant.class(asked)))
}

fn timeout_of(headers: &HeaderMap, config: &GatewayConfig) -> Result<Duration, ApiError> {
    let Some(asked) = headers.get(TIMEOUT_MS) else { return Ok(config.request_timeout) };
    match asked.to_str().ok().and_then(|text| text.parse::<u64>().ok()) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms).min(config.request_timeout)),
        _ => Err(ApiError::invalid(
            TIMEOUT_MS.as_str(),
            "`x-outrank-timeout-ms` must be a whole number of milliseconds, at least 1",
        )),
    }
}

/// The score of a request that may be stamped, if it comes in time.
async fn score_in_time(app: &App, order: &Order) -> Option<Score> {
    let text = Arc::clone(order.ranked.as_ref()?);
    app.scorer().score_by(text, Instant::now() + order.config.score_deadline).await
}

/// Has a request that the desk has taken scored, while it waits for its turn or for its answer. Nobody waits for the score, so
/// where the scorer is busy and the request has its seat already, there is none.
fn score_beside(app: &App, order: &Order, flight: &Flight, waits: bool) {
    let (Some(text), Some(place)) = (&order.ranked, flight.place()) else { return };
    let scorer = app.scorer();
    if !waits && !scorer.is_idle() {
        scorer.pass_over();
        return;
    }
    let (desk, id, known) = (Arc::clone(&app.desk), place.id(), Arc::downgrade(flight.record().record()));
    scorer.ask_then(Arc::clone(text), move |score| {
        desk.scored(id, score);
        if let Some(record) = known.upgrade() {
            record.facts.lock().score = Some(score);
        }
    });
}

#[allow(clippy::too_many_arguments, reason = "all that is known of a request when it is taken")]
fn submit(
    app: &Arc<App>,
    order: &Order,
    request_id: &str,
    tenant: Option<&Tenant>,
    counted: Option<Counted>,
    score: Option<Score>,
    arrival: Instant,
) -> Result<(Flight, Admitted, Placement), ApiError> {
    let call = &order.call;
    let arrived = app.clock.at(arrival);
    let ask = Ask {
        model: call.model.clone(),
        prompt_tokens: call.prompt_tokens,
        max_tokens: call.max_tokens,
        true_tokens: call.true_tokens,
        limit_is_recorded: !call.ends_by_itself,
        score,
        lane: tenant.map_or(0, |tenant| tenant.lane),
        class: order.class,
        arrival: arrived,
        deadline: app.clock.at(order.deadline),
        affinity: affinity(order),
        streams: call.streams,
    };
    let (place, admitted, placement) = app.desk.submit(&ask).map_err(|why| refusal(why, &call.model))?;
    let record = app.records.open(Record {
        id: app.number(),
        request_id: request_id.to_owned(),
        model: call.model.clone(),
        class: order.class,
        tenant: tenant.map(|tenant| Arc::clone(&tenant.name)),
        created: app.clock.unix_s(arrived.secs_f64()),
        eta_finish_s: placement.eta.finish_s,
        desk_id: AtomicU64::new(place.id()),
        facts: Mutex::new(records::Facts { score, ..records::Facts::default() }),
        waker: AtomicWaker::new(),
        stop: AtomicBool::new(false),
    });
    let facts = flight::Facts {
        text: call.text.clone(),
        ranked: order.ranked.clone(),
        prompt_tokens: call.prompt_tokens,
        limit_tokens: if call.ends_by_itself { call.max_tokens } else { u32::MAX },
        outputs: call.outputs,
        ends_by_itself: call.ends_by_itself,
        length_counts: call.ends_by_itself || call.true_tokens.is_some(),
        arrival,
    };
    Ok((Flight::new(Arc::clone(app), place, record, facts, counted), admitted, placement))
}

/// What requests of the same conversation have in common.
fn affinity(order: &Order) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    /// Bytes of a prompt that make it the beginning of the same conversation.
    const PREFIX_BYTES: usize = 512;
    let mut hasher = DefaultHasher::new();
    match order.config.affinity {
        Affinity::None => return None,
        Affinity::Session => {
            let header = order.headers.get(SESSION).map(HeaderValue::as_bytes);
            header.or(order.call.user.as_deref().map(str::as_bytes))?.hash(&mut hasher);
        }
        Affinity::Prefix => {
            let text = order.call.text.as_deref()?.as_bytes();
            text[..text.len().min(PREFIX_BYTES)].hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

/// Sends the request when its turn comes, and again where an upstream failed it before a byte had come.
async fn run(
    app: &Arc<App>,
    order: Order,
    mut flight: Flight,
    mut admitted: Admitted,
    placement: Placement,
) -> Result<Response<GatewayBody>, ApiError> {
    let (mut retries, mut overloaded) = (0, 0);
    loop {
        let turn = match turn(app, &order, admitted).await {
            Ok(turn) => turn,
            Err(error) => return Err(give_up(flight, Verdict::None, "gave_up_waiting", error)),
        };
        flight.send_to(&turn.upstream);
        let failed = match attempt(&order, &turn).await {
            Ok((response, lease, first)) => {
                flight.hold(lease);
                return Ok(answer(&order, flight, response, first, &placement));
            }
            Err(failed) => failed,
        };
        let Failed { verdict, label, error, response } = failed;
        app.metrics.count_upstream_error(&turn.upstream.name, label);
        let may_retry = match verdict {
            Verdict::Overloaded { .. } => {
                overloaded += 1;
                overloaded <= MAX_OVERLOADED
            }
            _ => {
                retries += 1;
                retries <= order.config.max_retries
            }
        };
        if !may_retry || Instant::now() >= order.deadline {
            return match response {
                Some((response, lease)) => {
                    flight.hold(lease);
                    Ok(answer(&order, flight, response, None, &placement))
                }
                None => Err(give_up(flight, verdict, label, error)),
            };
        }
        drop(response);
        flight.let_go();
        tracing::debug!(upstream = turn.upstream.name, label, "sent again");
        app.metrics.retries.inc();
        let again = match flight.place() {
            Some(place) => place.again(verdict),
            None => return Err(error),
        };
        admitted = match again {
            Ok(admitted) => admitted,
            Err(_) => return Err(give_up(flight, Verdict::None, label, error)),
        };
    }
}

fn give_up(flight: Flight, verdict: Verdict, label: &'static str, error: ApiError) -> ApiError {
    flight.fail(&Scan::default(), verdict, label);
    error
}

/// Waits for the turn of a request.
async fn turn(app: &App, order: &Order, admitted: Admitted) -> Result<Turn, ApiError> {
    let waits = match admitted {
        Admitted::Now(turn) => return Ok(turn),
        Admitted::Waits(waits) => waits,
    };
    tokio::select! {
        biased;
        woken = waits => match woken {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(refused)) => Err(refusal(refused, &order.call.model)),
            Err(_) => Err(ApiError::internal("the desk forgot the request")),
        },
        () = app.stop.cancelled() => Err(ApiError::shutting_down(DRAIN_RETRY_AFTER)),
        () = tokio::time::sleep_until(order.deadline.into()) => Err(ApiError::deadline_exceeded(order.timeout_s)),
    }
}

type Begun = (Response<Incoming>, Lease, Option<Bytes>);

/// Sends a request and waits for the first byte of its answer.
async fn attempt(order: &Order, turn: &Turn) -> Result<Begun, Failed> {
    let Order { call, config, .. } = order;
    let upstream = &turn.upstream;
    let mut headers = order.headers.clone();
    if let Some(authorization) = &upstream.authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    let body = match turn.stamp {
        Some(deadline_s) => stamp(upstream.stamp, deadline_s, &order.body, call.has_priority, &mut headers),
        None => order.body.clone(),
    };
    let uri = uri_at(upstream, &order.uri).ok_or_else(|| {
        let error = ApiError::internal("the path cannot be sent on");
        Failed { verdict: Verdict::None, label: "path", error, response: None }
    })?;
    let outgoing = Outgoing { method: Method::POST, uri, headers, body };
    let patience = config.first_byte_timeout.min(order.deadline.saturating_duration_since(Instant::now()));
    match tokio::time::timeout(patience, begin(upstream, &outgoing)).await {
        Ok(result) => result,
        Err(_) if Instant::now() >= order.deadline => {
            let error = ApiError::deadline_exceeded(order.timeout_s);
            Err(Failed { verdict: Verdict::None, label: "deadline", error, response: None })
        }
        Err(_) => {
            let error = ApiError::upstream_timeout(patience.as_secs_f64());
            Err(Failed { verdict: Verdict::Failed, label: "silent", error, response: None })
        }
    }
}

fn uri_at(upstream: &Upstream, asked: &Uri) -> Option<Uri> {
    let path = asked.path_and_query().map_or("/", |path| path.as_str());
    format!("{}{path}", upstream.config.path).parse().ok()
}

async fn begin(upstream: &Upstream, outgoing: &Outgoing) -> Result<Begun, Failed> {
    let failed = |verdict, label, why: &dyn std::fmt::Display| Failed {
        verdict,
        label,
        error: ApiError::upstream_failed(&why.to_string()),
        response: None,
    };
    let (mut response, mut lease) = match upstream.connections.send(outgoing).await {
        Ok(answered) => answered,
        Err(error @ SendError::Connect(_)) => return Err(failed(Verdict::Unreachable, "connect", &error)),
        Err(error @ SendError::Broken(_)) => return Err(failed(Verdict::Failed, "broken", &error)),
    };
    let status = response.status();
    let (verdict, label) = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = response.headers().get(header::RETRY_AFTER);
            let retry_after_s = seconds.and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
            (Verdict::Overloaded { retry_after_s }, "overloaded")
        }
        _ if status.is_server_error() => (Verdict::Failed, "status_5xx"),
        _ => {
            return match first_piece(&mut lease, response.body_mut()).await {
                Ok(first) => Ok((response, lease, first)),
                Err(error) => {
                    Err(failed(Verdict::Failed, "broken", &format!("its answer broke off ({error})")))
                }
            };
        }
    };
    let error = ApiError::upstream_failed(&format!("it answered {status}"));
    Err(Failed { verdict, label, error, response: Some((response, lease)) })
}

/// Waits until the answer really begins: until then it can be asked for again elsewhere.
async fn first_piece(lease: &mut Lease, body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = poll_fn(|cx| lease.poll_frame(body, cx)).await {
        if let Ok(piece) = frame?.into_data()
            && !piece.is_empty()
        {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

/// The answer, from its first byte on.
fn answer(
    order: &Order,
    mut flight: Flight,
    response: Response<Incoming>,
    first: Option<Bytes>,
    placement: &Placement,
) -> Response<GatewayBody> {
    let (mut parts, body) = response.into_parts();
    headers::answerable(&mut parts.headers);
    let record = flight.record().record();
    let score = record.facts.lock().score;
    let upstream = record.facts.lock().upstream.clone();
    headers::tell(&mut parts.headers, placement, score, flight.queued_s(), upstream.as_deref());
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let streamed = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
    let answered = parts.status.is_success();
    flight.span().set("http.response.status_code", i64::from(parts.status.as_u16()));
    let relay = Relay::new(
        body,
        first,
        flight,
        streamed,
        answered,
        order.config.stall_timeout,
        order.deadline,
        order.timeout_s,
    );
    Response::from_parts(parts, GatewayBody::Relay(Box::new(relay)))
}

/// What a client is told of a request that is not taken.
fn refusal(why: Refused, model: &str) -> ApiError {
    let after = Duration::from_secs_f64;
    match why {
        Refused::QueueFull { limit, retry_after_s } => ApiError::queue_full(limit, after(retry_after_s)),
        Refused::TenantQueueFull { limit, retry_after_s } => {
            ApiError::tenant_queue_full(limit, after(retry_after_s))
        }
        Refused::WouldWait { wait_s, retry_after_s } => ApiError::would_wait(wait_s, after(retry_after_s)),
        Refused::NoUpstream { retry_after_s } => ApiError::no_upstream(after(retry_after_s)),
        Refused::UnknownModel => ApiError::model_not_served(model),
    }
}
