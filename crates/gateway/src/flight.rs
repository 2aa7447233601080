//! An accepted request under way, and its books. Dropping a [`Flight`] at any point frees whatever the request holds, here and at
//! the upstream, and closes the books: a client that vanishes needs no code anywhere else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::Frame;
use hyper::body::Incoming;
use outrank_core::{End, Score};
use outrank_http::{Answer, LocalLatency, Outcome, RequestSpan, Served};

use crate::app::App;
use crate::config::Mode;
use crate::desk::{Ending, Place, Verdict};
use crate::journal::Line;
use crate::records::{OpenRecord, Running};
use crate::scan::{Finish, Scan};
use crate::tenants::Counted;
use crate::upstream::{Lease, Upstream};

/// What a flight knows of its request.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) text: Option<Arc<str>>,
    /// The same, with what the ranker reads beside it.
    pub(crate) ranked: Option<Arc<str>>,
    pub(crate) prompt_tokens: u32,
    /// Output limit in tokens, as far as predictions may know it: not one that the answer is meant to reach.
    pub(crate) limit_tokens: u32,
    pub(crate) outputs: u32,
    /// Whether the length of the answer says something about the model.
    pub(crate) ends_by_itself: bool,
    /// Whether its length can be held against its prediction: it may end by itself, or repeats a recorded length.
    pub(crate) length_counts: bool,
    pub(crate) arrival: Instant,
}

/// An accepted request under way.
pub(crate) struct Flight {
    app: Arc<App>,
    place: Option<Place>,
    lease: Option<Lease>,
    upstream: Option<Arc<Upstream>>,
    record: OpenRecord,
    facts: Facts,
    sent_at: Option<Instant>,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
    itl: LocalLatency,
    outcome: Outcome,
    span: RequestSpan,
    _counted: Option<Counted>,
}

impl Flight {
    /// A request that the desk has taken.
    pub(crate) fn new(
        app: Arc<App>,
        place: Place,
        record: OpenRecord,
        facts: Facts,
        counted: Option<Counted>,
    ) -> Self {
        Self {
            app,
            place: Some(place),
            lease: None,
            upstream: None,
            record,
            facts,
            sent_at: None,
            first_at: None,
            last_at: None,
            itl: LocalLatency::default(),
            outcome: Outcome::Cancelled,
            span: RequestSpan::default(),
            _counted: counted,
        }
    }

    /// What becomes of it is said in this span.
    pub(crate) fn trace(&mut self, span: RequestSpan) {
        self.span = span;
    }

    pub(crate) fn span(&mut self) -> &mut RequestSpan {
        &mut self.span
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    pub(crate) fn record(&self) -> &OpenRecord {
        &self.record
    }

    /// It goes to an upstream.
    pub(crate) fn send_to(&mut self, upstream: &Arc<Upstream>) {
        let now = Instant::now();
        let mut facts = self.record.record().facts.lock();
        if self.sent_at.is_none() {
            let queue_s = (now - self.facts.arrival).as_secs_f64();
            self.app.metrics.host.requests.queue_wait.observe(queue_s);
            facts.queue_s = Some(queue_s);
        }
        facts.attempts += 1;
        facts.upstream = Some(upstream.name.clone());
        // One that orders by itself may keep it waiting until the first token.
        if upstream.mode == Mode::Hold {
            facts.running = self.running();
        }
        drop(facts);
        self.sent_at = Some(now);
        self.upstream = Some(Arc::clone(upstream));
    }

    /// Seconds that it waited before it was sent.
    pub(crate) fn queued_s(&self) -> f64 {
        self.record.record().facts.lock().queue_s.unwrap_or(0.0)
    }

    /// The connection that its answer comes over.
    pub(crate) fn hold(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// The next piece of its answer.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.lease {
            Some(lease) => lease.poll_frame(body, cx),
            None => Poll::Ready(None),
        }
    }

    /// Closes the connection of an attempt that failed. It waits again.
    pub(crate) fn let_go(&mut self) {
        self.lease = None;
        self.record.record().facts.lock().running = None;
    }

    /// What is to be learned while it runs.
    fn running(&self) -> Option<Running> {
        let Facts { ends_by_itself, outputs, limit_tokens, arrival, .. } = self.facts;
        let progress = Arc::clone(&self.place.as_ref()?.progress);
        let text = self.facts.ranked.clone().filter(|_| ends_by_itself && outputs == 1)?;
        Some(Running { text, limit_tokens, arrival, progress })
    }

    /// A piece of a stream came, with so many outputs.
    pub(crate) fn outputs(&mut self, outputs: u32, so_far: u32) {
        if outputs == 0 {
            return;
        }
        let now = Instant::now();
        match self.last_at.replace(now) {
            None => {
                self.first_at = Some(now);
                self.app.metrics.host.requests.ttft.observe((now - self.facts.arrival).as_secs_f64());
                if let (Some(place), Some(sent_at)) = (&self.place, self.sent_at) {
                    place.first_token((now - sent_at).as_secs_f64());
                }
                if self.upstream.as_ref().is_some_and(|it| it.mode == Mode::Stamp) {
                    self.record.record().facts.lock().running = self.running();
                }
            }
            Some(last) => self.itl.observe((now - last).as_secs_f64()),
        }
        if let Some(place) = &self.place {
            place.progress.set(so_far);
        }
    }

    /// The answer came whole. `good` tells whether the upstream did its work, `answered` whether it is an answer and not a refusal.
    pub(crate) fn complete(mut self, scan: &Scan, answered: bool) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.outcome = Outcome::Completed;
        self.close(scan, answered, Verdict::Good);
    }

    /// It was accepted, and could not be answered in full.
    pub(crate) fn fail(mut self, scan: &Scan, verdict: Verdict, error: &'static str) {
        if let (Some(upstream), true) = (&self.upstream, verdict != Verdict::None) {
            self.app.metrics.count_upstream_error(&upstream.name, error);
        }
        self.outcome = Outcome::Failed;
        self.span.fail(error);
        self.close(scan, false, verdict);
    }

    /// Its client left within the answer. How long that would have become is unknown; the journal says how far it came.
    pub(crate) fn leave(self, scan: &Scan) {
        let e2e_s = self.facts.arrival.elapsed().as_secs_f64();
        self.write_journal(scan, e2e_s, scan.tokens());
    }

    fn close(&mut self, scan: &Scan, answered: bool, verdict: Verdict) {
        let now = Instant::now();
        let tokens = scan.tokens();
        let metrics = &self.app.metrics;
        let e2e_s = (now - self.facts.arrival).as_secs_f64();
        let at_upstream_s = self.sent_at.map_or(0.0, |sent| (now - sent).as_secs_f64());
        let per_token_s = match (self.first_at, self.last_at) {
            (Some(first), Some(last)) if tokens > 2 => {
                Some((last - first).as_secs_f64() / f64::from(tokens - 1))
            }
            _ => None,
        };
        let cut = scan.finish == Some(Finish::Length) && self.facts.ends_by_itself;
        let says_something = answered && self.facts.outputs == 1 && tokens > 0;
        let end = match (says_something, cut) {
            (false, _) => End::Aborted,
            (true, true) => End::Capped,
            (true, false) => End::Stopped,
        };
        if let Some(place) = self.place.take() {
            let streamed = scan.is_stream();
            place.end(&Ending { tokens, end, verdict, e2e_s: at_upstream_s, per_token_s, streamed });
        }
        metrics.host.requests.generation_tokens.inc_by(tokens.into());
        metrics.host.requests.prompt_tokens.inc_by(scan.prompt_tokens().unwrap_or(0).into());
        metrics.malformed_lines.inc_by(scan.malformed_lines.into());
        if answered {
            metrics.host.requests.e2e.observe(e2e_s);
            metrics.host.trust.note_end(self.record.record().eta_finish_s, e2e_s);
        }
        if let Some(tenant) = &self.record.record().tenant {
            metrics.count_tenant(tenant, tokens);
        }
        let mut known = self.record.record().facts.lock();
        (known.output_tokens, known.finish, known.e2e_s) = (tokens, scan.finish, Some(e2e_s));
        known.ttft_s = self.first_at.map(|first| (first - self.facts.arrival).as_secs_f64());
        known.running = None;
        let score = known.score;
        drop(known);
        let prompt_tokens = scan.prompt_tokens().unwrap_or(self.facts.prompt_tokens);
        self.span.set_tokens(prompt_tokens.into(), tokens.into());
        if says_something {
            if self.facts.length_counts {
                metrics.host.trust.note_answer(score, tokens, cut);
            }
            let served = Served {
                arrival: self.facts.arrival,
                service_s: at_upstream_s,
                prompt_tokens: self.facts.prompt_tokens,
                limit_tokens: self.facts.limit_tokens,
                output_tokens: tokens,
                capped: cut,
                score,
            };
            metrics.host.shadow.note(served, || self.app.replay());
            if let (Some(text), true) = (&self.facts.ranked, self.facts.ends_by_itself) {
                let answer = Answer { text: Arc::clone(text), tokens, censored: cut };
                self.app.scorer().tell(self.facts.arrival, answer);
            }
        }
        self.write_journal(scan, e2e_s, tokens);
    }

    fn write_journal(&self, scan: &Scan, e2e_s: f64, tokens: u32) {
        let Some(journal) = self.app.journal() else { return };
        if tokens == 0 {
            return;
        }
        let record = self.record.record();
        let known = record.facts.lock().clone();
        let prompt = self.facts.text.as_ref().filter(|_| journal.prompts).cloned();
        let line = Line {
            prompt: prompt.unwrap_or_else(|| "".into()),
            arrival_s: record.created,
            prompt_tokens: scan.prompt_tokens().unwrap_or(self.facts.prompt_tokens),
            output_tokens: tokens,
            truncated: scan.finish == Some(Finish::Length),
            model: record.model.clone(),
            tenant: record.tenant.clone(),
            class: record.class.name(),
            score: known.score.map(Score::median_tokens),
            spread: known.score.map(Score::spread),
            outcome: self.outcome.name(),
            upstream: known.upstream,
            queue_s: known.queue_s,
            ttft_s: known.ttft_s,
            e2e_s,
            request_id: record.request_id.clone(),
            outputs: self.facts.outputs,
            ignore_eos: !self.facts.ends_by_itself,
            features: None,
            scored: self.facts.ranked.as_ref().filter(|_| journal.features).cloned(),
        };
        journal.write(line, &self.app.metrics);
    }

    /// Whether the gateway wants it to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.record.record().stop.load(Ordering::Acquire)
    }
}

impl Flight {
    /// Says in the span how it went.
    fn describe(&mut self) {
        if !self.span.is_on() {
            return;
        }
        let record = self.record.record();
        let known = record.facts.lock();
        let span = &mut self.span;
        span.set_request(&record.request_id, &record.model);
        span.set_times(known.queue_s, known.ttft_s, known.e2e_s);
        span.set_score(known.score);
        span.set_outcome(self.outcome);
        span.set("outrank.class", record.class.name());
        span.set("outrank.attempts", i64::from(known.attempts));
        if let Some(upstream) = &known.upstream {
            span.set("outrank.upstream", upstream.clone());
        }
        if let Some(sent_at) = self.sent_at {
            span.set("outrank.upstream_s", sent_at.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.describe();
        // First the connection, which cancels the work at the upstream, then the seat.
        self.lease = None;
        self.place = None;
        self.app.metrics.host.requests.itl.add(&self.itl);
        self.app.metrics.host.requests.count_request(self.outcome);
        let mut known = self.record.record().facts.lock();
        (known.outcome, known.running) = (Some(self.outcome), None);
    }
}
