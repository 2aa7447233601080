//! Tenants side by side at the desk: who is about, what each has of the seats, and who leaves a seat free for whom.

use std::ops::Range;

use outrank_core::Timestamp;

/// A tenant is about until so many seconds after its newest request.
const ABOUT_S: f64 = 10.0;
/// Of fewer seats than these, a spare one is kept for a tenant only until so many mean services after its newest request: it is a large
/// part of them, and who sends seldom gains little from it.
const FEW_SEATS: u32 = 32;
const KEPT_SERVICES: f64 = 3.0;
/// Weight of the newest request in the mean service.
const NEWEST_SERVICE_WEIGHT: f64 = 0.02;

/// What all tenants have, by lane.
#[derive(Debug, Default)]
pub(super) struct Shares {
    lanes: Vec<Share>,
    /// From seat to end, on average; 0 before the first answer.
    mean_service_s: f64,
}

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
        self.has_asked(now, ABOUT_S)
    }

    /// Whether its newest request came within so many seconds.
    fn has_asked(&self, now: Timestamp, within_s: f64) -> bool {
        self.asked.is_some_and(|asked| now.since(asked).as_secs_f64() < within_s)
    }
}

impl Shares {
    pub(super) fn set_weights(&mut self, weights: &[(usize, f64)]) {
        self.lanes.iter_mut().for_each(|share| share.weight = 0.0);
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

    /// An answer has ended so long after its request took a seat.
    pub(super) fn served(&mut self, service_s: f64) {
        let weight = if self.mean_service_s == 0.0 { 1.0 } else { NEWEST_SERVICE_WEIGHT };
        self.mean_service_s += weight * (service_s - self.mean_service_s);
    }

    /// For how many seconds after its newest request seats are kept free for a tenant, of so many.
    fn kept_s(&self, seats: u32) -> f64 {
        if seats < FEW_SEATS { (KEPT_SERVICES * self.mean_service_s).min(ABOUT_S) } else { ABOUT_S }
    }

    /// The lanes of all who have asked, whether or not they are in the settings still.
    pub(super) fn lanes(&self) -> Range<usize> {
        0..self.lanes.len()
    }

    /// Whether more than one is about.
    pub(super) fn contend(&self, now: Timestamp) -> bool {
        self.lanes.iter().filter(|share| share.is_about(now)).count() > 1
    }

    /// Whether a tenant must leave seats free: it has its share of these seats, and another who has asked lately has not, and none that
    /// waits. Of those who wait, their order decides.
    pub(super) fn must_leave(
        &self,
        now: Timestamp,
        lane: usize,
        seats: u32,
        waits: impl Fn(usize) -> bool,
    ) -> bool {
        let about = || self.lanes.iter().enumerate().filter(|&(at, share)| at == lane || share.is_about(now));
        let weights: f64 = about().map(|(_, share)| share.weight).sum();
        let is_below = |share: &Share| f64::from(share.seats) < f64::from(seats) * share.weight / weights;
        let own_is_below = self.lanes.get(lane).is_some_and(is_below);
        let is_kept = |share: &Share| is_below(share) && share.has_asked(now, self.kept_s(seats));
        !own_is_below && about().any(|(at, share)| at != lane && is_kept(share) && !waits(at))
    }

    fn of(&mut self, lane: usize) -> &mut Share {
        if lane >= self.lanes.len() {
            self.lanes.resize(lane + 1, Share::default());
        }
        &mut self.lanes[lane]
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
        shares.served(4.0);
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
    #[test]
    fn of_few_seats_one_is_kept_for_as_long_as_a_few_services_take_and_of_many_as_long_as_one_is_about() {
        let mut shares = Shares::default();
        shares.set_weights(&[(1, 1.0), (2, 1.0)]);
        shares.asked(at(0.0), 2);
        (0..FEW_SEATS).for_each(|_| shares.took(1));
        let must_leave =
            |shares: &Shares, after_s, seats| shares.must_leave(at(after_s), 1, seats, |_| false);
        assert!(!must_leave(&shares, 0.0, 8), "nobody knows how long it would be kept");
        shares.served(1.0);
        (0..500).for_each(|_| shares.served(0.5));
        let kept_s = 0.5 * KEPT_SERVICES;
        assert!(must_leave(&shares, 0.99 * kept_s, 8) && !must_leave(&shares, 1.01 * kept_s, 8));
        assert!(must_leave(&shares, 0.99 * ABOUT_S, FEW_SEATS) && !must_leave(&shares, ABOUT_S, FEW_SEATS));
        (0..500).for_each(|_| shares.served(60.0));
        assert!(must_leave(&shares, 0.99 * ABOUT_S, 8) && !must_leave(&shares, ABOUT_S, 8));
    }
}
