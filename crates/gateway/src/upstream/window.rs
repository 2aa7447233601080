//! How many requests may be at an upstream in hold mode.

use super::found::FoundSeats;
use crate::config::WindowConfig;

/// Buckets of prompt length, each twice as long as the one before, within which times to the first token are compared.
const PROMPT_BUCKETS: usize = 16;
/// Time to the first token counts as unqueued up to this factor of the best of its bucket ...
const BEST_FACTOR: f64 = 1.5;
/// ... and this many seconds: nothing is gained by holding back what would start sooner than that.
const BEST_SLACK_S: f64 = 0.02;
/// Answers are taken to last at least so long, in seconds.
const MIN_RESIDENCE_S: f64 = 0.1;
/// How the best is forgotten, each time one of its bucket comes: soon where it would be seen again, because nothing waits or the
/// window is as small as it may be ...
const BEST_DECAY: f64 = 1.002;
/// ... and hardly where everything waits a little, which must not come to look like the best.
const BEST_DECAY_FULL: f64 = 1.000_02;
/// Weight of the newest answer in the mean time that an answer takes.
const NEWEST_WEIGHT: f64 = 0.1;
/// Time that an answer takes until one has ended, in seconds.
const FIRST_RESIDENCE_S: f64 = 4.0;
/// First tokens to decide upon, at least.
const MIN_SAMPLES: u32 = 4;
/// Share of the window that may wait inside the upstream, beside the one that keeps it busy.
const TOLERATED_SHARE: f64 = 0.1;
/// The window begins with so many requests.
const FIRST_REQUESTS: u32 = 4;
/// First tokens that come while more answers are streamed at once than the engine says that it has seats, before what it says is no
/// longer believed ...
const MAX_DOUBTS: f64 = 8.0;
/// ... and how much of one each other first token takes back: the end of one answer may be seen after the beginning of the next.
const FORGIVEN: f64 = 1.0 / 32.0;
/// While tenants share a window, it goes one beyond the seats for the first so many ...
const TRIAL: u32 = 64;
/// ... of so many answers.
const TRIAL_EVERY: u32 = 1024;
/// Time for each token of an answer that is not streamed, in multiples of the best, up to which the window grows ...
const WHOLE_GROWS_BELOW: f64 = 2.0;
/// ... and above which it shrinks.
const WHOLE_SHRINKS_ABOVE: f64 = 3.0;

/// The window of an upstream.
///
/// It looks for the knee of the latency curve: as many requests as the upstream works on, and hardly any that only wait there,
/// because what waits there can no longer be overtaken. How many wait follows from Little's law: the share of the time of an
/// answer that passed before its first token, beyond the best time to a first token for prompts of that length, times the
/// requests that were there. Above a tenth of the window and one, the window shrinks by what is too much; below half of that
/// it grows, doubling until it has shrunk for the first time. Only samples taken while the window was full count for growth.
///
/// Where the engine says how many requests it works on at once, the window goes no further than that and one (than that, while several
/// tenants send requests), whatever the latencies look like. Wrong numbers do no harm: below one that is too high the window finds its
/// size as it would without, and one that is too low is not believed once more answers are streamed at once than there could be.
///
/// Where the engine does not say it, the most requests that were seen to be worked on at once while others waited there take that
/// place, while several tenants send requests. Now and then the window opens again to see whether it is still so.
///
/// Answers that are not streamed have no first token. For them the time for each token is compared with the best: coarse,
/// because it also grows with a healthy batch. Where no answer is streamed, a fixed window is the better choice.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    bounds: (f64, f64),
    said: Option<Said>,
    found: FoundSeats,
    /// Whether several tenants use it.
    shared: bool,
    /// Answers that have begun.
    begun: u32,
    size: f64,
    doubling: bool,
    best_s: [f64; PROMPT_BUCKETS],
    residence_s: f64,
    best_per_token_s: f64,
    epoch: Epoch,
}

/// What the engine says of itself.
#[derive(Clone, Copy, Debug)]
struct Said {
    seats: u32,
    /// How much speaks against it.
    doubts: f64,
}

/// What has been measured since the size last changed.
#[derive(Clone, Copy, Debug, Default)]
struct Epoch {
    first_tokens: u32,
    queued_s: f64,
    whole: u32,
    whole_ratio: f64,
    full: u32,
}

impl Window {
    /// A window as configured.
    pub(crate) fn new(config: WindowConfig) -> Self {
        let bounds = match config {
            WindowConfig::Fixed(requests) => (requests, requests),
            WindowConfig::Auto { min_requests, max_requests } => (min_requests, max_requests),
        };
        let bounds = (f64::from(bounds.0.max(1)), f64::from(bounds.1.max(1)));
        Self {
            size: f64::from(FIRST_REQUESTS).clamp(bounds.0, bounds.1),
            bounds,
            said: None,
            found: FoundSeats::default(),
            shared: false,
            begun: 0,
            doubling: true,
            best_s: [f64::INFINITY; PROMPT_BUCKETS],
            residence_s: FIRST_RESIDENCE_S,
            best_per_token_s: f64::INFINITY,
            epoch: Epoch::default(),
        }
    }

    /// Requests that may be there.
    pub(crate) fn size(&self) -> u32 {
        let seats = self.seats().filter(|_| self.ends_at_seats()).map(f64::from).or(self.held());
        self.size.min(seats.unwrap_or(f64::INFINITY).max(self.bounds.0)) as u32
    }

    /// Several tenants use it now, or not.
    pub(crate) fn share(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// Whether nothing may wait there: who shares the seats with other tenants would have to wait for that too. Now and then one
    /// request may, because too low a number of seats would else never be found out.
    fn ends_at_seats(&self) -> bool {
        self.shared && self.begun % TRIAL_EVERY >= TRIAL
    }

    /// The seats that were found, while nothing is to wait beyond them.
    fn held(&self) -> Option<f64> {
        self.found.held().filter(|_| self.goes_by_found())
    }

    /// Whether seats that were found matter: tenants share the window, and the engine does not say what it has.
    fn goes_by_found(&self) -> bool {
        self.shared && self.seats().is_none()
    }

    /// Takes other bounds, and keeps what it has learned.
    pub(crate) fn reconfigure(&mut self, config: WindowConfig) {
        let fresh = Self::new(config);
        self.bounds = fresh.bounds;
        self.size = self.size.clamp(self.bounds.0, self.ceiling());
    }

    /// The engine says that it works on so many requests at once, or does not say. What was found to be wrong stays so.
    /// Returns whether that is news.
    pub(crate) fn engine_says(&mut self, seats: Option<u32>) -> bool {
        if self.said.map(|said| said.seats) == seats {
            return false;
        }
        self.said = seats.map(|seats| Said { seats, doubts: 0.0 });
        self.size = self.size.clamp(self.bounds.0, self.ceiling());
        true
    }

    /// The engine may be another one from now on: what showed of its seats counts no more.
    pub(crate) fn forget_seats(&mut self) {
        self.found = FoundSeats::default();
    }

    /// The seats that the engine says it has, if that is believed.
    pub(crate) fn seats(&self) -> Option<u32> {
        self.said.filter(|said| said.doubts < MAX_DOUBTS).map(|said| said.seats)
    }

    /// One more answer has begun, and so many are being streamed at once.
    pub(crate) fn streams(&mut self, streamed: u32) {
        // As many as there may be say nothing.
        let forgiven = if self.ends_at_seats() { 0.0 } else { FORGIVEN };
        self.begun = self.begun.wrapping_add(1);
        if let Some(said) = self.said.as_mut().filter(|said| said.doubts < MAX_DOUBTS) {
            let change = if streamed > said.seats { 1.0 } else { -forgiven };
            said.doubts = (said.doubts + change).max(0.0);
        }
    }

    /// The engine works on so many of the requests there, as far as can be seen, while `in_flight` might be there.
    pub(crate) fn works_on(&mut self, requests: u32, in_flight: u32) {
        if in_flight >= self.size() && self.held().is_none() {
            self.found.works_on(requests);
        }
    }

    /// Seconds before its first token at which a request surely had its seat.
    pub(crate) fn seated_s(&self) -> f64 {
        self.found.seated_s()
    }

    /// A streamed answer has begun, after `ttft_s` seconds, while `in_flight` requests were there.
    pub(crate) fn first_token(&mut self, prompt_tokens: u32, ttft_s: f64, in_flight: u32) {
        let bucket = (prompt_tokens.max(1).ilog2() as usize).min(PROMPT_BUCKETS - 1);
        self.found.first_token(ttft_s);
        let decay = self.decay(in_flight);
        let best_s = &mut self.best_s[bucket];
        *best_s = ttft_s.min(*best_s * decay);
        self.found.answered();
        self.epoch.first_tokens += 1;
        self.epoch.queued_s += (ttft_s - (*best_s * BEST_FACTOR + BEST_SLACK_S)).max(0.0);
        self.note_full(in_flight);
        self.decide();
    }

    /// An answer has ended after `e2e_s` seconds at the upstream.
    pub(crate) fn ended(&mut self, e2e_s: f64, tokens: u32, streamed: bool, in_flight: u32) {
        self.residence_s += NEWEST_WEIGHT * (e2e_s - self.residence_s);
        if streamed || tokens == 0 {
            return;
        }
        // What is quicker than that is not worth holding back.
        let per_token_s = e2e_s.max(MIN_RESIDENCE_S) / f64::from(tokens);
        self.best_per_token_s = per_token_s.min(self.best_per_token_s * self.decay(in_flight));
        self.found.answered();
        self.epoch.whole += 1;
        self.epoch.whole_ratio += per_token_s / self.best_per_token_s.max(1e-9);
        self.note_full(in_flight);
        self.decide();
    }

    /// The upstream refuses work because it has too much.
    pub(crate) fn overloaded(&mut self) {
        self.doubling = false;
        self.resize(self.size * 0.75);
    }

    fn decay(&self, in_flight: u32) -> f64 {
        let honest = in_flight < self.size() || self.size <= self.bounds.0;
        if honest { BEST_DECAY } else { BEST_DECAY_FULL }
    }

    fn note_full(&mut self, in_flight: u32) {
        self.epoch.full += u32::from(in_flight >= self.size());
    }

    fn decide(&mut self) {
        if self.goes_by_found() && self.found.is_settled() {
            self.epoch = Epoch::default();
            return;
        }
        let enough = MIN_SAMPLES.max(self.size() / 2);
        let Epoch { first_tokens, queued_s, whole, whole_ratio, full } = self.epoch;
        if first_tokens.max(whole) < enough {
            return;
        }
        let was_full = full * 2 >= first_tokens.max(whole);
        let share = queued_s / f64::from(first_tokens.max(1)) / self.residence_s.max(MIN_RESIDENCE_S);
        let waiting = share.min(1.0) * self.size;
        let tolerated = 1.0 + TOLERATED_SHARE * self.size;
        if was_full && waiting >= tolerated / 2.0 {
            self.found.wait_inside(self.size, waiting);
        }
        if first_tokens >= whole {
            if waiting > tolerated {
                self.doubling = false;
                return self.resize(self.size - (waiting - tolerated).min(self.size / 4.0).max(1.0));
            }
            if waiting < tolerated / 2.0 && was_full {
                return self.grow();
            }
        } else {
            let ratio = whole_ratio / f64::from(whole);
            if ratio > WHOLE_SHRINKS_ABOVE {
                self.doubling = false;
                return self.resize(self.size - (self.size / 8.0).max(1.0));
            }
            if ratio < WHOLE_GROWS_BELOW && was_full {
                return self.grow();
            }
        }
        self.epoch = Epoch::default();
    }

    fn grow(&mut self) {
        let more = if self.doubling { self.size } else { 1.0_f64.max(self.size / 32.0) };
        self.resize(self.size + more);
    }

    /// The largest window: one request beyond the seats waits, so that none of them idles until the next has come.
    fn ceiling(&self) -> f64 {
        let seats = self.seats().map_or(f64::INFINITY, |seats| f64::from(seats) + 1.0);
        seats.clamp(self.bounds.0, self.bounds.1)
    }

    fn resize(&mut self, size: f64) {
        self.size = size.clamp(self.bounds.0, self.ceiling());
        self.epoch = Epoch::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An engine with so many seats: what does not fit waits. Tells the size after many answers.
    fn settled(seats: f64, service_s: f64, config: WindowConfig) -> Vec<u32> {
        settled_told(seats, service_s, config, None)
    }

    /// The same engine, where it says how many it has.
    fn settled_told(seats: f64, service_s: f64, config: WindowConfig, said: Option<u32>) -> Vec<u32> {
        settled_shared(seats, service_s, config, said, false)
    }

    /// The same engine, where several tenants may use it.
    fn settled_shared(
        seats: f64,
        service_s: f64,
        config: WindowConfig,
        said: Option<u32>,
        shared: bool,
    ) -> Vec<u32> {
        let mut window = Window::new(config);
        window.engine_says(said);
        window.share(shared);
        let mut sizes = Vec::new();
        for answer in 0..4000u32 {
            // The first requests find an empty engine.
            let in_flight = f64::from(window.size().min(answer + 1));
            // Every request enters a full engine behind those that wait: by Little's law it waits their number over the rate.
            let queued_s = (in_flight - seats).max(0.0) * service_s / seats;
            let jitter = 1.0 + 0.2 * f64::from(answer % 5) / 5.0;
            window.streams(in_flight.min(seats) as u32);
            window.first_token(100, 0.05 * jitter + queued_s, window.size());
            window.ended(service_s + queued_s, 100, true, window.size());
            sizes.push(window.size());
        }
        sizes.split_off(2000)
    }

    #[test]
    fn it_settles_a_little_above_the_seats_of_the_engine() {
        for (seats, service_s) in [(4.0, 3.0), (8.0, 0.5), (64.0, 8.0), (256.0, 5.0)] {
            let sizes = settled(seats, service_s, WindowConfig::default());
            let (low, high) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
            assert!(f64::from(low) >= seats, "{seats}: seats would idle at {low}");
            assert!(f64::from(high) <= seats * 1.2 + 3.0, "{seats}: {high} is too many");
        }
    }

    #[test]
    fn seats_that_are_said_end_it_one_above_and_wrong_ones_do_no_harm() {
        for (seats, service_s) in [(4.0, 3.0), (8.0, 0.5), (64.0, 8.0)] {
            let told = |said| settled_told(seats, service_s, WindowConfig::default(), Some(said));
            let sizes = told(seats as u32);
            let (low, high) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
            assert!(f64::from(low) >= seats && f64::from(high) <= seats + 1.0, "{seats}: {low} to {high}");
            for wrong in [1, seats as u32 / 2, 10_000] {
                let sizes = told(wrong);
                let (low, high) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
                let found = f64::from(low) >= seats && f64::from(high) <= seats * 1.2 + 3.0;
                assert!(found, "{seats}, said to be {wrong}: {low} to {high}");
            }
        }
    }

    #[test]
    fn where_tenants_share_it_nothing_waits_inside_and_wrong_seats_do_no_harm_either() {
        for (seats, service_s) in [(4.0, 3.0), (8.0, 0.5), (64.0, 8.0)] {
            let told = |said| settled_shared(seats, service_s, WindowConfig::default(), said, true);
            let sizes = told(Some(seats as u32));
            let beyond = sizes.iter().filter(|&&size| f64::from(size) != seats).count();
            assert!(beyond * 10 < sizes.len(), "{seats}: not its seats {beyond} times of {}", sizes.len());
            for wrong in [None, Some(1), Some(seats as u32 / 2), Some(10_000)] {
                let sizes = told(wrong);
                let (low, high) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
                let found = f64::from(low) >= seats && f64::from(high) <= seats * 1.2 + 3.0;
                assert!(found, "{seats}, said to be {wrong:?}: {low} to {high}");
            }
        }
    }

    /// An engine with so many seats that does not say how many, where several tenants use it: the sizes.
    fn settled_unsaid(seats: u32, config: WindowConfig) -> Vec<u32> {
        let (mut window, mut sizes) = (Window::new(config), Vec::new());
        window.share(true);
        for answer in 0..20_000 {
            let in_flight = window.size();
            let queued_s = f64::from(in_flight.saturating_sub(seats)) * 2.0 / f64::from(seats);
            window.works_on(in_flight.min(seats) - u32::from(answer % 3 == 0), in_flight);
            window.first_token(100, 0.05 + queued_s, in_flight);
            window.ended(2.0 + queued_s, 100, true, in_flight);
            sizes.push(window.size());
        }
        sizes.split_off(10_000)
    }

    #[test]
    fn where_tenants_share_it_seats_that_show_end_it_most_of_the_time_within_its_bounds() {
        for seats in [4, 8, 64] {
            let sizes = settled_unsaid(seats, WindowConfig::default());
            let beyond = sizes.iter().filter(|&&size| size != seats).count();
            assert!(beyond * 12 < sizes.len(), "{seats}: not its seats {beyond} times of {}", sizes.len());
            assert!(beyond > 0, "{seats}: nobody looks whether there are more by now");
            assert!(sizes.iter().all(|&size| (seats..2 * seats).contains(&size)), "{seats}: {sizes:?}");
        }
        let sizes = settled_unsaid(8, WindowConfig::Auto { min_requests: 12, max_requests: 40 });
        assert!(sizes.iter().all(|&size| size >= 12));
        assert!(settled_unsaid(8, WindowConfig::Fixed(12)).iter().all(|&size| size == 12));
    }

    #[test]
    fn what_is_said_counts_within_the_bounds_and_is_not_believed_again_once_it_was_found_wrong() {
        let bounds = WindowConfig::Auto { min_requests: 6, max_requests: 16 };
        assert!(settled_told(64.0, 1.0, bounds, Some(2)).iter().all(|&size| (6..=16).contains(&size)));
        let mut window = Window::new(WindowConfig::default());
        assert!(window.engine_says(Some(2)) && window.size() == 3 && window.seats() == Some(2));
        (0..20).for_each(|_| window.streams(3));
        assert!(window.seats().is_none() && !window.engine_says(Some(2)) && window.seats().is_none());
        assert!(window.engine_says(Some(3)) && window.seats() == Some(3), "another engine, perhaps");
        (0..2000).for_each(|nth| window.streams(if nth % 40 == 0 { 4 } else { 3 }));
        assert_eq!(window.seats(), Some(3), "an end that was seen late says nothing");
    }

    #[test]
    fn it_keeps_within_its_bounds_and_a_fixed_one_stays() {
        let sizes = settled(64.0, 1.0, WindowConfig::Auto { min_requests: 2, max_requests: 16 });
        assert!(sizes.iter().all(|&size| size == 16), "{sizes:?}");
        assert!(settled(2.0, 1.0, WindowConfig::Fixed(9)).iter().all(|&size| size == 9));
        let mut window = Window::new(WindowConfig::Auto { min_requests: 2, max_requests: 16 });
        (0..50).for_each(|_| window.overloaded());
        assert_eq!(window.size(), 2);
    }

    proptest! {
        #[test]
        fn it_keeps_within_its_bounds_whatever_comes(
            (min_requests, more) in (1u32..20, 0u32..200),
            events in prop::collection::vec((0u8..3, 0.0f64..20.0, 0u32..300, 1u32..100_000), 0..400),
        ) {
            let max_requests = min_requests + more;
            let mut window = Window::new(WindowConfig::Auto { min_requests, max_requests });
            for (kind, seconds, in_flight, tokens) in events {
                match kind {
                    0 => window.first_token(tokens, seconds, in_flight),
                    1 => window.ended(seconds, tokens, tokens % 2 == 0, in_flight),
                    _ => window.overloaded(),
                }
                prop_assert!((min_requests..=max_requests).contains(&window.size()), "{window:?}");
            }
        }
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used() {
        let mut window = Window::new(WindowConfig::default());
        for _ in 0..1000 {
            window.first_token(100, 0.05, 1);
            window.ended(1.0, 100, true, 1);
        }
        assert_eq!(window.size(), FIRST_REQUESTS);
    }

    #[test]
    fn long_prompts_are_not_taken_for_queueing() {
        let mut window = Window::new(WindowConfig::default());
        for nth in 0..2000u32 {
            let prompt_tokens = [50, 20_000][nth as usize % 2];
            window.first_token(prompt_tokens, [0.03, 2.0][nth as usize % 2], window.size());
            window.ended(4.0, 100, true, window.size());
        }
        assert_eq!(window.size(), 512);
    }

    #[test]
    fn a_fast_upstream_on_a_busy_machine_is_not_held_back() {
        let mut window = Window::new(WindowConfig::default());
        for nth in 0..5000u32 {
            let jitter_s = [0.0, 0.002, 0.005, 0.012, 0.001][nth as usize % 5];
            window.first_token(20, 0.000_05 + jitter_s, window.size());
            window.ended(0.000_8 + jitter_s, 16, true, window.size());
        }
        assert_eq!(window.size(), 512);
    }

    #[test]
    fn without_streams_it_goes_by_the_time_for_each_token() {
        let mut window = Window::new(WindowConfig::default());
        for _ in 0..4000 {
            let in_flight = f64::from(window.size());
            // Eight seats; beyond them time grows in proportion.
            window.ended(2.0 * (in_flight / 8.0).max(1.0), 100, false, window.size());
        }
        assert!((12..=26).contains(&window.size()), "{}", window.size());
    }
}
