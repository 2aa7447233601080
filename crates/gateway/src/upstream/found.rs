//! The seats of an engine that does not say how many it has, as far as they show.

/// How fast the number follows what is seen: up at once, as no engine works on more requests than it has seats for, and down slowly,
/// because now and then a seat has just come free.
const UP: f64 = 0.25;
const DOWN: f64 = 1.0 / 512.0;
/// Once it is known, nothing is to wait inside for so many answers for each request of the window, before it is looked for again.
const HELD_ANSWERS: u32 = 64;
/// It is believed if it is at least so much of what the times to first tokens leave: where an engine's first tokens come later the more it
/// works on, and answers are short, too few are seen to be worked on.
const AGREEING_SHARE: f64 = 0.75;
/// For so much of the least time to a first token every request has had its seat when its first token comes.
const SEATED_SHARE: f64 = 0.9;

/// The seats of an engine that does not say how many it has: the most requests that it works on at once while others wait there.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundSeats {
    seats: f64,
    /// Answers until it may be decided again that requests wait inside.
    left: u32,
    /// In the last so many of them more are let in again, so that what is seen then is seen in a full window.
    filling: u32,
    /// Least time to a first token ever, in seconds. One that is forgotten would grow with what waits inside, and the number with it.
    least_ttft_s: f64,
}

impl Default for FoundSeats {
    fn default() -> Self {
        Self { seats: 0.0, left: 0, filling: 0, least_ttft_s: f64::INFINITY }
    }
}

impl FoundSeats {
    /// The engine works on so many requests while it has as many as may be there.
    pub(super) fn works_on(&mut self, requests: u32) {
        let gap = f64::from(requests) - self.seats;
        self.seats += gap * if gap > 0.0 { UP } else { DOWN };
    }

    /// About so many of the requests of a full window wait inside.
    pub(super) fn wait_inside(&mut self, window: f64, waiting: f64) {
        let is_likely = self.seats() >= (AGREEING_SHARE * (window - waiting)).max(1.0);
        if self.left == 0 && is_likely && self.seats() < window {
            self.filling = window as u32;
            self.left = (HELD_ANSWERS + 1) * self.filling;
        }
    }

    /// A first token has come after so many seconds.
    pub(super) fn first_token(&mut self, ttft_s: f64) {
        self.least_ttft_s = self.least_ttft_s.min(ttft_s);
    }

    /// One more answer has begun, or come whole.
    pub(super) fn answered(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Seconds before its first token at which a request surely had its seat.
    pub(super) fn seated_s(&self) -> f64 {
        if self.least_ttft_s.is_finite() { SEATED_SHARE * self.least_ttft_s } else { 0.0 }
    }

    /// Whether it was decided that requests wait inside, and not yet time to look again.
    pub(super) fn is_settled(&self) -> bool {
        self.left > 0
    }

    /// The number, while nothing is to wait beyond it.
    pub(super) fn held(&self) -> Option<f64> {
        (self.left > self.filling).then(|| self.seats())
    }

    fn seats(&self) -> f64 {
        self.seats.round()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(requests: u32) -> FoundSeats {
        let mut found = FoundSeats::default();
        (0..100).for_each(|_| found.works_on(requests));
        found
    }

    #[test]
    fn nothing_waits_inside_for_a_while_and_then_it_is_looked_for_again_in_a_full_window() {
        let mut found = seen(32);
        found.wait_inside(40.0, 4.0);
        let held = (0..10_000).take_while(|_| {
            found.answered();
            found.held() == Some(32.0)
        });
        assert_eq!(held.count(), 40 * 64 - 1);
        let filling = (0..10_000).take_while(|_| {
            found.answered();
            found.is_settled()
        });
        assert_eq!(filling.count(), 40 - 1);
        assert!(found.held().is_none());
    }

    #[test]
    fn it_is_not_believed_where_first_tokens_tell_of_far_more_seats_or_the_window_has_not_reached_it() {
        for (seats, waiting) in [(16, 4.0), (40, 4.0), (0, 40.0)] {
            let mut found = seen(seats);
            found.wait_inside(40.0, waiting);
            assert!(!found.is_settled(), "{seats} of 40 that {waiting} wait of");
        }
        let mut found = seen(16);
        found.wait_inside(40.0, 20.0);
        assert_eq!(found.held(), Some(16.0));
    }
}
