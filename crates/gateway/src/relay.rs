//! An answer on its way through: the bytes as they came, read along, with an eye on the clock.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use outrank_http::ApiError;
use tokio::time::Sleep;

use crate::desk::Verdict;
use crate::flight::Flight;
use crate::scan::Scan;

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
    ended: bool,
}

/// Why an answer breaks off.
enum Broken {
    Upstream(String),
    Stalled(Duration),
    Deadline,
    Stopped,
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
        self.first.is_none() && self.inner.is_end_stream()
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
        if self.flight.is_none() {
            self.ended = true;
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.last_piece = Instant::now();
                Poll::Ready(match frame.into_data() {
                    Ok(piece) => self.pass(piece),
                    Err(trailers) => Some(Ok(trailers)),
                })
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(self.break_off(Broken::Upstream(format!("its answer broke off ({error})"))))
            }
            Poll::Ready(None) => {
                self.finish();
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_clock(cx),
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
