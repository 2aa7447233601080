//! How much CPU time scoring may take.
//!
//! To score a request costs more than to forward it, so without a bound a flood of small requests would be served at a fraction of the
//! rate of a plain forwarder. Scoring therefore has a budget: a share of the CPU time of all cores, of which what four seconds bring
//! can be saved for bursts. Within any time of `t` seconds it takes at most `share * cores * (t + 4)` CPU seconds, and the score that
//! each thread was at. A prompt that comes while nothing is left gets no score, and its request goes by arrival among its like.
//!
//! It is a token bucket, kept as one number (the generic cell rate algorithm): when the savings will be whole again. A score moves
//! that back by what it took, divided by the share of the cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What can be saved, as time in which it comes in: on two cores some thousand prompts of 200 words, as many as a queue has by default
/// (1,024).
const MAX_SAVINGS: Duration = Duration::from_secs(4);

/// CPU time that is left for scoring. Times are since the same moment, at which the savings are whole.
#[derive(Debug)]
pub(crate) struct Budget {
    /// How long it takes for the CPU time of a score to come in again, as a multiple of that.
    recovery: f64,
    /// When the savings will be whole again, in nanoseconds.
    whole_at_ns: AtomicU64,
}

impl Budget {
    /// A share, above 0 and at most 1, of the CPU time of so many cores.
    pub(crate) fn new(share: f64, cores: usize) -> Self {
        Self { recovery: 1.0 / (share * cores.max(1) as f64), whole_at_ns: AtomicU64::new(0) }
    }

    /// Whether something is left.
    pub(crate) fn is_left(&self, now: Duration) -> bool {
        self.whole_at_ns.load(Ordering::Relaxed).saturating_sub(nanos(now)) < nanos(MAX_SAVINGS)
    }

    /// A score has taken so much. It may have been more than was left; that comes in before anything is left again.
    pub(crate) fn spend(&self, cpu: Duration, now: Duration) {
        // A cast saturates.
        let recovery_ns = (cpu.as_nanos() as f64 * self.recovery) as u64;
        let later = |whole_at: u64| Some(whole_at.max(nanos(now)).saturating_add(recovery_ns));
        // It never declines.
        let _ = self.whole_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time that the calling thread has taken: a thread that waits for a core takes none.
pub(crate) fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: f64 = 0.125;
    const CORES: usize = 2;
    const SCORE: Duration = Duration::from_micros(50);

    /// Has a prompt come every `gap` for `duration`, with scores that take `cpu`: prompts, and those that are scored.
    fn offer(
        budget: &Budget,
        from: Duration,
        duration: Duration,
        gap: Duration,
        cpu: Duration,
    ) -> (u32, u32) {
        let (mut now, mut offered, mut scored) = (from, 0, 0);
        while now < from + duration {
            offered += 1;
            if budget.is_left(now) {
                scored += 1;
                budget.spend(cpu, now);
            }
            now += gap;
        }
        (offered, scored)
    }

    #[test]
    fn up_to_its_share_of_the_cores_every_prompt_is_scored_for_ever() {
        let budget = Budget::new(SHARE, CORES);
        // A quarter of a core scores one prompt of 50 µs every 200 µs.
        let (offered, scored) =
            offer(&budget, Duration::ZERO, Duration::from_secs(60), Duration::from_micros(200), SCORE);
        assert_eq!((offered, scored), (300_000, 300_000));
    }

    #[test]
    fn a_flood_gets_the_savings_and_then_the_share() {
        let budget = Budget::new(SHARE, CORES);
        let gap = Duration::from_micros(10);
        let (_, scored) = offer(&budget, Duration::ZERO, Duration::from_secs(9), gap, SCORE);
        // 5,000 a second, for nine seconds and the four that were saved.
        assert!((65_000..=65_001).contains(&scored), "{scored}");
        let (_, scored) = offer(&budget, Duration::from_secs(9), Duration::from_secs(1), gap, SCORE);
        assert!((4_999..=5_001).contains(&scored), "the savings are spent: {scored}");
    }

    #[test]
    fn an_idle_hour_saves_no_more_than_four_seconds() {
        let budget = Budget::new(SHARE, CORES);
        let moment = Duration::from_millis(3);
        let burst = |at| offer(&budget, Duration::from_secs(at), moment, Duration::from_nanos(100), SCORE).1;
        let (first, second) = (burst(0), burst(3600));
        assert!((20_000..=20_016).contains(&first), "{first}");
        assert_eq!(second, first);
    }

    #[test]
    fn what_was_spent_beyond_what_was_left_comes_in_first() {
        let budget = Budget::new(SHARE, CORES);
        // Eight seconds of the share, four of them saved.
        budget.spend(Duration::from_secs(2), Duration::ZERO);
        assert!(!budget.is_left(Duration::from_secs(4)));
        assert!(budget.is_left(Duration::from_secs(4) + Duration::from_nanos(1)));
    }

    #[test]
    fn more_cores_score_more() {
        let many = Budget::new(SHARE, 32);
        let (offered, scored) =
            offer(&many, Duration::ZERO, Duration::from_secs(5), Duration::from_nanos(12_500), SCORE);
        assert_eq!(offered, scored, "four cores' worth");
    }

    #[test]
    fn a_share_that_rounds_to_nothing_ends_with_the_first_score() {
        let budget = Budget::new(f64::MIN_POSITIVE, 1);
        let day = Duration::from_secs(86_400);
        assert_eq!(offer(&budget, Duration::ZERO, day, Duration::from_secs(60), SCORE), (1_440, 1));
    }

    #[test]
    fn a_thread_is_charged_for_what_it_computes_and_not_for_its_sleep() {
        let begun = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        let slept = thread_cpu_time() - begun;
        assert!(slept < Duration::from_millis(25), "{slept:?}");
        let before = thread_cpu_time();
        std::hint::black_box((0..1_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
        assert!(thread_cpu_time() > before);
    }
}
