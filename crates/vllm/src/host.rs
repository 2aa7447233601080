//! The plug-in without Python: what vLLM's scheduler reports, and what it is told.

use outrank_core::{End, OrderBook, Rank, Request, RequestId, StepSample, Timestamp, Trust, UnsuitedPolicy};
use serde::Serialize;
use thiserror::Error;

use crate::settings::{Settings, SettingsError};
use crate::worker::{Job, Said, Worker};

/// Steps between two reports of the tokens that running requests have generated ...
const REPORT_TOKENS_STEPS: u64 = 8;
/// ... and where nobody waits for a seat, so that nothing is decided by them.
const IDLE_REPORT_TOKENS_STEPS: u64 = 64;
/// Units of priority in one unit of a policy's key.
const KEY_UNITS: f64 = 1e6;
/// What a promotion takes off a priority: more than any key.
const PROMOTED: i64 = 1 << 60;

/// The plug-in cannot start.
#[derive(Debug, Error)]
pub enum HostError {
    /// The settings are at fault.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The policy cannot be served.
    #[error(transparent)]
    Policy(#[from] UnsuitedPolicy),
    /// No thread to score on.
    #[error("cannot start the scoring thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What is known of a request when it arrives.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// Names the request; the caller never uses a number twice.
    pub number: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Its output limit in tokens.
    pub max_tokens: u32,
    /// Its true length in tokens, in benchmarks: what `oracle-sjf` reads, and nothing else.
    pub true_tokens: Option<u32>,
    /// Whether the limit is the recorded length of a benchmark: then it is no secret to the engine only, and predictions
    /// must not read it.
    pub limit_is_recorded: bool,
}

/// Figures for metrics.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Status {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests with a seat.
    pub running: usize,
    /// Scores that came.
    pub scored: u64,
    /// Times that a ranker was learned.
    pub learned: u64,
    /// Tau-b on unseen answers of the ranker learned last.
    pub learned_tau_b: Option<f64>,
    /// Concordance of lengths and scores, as the monitor sees it.
    pub concordance: Option<f64>,
    /// Whether scores order the queue.
    pub trusted: bool,
    /// Requests that ended with their answer.
    pub finished: u64,
    /// Times that a seat changed hands by advice.
    pub seat_preemptions: u64,
    /// Promotions by starvation prevention.
    pub promotions: u64,
    /// Expected seconds until all who wait have been served.
    pub backlog_s: f64,
    /// Measured seconds of a step without prefill.
    pub decode_s: f64,
    /// Measured seconds that a prefill token adds.
    pub prefill_s: f64,
}

impl Status {
    /// As a JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| error.to_string())
    }
}

/// The plug-in: order, scores and what is learned.
#[derive(Debug)]
pub struct Host {
    book: OrderBook,
    worker: Worker,
    /// Whether anything is done with prompts.
    reads_prompts: bool,
    /// Calls of [`Host::reports_due`].
    orders: u64,
    /// When the output of the step before came, unless nothing ran after it.
    measured_s: Option<f64>,
    scored: u64,
    learned: (u64, Option<f64>),
    seat_preemptions: u64,
}

impl Host {
    /// A plug-in for an engine with so many seats.
    ///
    /// # Errors
    /// [`HostError`] says what is wrong with the settings.
    pub fn new(settings: &Settings, seats: u32) -> Result<Self, HostError> {
        let policy = settings.policy()?;
        let reads_scores = matches!(settings.policy.as_str(), "outrank" | "ltr" | "sjf");
        let ranker = if reads_scores { settings.load_ranker()? } else { None };
        let learn = settings.learn && reads_scores;
        Ok(Self {
            book: OrderBook::stepped_by(
                policy,
                seats,
                settings.service(),
                settings.unscored_tokens,
                settings.monitor,
            )?,
            reads_prompts: learn || ranker.is_some(),
            worker: Worker::start(ranker, learn)?,
            orders: 0,
            measured_s: None,
            scored: 0,
            learned: (0, None),
            seat_preemptions: 0,
        })
    }

    /// A request arrives at `now_s` (seconds on a clock that never goes back). Returns its priority, or `None` if its number
    /// is in use.
    pub fn submit(&mut self, now_s: f64, arrival: &Arrival) -> Option<i64> {
        let now = Timestamp::from_secs_f64(now_s);
        let request = Request {
            true_tokens: arrival.true_tokens,
            limit_is_recorded: arrival.limit_is_recorded,
            ..Request::new(arrival.number, now, arrival.prompt_tokens.max(1), arrival.max_tokens.max(1))
        };
        let key = self.book.submit(now, request, None)?;
        Some((key.value() * KEY_UNITS) as i64)
    }

    /// Whether prompts are scored or learned from.
    pub fn reads_prompts(&self) -> bool {
        self.reads_prompts
    }

    /// Hands over the prompt of a request to be scored on the worker's thread.
    pub fn score(&self, number: u64, prompt: String) {
        self.worker.send(Job::Score(number, prompt));
    }

    /// Takes in the scores that came, follows the load, and returns (number, priority) of the requests whose priority
    /// changed; the last of several counts.
    pub fn changed(&mut self, now_s: f64) -> Vec<(u64, i64)> {
        let now = Timestamp::from_secs_f64(now_s);
        let mut asks = false;
        for said in self.worker.heard() {
            match said {
                Said::Score(number, score) => {
                    self.scored += 1;
                    self.book.scored(now, RequestId(number), score);
                }
                Said::Learned(tau_b) => self.learned = (self.learned.0 + 1, Some(tau_b)),
                Said::Asks => asks = true,
            }
        }
        if asks {
            let running = self.book.running();
            self.worker
                .send(Job::Running(running.map(|(id, tokens, limit)| (id.0, tokens, limit)).collect()));
        }
        let changed = self.book.changed(now);
        changed.into_iter().map(|(id, rank)| (id.0, priority(rank))).collect()
    }

    /// Requests that should lose their seat now; none while `free_seats` are free.
    pub fn victims(&mut self, now_s: f64, free_seats: usize) -> Vec<u64> {
        let victims = self.book.victims(Timestamp::from_secs_f64(now_s), free_seats);
        self.seat_preemptions += victims.len() as u64;
        victims.into_iter().map(|id| id.0).collect()
    }

    /// To be asked before each step: whether nobody shall take one of these free seats in it ([`OrderBook::gathers`]).
    pub fn gathers(&mut self, free_seats: usize) -> bool {
        self.book.gathers(free_seats)
    }

    /// A request took a seat.
    pub fn started(&mut self, number: u64) {
        self.book.started(RequestId(number));
    }

    /// A request lost its seat. Returns its priority in the queue, or `None` if it had no seat.
    pub fn paused(&mut self, now_s: f64, number: u64) -> Option<i64> {
        self.book.paused(Timestamp::from_secs_f64(now_s), RequestId(number)).map(priority)
    }

    /// A running request has generated so many tokens by now.
    pub fn generated(&mut self, number: u64, tokens: u32) {
        self.book.generated(RequestId(number), tokens);
    }

    /// To be asked before every step: whether [`Host::generated`] is to be called before this one. Every few steps are enough for
    /// policies that do not read the tokens of running requests in every step.
    pub fn reports_due(&mut self) -> bool {
        self.orders += 1;
        let waits = self.book.occupancy().0 > 0;
        let every_steps = if waits { REPORT_TOKENS_STEPS } else { IDLE_REPORT_TOKENS_STEPS };
        self.orders.is_multiple_of(every_steps) || self.book.follows_every_token()
    }

    /// The host ran a step.
    pub fn stepped(&mut self) {
        self.book.stepped();
    }

    /// The output of a step with so many prefill tokens and decodes has come; `busy` if requests go on running. A step took from the
    /// output before to its own; what follows an idle time says nothing of a step.
    pub fn measured(&mut self, now_s: f64, prefill_tokens: u32, decodes: u32, busy: bool) {
        let before_s = std::mem::replace(&mut self.measured_s, busy.then_some(now_s));
        if let (Some(before_s), 1..) = (before_s, prefill_tokens + decodes) {
            let took_s = now_s - before_s;
            self.book.step_took(&StepSample { prefill_tokens, decodes, took_s, ..StepSample::default() });
        }
    }

    /// A request left; the length of one that stopped by itself, or was capped, is learned from.
    pub fn ended(&mut self, now_s: f64, number: u64, tokens: u32, end: End) {
        self.book.ended(Timestamp::from_secs_f64(now_s), RequestId(number), tokens, end);
        let length = (end != End::Aborted && tokens > 0).then_some((tokens, end == End::Capped));
        self.worker.send(Job::Ended(number, length));
    }

    /// Figures for metrics.
    pub fn status(&self) -> Status {
        let (waiting, running) = self.book.occupancy();
        let service = self.book.service();
        Status {
            waiting,
            running,
            scored: self.scored,
            learned: self.learned.0,
            learned_tau_b: self.learned.1,
            concordance: self.book.monitor().concordance().map(|(ratio, _)| ratio),
            trusted: self.book.trust() == Trust::Trusted,
            finished: self.book.finished(),
            seat_preemptions: self.seat_preemptions,
            promotions: self.book.promotions(),
            backlog_s: self.book.backlog_s(),
            decode_s: service.decode_s,
            prefill_s: service.prefill_s,
        }
    }
}

/// vLLM's priority, lower first: the key in microseconds, or millionths of a token; promoted requests ahead of all.
fn priority(rank: Rank) -> i64 {
    let key = (rank.key.value() * KEY_UNITS) as i64;
    if rank.band == 0 { key.saturating_sub(PROMOTED) } else { key }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
