//! Waiting requests of several tenants: within a tenant by rank, between tenants by who has had least.

use crate::{Place, Rank, RankQueue};

/// Waiting requests in lanes, one for each tenant.
///
/// Between lanes goes the one that has been served least for its weight, in tokens (the Virtual Token Counter of Sheng et al.,
/// OSDI 2024): over any time in which two lanes both wait, what they are served differs by no more than what is in flight,
/// whatever the sizes of their requests. That is what deficit round robin gives, without a quantum to choose, and a charge that
/// proves wrong can be corrected at any time. A lane that has been idle starts level with the others: it neither saves up turns
/// nor pays for what it took while nobody else wanted it. It may start behind them by its part of the *credit*, no further than it
/// is: what it would have free, had it a part of the seats to itself. Without credit, a tenant that asks for less than its share has
/// to let the others go between any two of its requests that come together. With one lane this is a [`RankQueue`].
#[derive(Clone, Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    len: usize,
    /// What the lane picked last had been served: where a lane starts after a pause.
    floor: f64,
    /// Tokens that lanes may be behind when they start after a pause, all together.
    credit_tokens: f64,
}

#[derive(Clone, Debug)]
struct Lane {
    weight: f64,
    /// Tokens served, over the weight.
    served: f64,
    queue: RankQueue,
}

impl Default for Lane {
    fn default() -> Self {
        Self { weight: 1.0, served: 0.0, queue: RankQueue::default() }
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self { lanes: vec![Lane::default()], len: 0, floor: 0.0, credit_tokens: 0.0 }
    }
}

impl Lanes {
    /// Number of requests that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of requests that wait in a lane.
    pub fn len_of(&self, lane: usize) -> usize {
        self.lanes.get(lane).map_or(0, |lane| lane.queue.len())
    }

    /// Gives a lane its share, relative to those of the others. Lanes begin with 1.
    pub fn set_weight(&mut self, lane: usize, weight: f64) {
        let lane = self.lane(lane);
        lane.weight = if weight.is_finite() { weight.max(1e-6) } else { 1.0 };
    }

    /// Sets the credit, in tokens; at first there is none.
    pub fn set_credit(&mut self, tokens: f64) {
        self.credit_tokens = tokens.max(0.0);
    }

    /// The request that goes next, and its lane.
    pub fn first(&self) -> Option<(usize, Place)> {
        self.first_but(&[])
    }

    /// The request that goes next, of those in other lanes than these.
    pub fn first_but(&self, lanes: &[usize]) -> Option<(usize, Place)> {
        let waiting = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.queue.is_empty());
        let waiting = waiting.filter(|(at, _)| !lanes.contains(at));
        let (at, lane) = waiting.min_by(|(_, a), (_, b)| a.served.total_cmp(&b.served))?;
        Some((at, lane.queue.first()?))
    }

    /// Places of all lanes, in order within each.
    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.lanes.iter().flat_map(|lane| lane.queue.iter())
    }

    /// Puts a request in its place.
    pub fn insert(&mut self, lane: usize, place: Place) {
        if self.lane(lane).queue.is_empty() {
            let level = self.first().map_or(self.floor, |(first, _)| self.lanes[first].served);
            let waiting = self.lanes.iter().filter(|lane| !lane.queue.is_empty());
            let weights: f64 = waiting.map(|lane| lane.weight).sum();
            let lane = &mut self.lanes[lane];
            lane.served = lane.served.max(level - self.credit_tokens / (weights + lane.weight));
        }
        self.lanes[lane].queue.insert(place);
        self.len += 1;
    }

    /// Takes a request out, if it waits.
    pub fn remove(&mut self, lane: usize, rank: Rank) -> Option<Place> {
        let place = self.lanes.get_mut(lane)?.queue.remove(rank)?;
        self.len -= 1;
        Some(place)
    }

    /// Charges a lane for tokens that it is given, or gives back those that it did not use (less than 0).
    pub fn charge(&mut self, lane: usize, tokens: f64) {
        let lane = self.lane(lane);
        let before = lane.served;
        lane.served += tokens / lane.weight;
        if tokens > 0.0 {
            self.floor = self.floor.max(before);
        }
    }

    /// Number of requests that are expected to go before `rank`, and their work in seconds: those ahead in its own lane, and of
    /// every other lane what makes it level meanwhile, if a token that is charged takes `token_s` seconds.
    pub fn ahead_of(&self, lane: usize, rank: Rank, own_work_s: f64, token_s: f64) -> (usize, f64) {
        let Some(own) = self.lanes.get(lane) else { return (0, 0.0) };
        let (mut ahead, mut work_s) = own.queue.ahead_of(rank);
        let turn_s = (work_s + own_work_s) / own.weight;
        for (at, other) in self.lanes.iter().enumerate().filter(|(_, other)| !other.queue.is_empty()) {
            let all_s = other.queue.work_s();
            if at != lane && all_s > 0.0 {
                let behind_s = (own.served - other.served) * token_s;
                let share = ((turn_s + behind_s) * other.weight / all_s).clamp(0.0, 1.0);
                ahead += (share * other.queue.len() as f64) as usize;
                work_s += share * all_s;
            }
        }
        (ahead, work_s)
    }

    /// Seconds of work of all who wait.
    pub fn work_s(&self) -> f64 {
        self.lanes.iter().map(|lane| lane.queue.work_s()).sum()
    }

    /// Empties all lanes and keeps what they have been served.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.lanes.iter_mut().for_each(|lane| lane.queue = RankQueue::default());
    }

    /// Puts back a request that [`Self::clear`] took out: it has not been idle.
    pub(crate) fn restore(&mut self, lane: usize, place: Place) {
        self.lane(lane).queue.insert(place);
        self.len += 1;
    }

    fn lane(&mut self, at: usize) -> &mut Lane {
        if at >= self.lanes.len() {
            self.lanes.resize_with(at + 1, Lane::default);
        }
        &mut self.lanes[at]
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::Key;

    fn place(number: u64) -> Place {
        Place { rank: Rank { band: 1, key: Key::new(0.0), number }, slot: number as usize, work_s: 1.0 }
    }

    /// Serves the next request at this cost and tells its lane.
    fn serve(lanes: &mut Lanes, tokens: f64) -> usize {
        let (lane, place) = lanes.first().unwrap();
        lanes.remove(lane, place.rank);
        lanes.charge(lane, tokens);
        lane
    }

    /// A lane that has had 50,000 tokens and waits for as many, and one with this weight that comes now.
    fn half_served(credit: f64, weight: f64, second: Range<u64>) -> Lanes {
        let mut lanes = Lanes::default();
        lanes.set_credit(credit);
        lanes.set_weight(1, weight);
        (0..1000).for_each(|number| lanes.insert(0, place(number)));
        (0..500).for_each(|_| {
            serve(&mut lanes, 100.0);
        });
        second.for_each(|number| lanes.insert(1, place(number)));
        lanes
    }

    #[test]
    fn a_flood_of_one_tenant_does_not_delay_the_next_request_of_another() {
        let mut lanes = half_served(0.0, 1.0, 5000..5001);
        assert!((0..2).any(|_| serve(&mut lanes, 100.0) == 1), "it has not been served at all");
    }

    #[test]
    fn a_tenant_that_was_idle_has_saved_up_no_turns() {
        let mut lanes = half_served(0.0, 1.0, 2000..3000);
        let of_second = (0..100).filter(|_| serve(&mut lanes, 100.0) == 1).count();
        assert!((49..=51).contains(&of_second), "{of_second}");
    }

    #[test]
    fn a_tenant_that_was_idle_may_be_behind_by_its_part_of_the_credit_and_no_further() {
        for weight in [1.0, 3.0] {
            let mut lanes = half_served(2000.0, weight, 2000..3000);
            // Its share of 2,000 tokens at once, and then its share of all.
            let at_once = (20.0 * weight / (1.0 + weight)) as usize;
            let before_first = (0..100).take_while(|_| serve(&mut lanes, 100.0) == 1).count();
            assert!((at_once - 1..=at_once + 4).contains(&before_first), "{weight}: {before_first}");
            let of_second = (0..100).filter(|_| serve(&mut lanes, 100.0) == 1).count();
            let share = (100.0 * weight / (1.0 + weight)) as usize;
            assert!((share - 1..=share + 1).contains(&of_second), "{weight}: {of_second}");
        }
    }

    #[test]
    fn pauses_gain_no_more_than_the_credit_once() {
        let mut lanes = Lanes::default();
        lanes.set_credit(2000.0);
        (0..9000).for_each(|number| lanes.insert(0, place(number)));
        let mut served = [0, 0];
        // Its queue is empty again and again, but it has had what it has had.
        for number in 10_000..14_000 {
            lanes.insert(1, place(number));
            (0..2).for_each(|_| served[serve(&mut lanes, 100.0)] += 1);
            if lanes.len_of(1) == 0 {
                served[serve(&mut lanes, 100.0)] += 1;
            }
        }
        assert!(served[1] <= served[0] + 11, "{served:?}");
    }

    #[test]
    fn lanes_that_may_not_have_a_seat_are_passed_over_and_keep_their_turn() {
        let mut lanes = Lanes::default();
        (0..3).for_each(|lane| lanes.insert(lane, place(lane as u64)));
        lanes.charge(1, 10.0);
        lanes.charge(2, 20.0);
        let first = |but: &[usize]| lanes.first_but(but).map(|(lane, _)| lane);
        assert_eq!(
            [first(&[]), first(&[0]), first(&[0, 1]), first(&[0, 1, 2])],
            [Some(0), Some(1), Some(2), None]
        );
    }

    #[test]
    fn requests_ahead_count_the_share_of_the_other_tenants_only() {
        let mut lanes = Lanes::default();
        (0..1000).for_each(|number| lanes.insert(0, place(number)));
        (2000..2010).for_each(|number| lanes.insert(1, place(number)));
        let (ahead, work_s) = lanes.ahead_of(1, place(2009).rank, 1.0, 0.01);
        assert_eq!((ahead, work_s), (9 + 10, 19.0));
        let (ahead, _) = lanes.ahead_of(0, place(999).rank, 1.0, 0.01);
        assert_eq!(ahead, 999 + 10);
    }

    #[test]
    fn requests_ahead_are_those_that_go_before_where_one_lane_has_credit_too() {
        for weight in [1.0, 3.0] {
            let lanes = half_served(2000.0, weight, 2000..2100);
            for (lane, number) in [(1, 2000), (1, 2008), (1, 2040), (0, 500), (0, 520)] {
                let (expected, _) = lanes.ahead_of(lane, place(number).rank, 1.0, 0.01);
                let mut served = lanes.clone();
                let (mut before, rank) = (0, place(number).rank);
                while served.lanes[lane].queue.ahead_of(rank).0 > 0 || served.first().unwrap().0 != lane {
                    serve(&mut served, 100.0);
                    before += 1;
                }
                assert!(expected.abs_diff(before) <= 3, "{weight}, {number}: {expected}, not {before}");
            }
        }
    }

    proptest! {
        #[test]
        fn tenants_that_wait_get_their_weights_in_tokens_whatever_the_sizes_and_splits(
            sizes in prop::collection::vec((1u32..2000, 1u32..2000), 300..600),
            weight in 0.5f64..4.0,
        ) {
            let mut lanes = Lanes::default();
            lanes.set_weight(1, weight);
            // Lane 1 sends its work in pieces as small as it likes, lane 0 in large ones.
            (0..600).for_each(|number| lanes.insert(0, place(number)));
            (600..20_000).for_each(|number| lanes.insert(1, place(number)));
            let mut served = [0.0, 0.0];
            let mut largest = 0.0_f64;
            for &(large, small) in &sizes {
                let (lane, place) = lanes.first().unwrap();
                let tokens = if lane == 0 { f64::from(large) } else { f64::from(small % 50 + 1) };
                // The prediction is off, and corrected afterwards.
                lanes.remove(lane, place.rank);
                lanes.charge(lane, 10.0);
                lanes.charge(lane, tokens - 10.0);
                served[lane] += tokens / [1.0, weight][lane];
                largest = largest.max(tokens / [1.0, weight][lane]);
            }
            prop_assert!((served[0] - served[1]).abs() <= largest + 1e-6, "{:?} {}", served, largest);
        }
    }
}
