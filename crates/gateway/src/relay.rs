//! An answer on its way through: the bytes as they came, read along, with an eye on the clock.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use outrank_http::ApiError;
use tokio::time::Sleep;

use crate::desk::Verdict;
use crate::flight::Flight;
use crate::scan::Scan;

/// Bytes that go on as one piece, at most.
const MAX_GATHERED_BYTES: usize = 16 << 10;

/// Whatever went wrong with a body.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response of the gateway.
pub(crate) enum GatewayBody {
    /// Of the gateway's own making.
    Own(axum::body::Body),
    /// An upstream's answer.
    Relay(Box<Relay>),
}

/// An upstream's answer.
pub(crate) struct Relay {
    inner: Incoming,
    /// What was taken from `inner` to see whether an answer begins.
    first: Option<Bytes>,
    flight: Option<Flight>,
    scan: Scan,
    /// Whether it is an answer, and not a refusal.
    answered: bool,
    stall_timeout: Duration,
    deadline: Instant,
    /// The time that the request had in all, in seconds.
    timeout_s: f64,
    last_piece: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// The upstream has said all.
    inner_ended: bool,
    /// Its answer broke off, after pieces that go on first.
    broken: Option<String>,
    ended: bool,
}

/// Pieces that came at once.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    more: BytesMut,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        // One piece alone goes on without a copy.
        if self.first.is_empty() && self.more.is_empty() {
            self.first = piece;
            return;
        }
        self.more.extend_from_slice(&std::mem::take(&mut self.first));
        self.more.extend_from_slice(&piece);
    }

    fn take(self) -> Option<Bytes> {
        let whole = if self.more.is_empty() { self.first } else { self.more.freeze() };
        (!whole.is_empty()).then_some(whole)
    }
}

/// Why an answer breaks off.
enum Broken {
    Upstream(String),
    Stalled(Duration),
    Deadline,
    Stopped,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.leave(&self.scan);
        }
    }
}

impl Relay {
    #[allow(clippy::too_many_arguments, reason = "all that is known of an answer when it begins")]
    pub(crate) fn new(
        inner: Incoming,
        first: Option<Bytes>,
        flight: Flight,
        streamed: bool,
        answered: bool,
        stall_timeout: Duration,
        deadline: Instant,
        timeout_s: f64,
    ) -> Self {
        Self {
            inner,
            first,
            flight: Some(flight),
            scan: Scan::new(streamed),
            answered,
            stall_timeout,
            deadline,
            timeout_s,
            last_piece: Instant::now(),
            timer: None,
            inner_ended: false,
            broken: None,
            ended: false,
        }
    }

    fn pass(&mut self, piece: Bytes) -> Option<Result<Frame<Bytes>, BodyError>> {
        let outputs = self.scan.feed(&piece);
        if let Some(flight) = &mut self.flight {
            flight.outputs(outputs, self.scan.tokens());
        }
        if self.inner_has_ended() {
            self.finish();
        }
        Some(Ok(Frame::data(piece)))
    }

    /// Whether the last piece has come, so that the seat is free before the client has read it.
    fn inner_has_ended(&self) -> bool {
        self.first.is_none() && (self.inner_ended || self.inner.is_end_stream())
    }

    /// The upstream has said all.
    fn finish(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        self.scan.end();
        // A stream that reported an error, or that is no stream at all, is no good work.
        let empty = self.scan.is_stream() && self.answered && self.scan.tokens() == 0 && !self.scan.done;
        if self.scan.failed {
            flight.fail(&self.scan, Verdict::Failed, "error_event");
        } else if empty {
            flight.fail(&self.scan, Verdict::Failed, "malformed_stream");
        } else {
            flight.complete(&self.scan, self.answered);
        }
    }

    /// The answer breaks off. Clients of a stream are told so in an event; others see that the body is not whole.
    fn break_off(&mut self, why: Broken) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.ended = true;
        let (error, verdict, label) = match why {
            Broken::Upstream(why) => (ApiError::upstream_failed(&why), Verdict::Failed, "broken_stream"),
            Broken::Stalled(waited) => {
                (ApiError::upstream_timeout(waited.as_secs_f64()), Verdict::Failed, "stalled")
            }
            Broken::Deadline => (ApiError::deadline_exceeded(self.timeout_s), Verdict::None, "deadline"),
            Broken::Stopped => (ApiError::shutting_down(Duration::from_secs(5)), Verdict::None, "stopped"),
        };
        if let Some(flight) = self.flight.take() {
            flight.fail(&self.scan, verdict, label);
        }
        if !self.scan.is_stream() {
            return Some(Err(error.code().into()));
        }
        let separator = if self.scan.is_within_line() { "\n\n" } else { "" };
        Some(Ok(Frame::data(format!("{separator}data: {}\n\n", error.body()).into())))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(piece) = self.first.take() {
            return Poll::Ready(self.pass(piece));
        }
        if let Some(why) = self.broken.take() {
            return Poll::Ready(self.break_off(Broken::Upstream(why)));
        }
        if self.flight.is_none() {
            self.ended = true;
            return Poll::Ready(None);
        }
        self.poll_upstream(cx)
    }

    /// What has come from the upstream; several pieces that are there at once go on as one.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut gathered = Gathered::default();
        while let Some(flight) = &mut self.flight {
            match flight.poll_frame(&mut self.inner, cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => gathered.add(piece),
                    // Nobody asked for trailers (TE is not forwarded).
                    Err(_) => continue,
                },
                Poll::Ready(Some(Err(error))) => {
                    self.broken = Some(format!("its answer broke off ({error})"));
                    break;
                }
                Poll::Ready(None) => {
                    self.inner_ended = true;
                    break;
                }
                Poll::Pending => break,
            }
            if gathered.bytes >= MAX_GATHERED_BYTES {
                break;
            }
        }
        if let Some(piece) = gathered.take() {
            self.last_piece = Instant::now();
            return Poll::Ready(self.pass(piece));
        }
        if self.inner_ended {
            self.finish();
            self.ended = true;
            return Poll::Ready(None);
        }
        match self.broken.take() {
            Some(why) => Poll::Ready(self.break_off(Broken::Upstream(why))),
            None => self.poll_clock(cx),
        }
    }

    /// Nothing has come. The timer is set once and looks, when it goes off, how long the silence really was.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(flight) = &self.flight {
            flight.record().record().waker.register(cx.waker());
            if flight.is_stopped() {
                return Poll::Ready(self.break_off(Broken::Stopped));
            }
        }
        loop {
            let due = (self.last_piece + self.stall_timeout).min(self.deadline);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(self.break_off(Broken::Deadline));
            }
            if now >= self.last_piece + self.stall_timeout {
                return Poll::Ready(self.break_off(Broken::Stalled(self.stall_timeout)));
            }
            timer.as_mut().reset((self.last_piece + self.stall_timeout).min(self.deadline).into());
        }
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            // A length that the upstream announced is in the headers.
            Self::Relay(_) => SizeHint::default(),
        }
    }
}
