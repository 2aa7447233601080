//! Lets freed seats gather for a few steps, so that several waiting requests start in one.

/// Steps that a free seat waits for others to become free, at most.
const MAX_GATHER_STEPS: u32 = 8;
/// Waiting requests for each seat that is gathered: who waits behind a long queue loses little by it.
const WAITING_PER_SEAT: usize = 4;

/// Whether free seats are given away now, or wait for others so that several requests start in one step.
///
/// A step with a prompt in it takes longer than its tokens account for: in vLLM 0.24 on one H200 a prompt of 128 tokens adds
/// 5.3 ms to a step, one of 512 adds 12.6 ms (`results/h200/plugin-h200/h200.toml`). Where seats are what requests wait for,
/// one becomes free nearly every step, and nearly every step pays. Going first, the short ones make that worse. So seats
/// gather, while at least [`WAITING_PER_SEAT`] requests wait for each, up to a share of all seats
/// ([`crate::Policy::gather_share`]) and for [`MAX_GATHER_STEPS`] at most: less than that share of the seats idles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gather {
    held_steps: u32,
}

impl Gather {
    /// To be asked in every step with the seats there are, those free and the requests that wait: whether nobody starts in it.
    pub(crate) fn holds(&mut self, share: f64, seats: usize, free: usize, waiting: usize) -> bool {
        // At most all seats, so that somebody runs: a step without anybody would be the last.
        let wanted = ((seats as f64 * share) as usize).min(waiting / WAITING_PER_SEAT).min(seats);
        let holds = (1..wanted).contains(&free) && self.held_steps < MAX_GATHER_STEPS;
        self.held_steps = if holds { self.held_steps + 1 } else { 0 };
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: f64 = 1.0 / 64.0;

    #[test]
    fn seats_gather_up_to_a_share_and_to_a_quarter_of_those_who_wait() {
        let holds = |seats, free, waiting| Gather::default().holds(SHARE, seats, free, waiting);
        assert!(holds(256, 1, 100) && holds(256, 3, 100) && !holds(256, 4, 100));
        assert!(holds(256, 1, 8) && !holds(256, 2, 8), "two seats for eight");
        assert!(!holds(256, 1, 7), "a short queue does not wait");
        assert!(!holds(127, 1, 100), "few seats do not gather");
        assert!(!holds(256, 0, 100), "no seat, nothing to hold");
        assert!(!Gather::default().holds(0.0, 256, 1, 100), "switched off");
        assert!(!Gather::default().holds(9.0, 256, 256, 9000), "nobody runs");
    }

    #[test]
    fn a_seat_waits_for_a_few_steps_at_most_and_anew_after_one_that_starts_requests() {
        let mut gather = Gather::default();
        let held = (0..9).map(|_| gather.holds(SHARE, 256, 1, 100)).collect::<Vec<_>>();
        assert_eq!(held, [[true; 8].as_slice(), &[false]].concat());
        assert!(gather.holds(SHARE, 256, 1, 100));
    }
}
