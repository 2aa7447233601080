//! The circuit breaker of an upstream.

use std::time::Duration;

use outrank_core::Timestamp;

/// Outcomes that are remembered.
const REMEMBERED: u32 = 20;
/// Failures in a row that open the breaker.
const MAX_FAILURES_IN_A_ROW: u32 = 5;
/// Outcomes before their share of failures counts.
const MIN_OUTCOMES: u32 = 10;
/// How long it stays open the first time; then twice as long each time ...
const FIRST_OPEN: Duration = Duration::from_secs(1);
/// ... and at most so long.
const MAX_OPEN: Duration = Duration::from_secs(30);

/// Whether requests may be sent to an upstream, judged by how the last ones ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// All is well.
    Closed,
    /// Nothing is sent until then.
    Open(Timestamp),
    /// One request is on trial.
    HalfOpen,
}

/// A circuit breaker.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    state: State,
    /// The newest outcomes, the newest in the lowest bit; 1 is a failure.
    outcomes: u32,
    known: u32,
    /// How long it opens next.
    open_for: Duration,
    opened: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, outcomes: 0, known: 0, open_for: FIRST_OPEN, opened: 0 }
    }
}

impl Breaker {
    /// Whether a request may be sent now.
    pub(crate) fn allows(&self, now: Timestamp) -> bool {
        match self.state {
            State::Closed => true,
            State::Open(until) => now >= until,
            State::HalfOpen => false,
        }
    }

    /// A request is sent: after a time of being open, it is the one on trial.
    pub(crate) fn sent(&mut self, now: Timestamp) {
        if matches!(self.state, State::Open(until) if now >= until) {
            self.state = State::HalfOpen;
        }
    }

    /// A request went well.
    pub(crate) fn succeeded(&mut self) {
        if self.state == State::HalfOpen {
            *self = Self { opened: self.opened, ..Self::default() };
        }
        self.note(false);
    }

    /// The request left before anything could be said of the upstream.
    pub(crate) fn abandoned(&mut self, now: Timestamp) {
        if self.state == State::HalfOpen {
            // Somebody else is put on trial at once.
            self.state = State::Open(now);
        }
    }

    /// The upstream failed a request. Returns whether that opened the breaker.
    pub(crate) fn failed(&mut self, now: Timestamp) -> bool {
        self.note(true);
        let failures = self.outcomes.count_ones();
        let in_a_row = self.outcomes.trailing_ones();
        let trips = match self.state {
            State::HalfOpen => true,
            State::Open(_) => false,
            State::Closed => {
                in_a_row >= MAX_FAILURES_IN_A_ROW
                    || (self.known >= MIN_OUTCOMES && failures * 2 >= self.known)
            }
        };
        if trips {
            self.state = State::Open(now + self.open_for);
            self.open_for = (self.open_for * 2).min(MAX_OPEN);
            self.opened += 1;
            (self.outcomes, self.known) = (0, 0);
        }
        trips
    }

    /// Closed (0), half open (1) or open (2), for metrics.
    pub(crate) fn level(&self, now: Timestamp) -> i64 {
        match self.state {
            State::Closed => 0,
            State::Open(until) if now < until => 2,
            State::Open(_) | State::HalfOpen => 1,
        }
    }

    /// Times that it has opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    fn note(&mut self, failure: bool) {
        self.outcomes = (self.outcomes << 1 | u32::from(failure)) & ((1 << REMEMBERED) - 1);
        self.known = (self.known + 1).min(REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_puts_one_request_on_trial_after_a_while() {
        let mut breaker = Breaker::default();
        assert!((0..4).all(|_| !breaker.failed(at(0.0))) && breaker.allows(at(0.0)));
        assert!(breaker.failed(at(0.0)) && !breaker.allows(at(0.9)) && breaker.allows(at(1.0)));
        breaker.sent(at(1.0));
        assert!(!breaker.allows(at(1.0)), "one is enough");
        assert!(
            breaker.failed(at(1.5)) && !breaker.allows(at(3.4)) && breaker.allows(at(3.5)),
            "twice as long"
        );
        breaker.sent(at(3.5));
        breaker.succeeded();
        assert!(breaker.allows(at(3.5)) && breaker.level(at(3.5)) == 0 && breaker.opened() == 2);
        assert!((0..4).all(|_| !breaker.failed(at(4.0))), "what was before is forgotten");
    }

    #[test]
    fn half_of_many_failing_is_too_much_and_a_few_are_not() {
        let mut breaker = Breaker::default();
        let opened_at = (0..40).find(|nth| {
            if nth % 2 == 0 {
                breaker.failed(at(0.0))
            } else {
                breaker.succeeded();
                false
            }
        });
        assert!(opened_at.is_some_and(|nth| nth >= 9));
        let mut breaker = Breaker::default();
        for nth in 0..1000 {
            assert!(nth % 4 != 0 || !breaker.failed(at(0.0)));
            breaker.succeeded();
        }
    }

    #[test]
    fn a_client_that_leaves_during_the_trial_does_not_keep_the_breaker_half_open() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| {
            breaker.failed(at(0.0));
        });
        breaker.sent(at(2.0));
        breaker.abandoned(at(2.1));
        assert!(breaker.allows(at(2.1)));
    }

    #[test]
    fn it_never_stays_open_longer_than_the_limit() {
        let mut breaker = Breaker::default();
        let mut now = at(0.0);
        for _ in 0..20 {
            (0..5).for_each(|_| {
                breaker.failed(now);
            });
            assert!(breaker.allows(now + MAX_OPEN));
            now = now + MAX_OPEN;
            breaker.sent(now);
        }
    }
}
