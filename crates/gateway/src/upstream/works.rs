//! How many of the requests at an engine it works on, as far as shows in what it streams.

use std::collections::{BTreeSet, VecDeque};

use outrank_core::Timestamp;

/// Ends of answers that are remembered, at most.
const MAX_ENDED: usize = 1024;

/// The requests at an engine. It works on those that stream, and, if it takes them in the order in which they were sent, on all that
/// answer whole and were sent before one that streams.
#[derive(Debug, Default)]
pub(crate) struct Works {
    sent: u64,
    /// Those whose answers are being streamed.
    streaming: u32,
    /// Those that answer whole and may wait: sent after all whose answers have begun.
    unknown: BTreeSet<u64>,
    /// Those that answer whole and do not wait.
    whole: BTreeSet<u64>,
    /// When the newest of those ended that it worked on.
    ended: VecDeque<Timestamp>,
}

impl Works {
    /// A request is sent, whose answer is to be streamed or not. Returns which it is, counted from the first.
    pub(crate) fn sent(&mut self, streams: bool) -> u64 {
        self.sent += 1;
        if !streams {
            self.unknown.insert(self.sent);
        }
        self.sent
    }

    /// Answers that are being streamed.
    pub(crate) fn streaming(&self) -> u32 {
        self.streaming
    }

    /// The answer to one has begun. Returns on how many the engine worked `seated_s` before, if all that have a seat now had it then.
    pub(crate) fn began(&mut self, now: Timestamp, nth: u64, seated_s: f64) -> u32 {
        self.streaming += 1;
        while let Some(first) = self.unknown.first().copied().filter(|&first| first < nth) {
            self.unknown.remove(&first);
            self.whole.insert(first);
        }
        while self.ended.front().is_some_and(|&ended| now.since(ended).as_secs_f64() > seated_s) {
            self.ended.pop_front();
        }
        self.streaming + (self.whole.len() + self.ended.len()) as u32
    }

    /// One is there no more, whose answer had begun to be streamed or not.
    pub(crate) fn ended(&mut self, now: Timestamp, nth: u64, began: bool) {
        self.streaming = self.streaming.saturating_sub(began.into());
        self.unknown.remove(&nth);
        if !self.whole.remove(&nth) && !began {
            return;
        }
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(seconds)
    }

    #[test]
    fn whole_answers_that_were_asked_for_before_one_that_streams_are_worked_on_and_later_ones_may_wait() {
        let mut works = Works::default();
        let sent: Vec<_> = [true, false, true, true, false, false].map(|streams| works.sent(streams)).into();
        assert_eq!(works.began(at(1.0), sent[0], 0.5), 1);
        assert_eq!(works.began(at(1.1), sent[3], 0.5), 3, "the third may have a long prompt, or wait");
        assert_eq!(works.began(at(1.2), sent[2], 0.5), 4);
        works.ended(at(1.3), sent[4], false);
        works.ended(at(1.3), sent[1], false);
        assert_eq!(works.streaming(), 3);
        let newest = works.sent(true);
        assert_eq!(
            works.began(at(1.4), newest, 0.5),
            6,
            "one end was of one that waited, as far as is known"
        );
    }

    #[test]
    fn a_seat_that_came_free_while_the_next_was_prefilled_counts_as_the_one_of_then() {
        let mut works = Works::default();
        let sent: Vec<_> = (0..3).map(|_| works.sent(true)).collect();
        works.began(at(1.0), sent[0], 0.5);
        assert_eq!(works.began(at(1.0), sent[1], 0.5), 2);
        works.ended(at(2.0), sent[0], true);
        works.ended(at(2.2), sent[1], true);
        assert_eq!(works.began(at(2.6), sent[2], 0.5), 2, "of two ends one was half a second ago");
        (0..2 * MAX_ENDED).for_each(|_| {
            let nth = works.sent(true);
            works.began(at(3.0), nth, 0.0);
            works.ended(at(3.0), nth, true);
        });
        let nth = works.sent(true);
        assert_eq!(works.began(at(3.0), nth, 1.0) as usize, 2 + MAX_ENDED);
    }
}
