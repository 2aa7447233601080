//! Answers as a stream of server-sent events, a chunk for each token.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use crate::flight::{Flight, Piece};
use crate::wire::{Envelope, StreamOptions, UsageBody, Wire};

/// Silence after which a comment is sent, so that proxies keep the connection of a waiting request open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx not to collect the stream.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with the outputs as they come. The response owns the flight: dropping it cancels the request.
pub(crate) fn stream<W: Wire>(flight: Flight, options: StreamOptions) -> Response {
    let chunks = Chunks::<W>::new(flight, options);
    let events = stream::unfold(chunks, |mut chunks| async move {
        let data = chunks.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), chunks))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// A flight as the data of events.
struct Chunks<W> {
    flight: Flight,
    options: StreamOptions,
    /// Which outputs have begun: their first chunk tells the role.
    opened: Vec<bool>,
    /// Made, but not sent yet.
    ready: VecDeque<String>,
    ended: bool,
    wire: std::marker::PhantomData<W>,
}

impl<W: Wire> Chunks<W> {
    fn new(flight: Flight, options: StreamOptions) -> Self {
        let opened = vec![false; flight.choices()];
        Self { flight, options, opened, ready: VecDeque::new(), ended: false, wire: std::marker::PhantomData }
    }

    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            match self.flight.next().await {
                Some(Ok((index, piece))) => self.push_piece(index, piece),
                Some(Err(error)) => {
                    self.ready.push_back(error.body().to_string());
                    self.ended = true;
                }
                None => self.push_end(),
            }
        }
        self.ready.pop_front()
    }

    fn push_piece(&mut self, index: usize, piece: Piece) {
        if !std::mem::replace(&mut self.opened[index], true)
            && let Some(choice) = W::opening(index)
        {
            self.push_choice(choice);
        }
        self.push_choice(match piece {
            Piece::Token { text, logprob } => W::delta(index, &text, logprob.as_ref()),
            Piece::End(reason) => W::closing(index, reason),
        });
    }

    fn push_end(&mut self) {
        if self.options.include_usage {
            self.push(Vec::new(), Some(Some(self.flight.usage())));
        }
        self.ready.push_back("[DONE]".into());
        self.ended = true;
    }

    fn push_choice(&mut self, choice: Value) {
        let so_far = self.options.continuous_usage.then(|| self.flight.usage());
        self.push(vec![choice], self.options.include_usage.then_some(so_far));
    }

    fn push(&mut self, choices: Vec<Value>, usage: Option<Option<UsageBody>>) {
        let envelope = Envelope {
            id: self.flight.completion_id(),
            object: W::CHUNK_OBJECT,
            created: self.flight.created(),
            model: self.flight.model(),
            choices,
            usage,
        };
        // Strings, numbers and maps with text keys always serialise.
        self.ready.extend(serde_json::to_string(&envelope));
    }
}
