//! The time of a gateway: it never goes back, whatever happens to the clock on the wall.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrank_core::Timestamp;

/// Monotonic time since the start, and the wall clock as it was then. The wall is read once: when it is set later, neither the
/// order of requests nor a deadline or a stamped priority moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    started_unix: Duration,
}

impl Clock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "the one look at the wall")]
    pub(crate) fn start() -> Self {
        Self::start_at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// A clock that starts now, with this on the wall.
    pub(crate) fn start_at(started_unix: Duration) -> Self {
        Self { started: Instant::now(), started_unix }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    /// The time at an instant.
    pub(crate) fn at(&self, instant: Instant) -> Timestamp {
        Timestamp::ZERO + instant.saturating_duration_since(self.started)
    }

    /// Seconds since the Unix epoch at a time of this clock; before the start where `seconds` is negative.
    pub(crate) fn unix_s(&self, seconds: f64) -> f64 {
        self.started_unix.as_secs_f64() + seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_what_was_on_the_wall_at_the_start() {
        for wall in [Duration::ZERO, Duration::from_secs(4_000_000_000)] {
            let clock = Clock::start_at(wall);
            let (first, second) = (clock.now(), clock.now());
            assert!(first <= second && second.secs_f64() < 60.0);
            assert!((clock.unix_s(1.5) - wall.as_secs_f64() - 1.5).abs() < 1e-6);
        }
    }
}
