//! Tenants side by side at the desk: who is about, what each has of the seats, and who leaves a seat free for whom.

use std::ops::Range;

use outrank_core::Timestamp;

/// A tenant is about until so many seconds after its newest request.
const ABOUT_S: f64 = 10.0;

/// What all tenants have, by lane.
#[derive(Debug, Default)]
pub(super) struct Shares(Vec<Share>);

#[derive(Clone, Debug, Default)]
struct Share {
    /// 0: not in the settings.
    weight: f64,
    asked: Option<Timestamp>,
    /// Requests at upstreams that they are held for.
    seats: u32,
}

impl Share {
    fn is_about(&self, now: Timestamp) -> bool {
        self.asked.is_some_and(|asked| now.since(asked).as_secs_f64() < ABOUT_S)
    }
}

impl Shares {
    pub(super) fn set_weights(&mut self, weights: &[(usize, f64)]) {
        self.0.iter_mut().for_each(|share| share.weight = 0.0);
        for &(lane, weight) in weights {
            self.of(lane).weight = weight;
        }
    }

    /// A tenant asks for something.
    pub(super) fn asked(&mut self, now: Timestamp, lane: usize) {
        self.of(lane).asked = Some(now);
    }

    pub(super) fn took(&mut self, lane: usize) {
        self.of(lane).seats += 1;
    }

    pub(super) fn released(&mut self, lane: usize) {
        let share = self.of(lane);
        share.seats = share.seats.saturating_sub(1);
    }

    /// The lanes of all who have asked, whether or not they are in the settings still.
    pub(super) fn lanes(&self) -> Range<usize> {
        0..self.0.len()
    }

    /// Whether more than one is about.
    pub(super) fn contend(&self, now: Timestamp) -> bool {
        self.0.iter().filter(|share| share.is_about(now)).count() > 1
    }

    /// Whether a tenant must leave seats free: it has its share of these seats, and another who is about has not, and none that waits.
    /// Of those who wait, their order decides.
    pub(super) fn must_leave(
        &self,
        now: Timestamp,
        lane: usize,
        seats: u32,
        waits: impl Fn(usize) -> bool,
    ) -> bool {
        let about = || self.0.iter().enumerate().filter(|&(at, share)| at == lane || share.is_about(now));
        let weights: f64 = about().map(|(_, share)| share.weight).sum();
        let is_below = |share: &Share| f64::from(share.seats) < f64::from(seats) * share.weight / weights;
        let own_is_below = self.0.get(lane).is_some_and(is_below);
        !own_is_below && about().any(|(at, share)| at != lane && is_below(share) && !waits(at))
    }

    fn of(&mut self, lane: usize) -> &mut Share {
        if lane >= self.0.len() {
            self.0.resize(lane + 1, Share::default());
        }
        &mut self.0[lane]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(seconds)
    }

    #[test]
    fn who_has_its_share_leaves_seats_to_who_is_about_and_has_not() {
        let (none, all) = (|_| false, |_| true);
        let mut shares = Shares::default();
        shares.set_weights(&[(1, 1.0), (2, 3.0)]);
        shares.asked(at(0.0), 1);
        (0..8).for_each(|_| shares.took(1));
        assert!(!shares.must_leave(at(0.0), 1, 8, none) && !shares.contend(at(0.0)), "nobody else is about");
        shares.asked(at(1.0), 2);
        assert!(shares.contend(at(1.0)));
        assert!(shares.must_leave(at(1.0), 1, 8, none), "of eight seats it may have two");
        assert!(!shares.must_leave(at(1.0), 1, 8, all), "who waits has its turn");
        assert!(!shares.must_leave(at(1.0), 2, 8, none), "it has none");
        (0..6).for_each(|_| shares.took(2));
        assert!(!shares.must_leave(at(1.0), 1, 8, none), "the other has its six");
        shares.released(2);
        assert!(shares.must_leave(at(1.0), 1, 8, none));
        assert!(!shares.must_leave(at(1.0 + ABOUT_S), 1, 8, none), "the other has not asked for long");
    }
}
