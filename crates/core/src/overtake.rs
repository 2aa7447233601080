//! Who overtook whom, without touching every waiting request at every start.

use std::collections::VecDeque;

/// Remembers, in order of arrival, which requests have started. A later arrival can only have started after an
/// earlier one arrived, so "overtaken by" is the number of started requests with a higher arrival number.
#[derive(Clone, Debug, Default)]
pub struct OvertakeLog {
    /// Arrival number of the front of `status`.
    first: u64,
    status: VecDeque<Status>,
    /// How many of `status` have started.
    started: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Waiting,
    Started,
    Left,
}

impl OvertakeLog {
    /// A request arrives; returns its arrival number.
    pub fn arrive(&mut self) -> u64 {
        self.status.push_back(Status::Waiting);
        self.first + self.status.len() as u64 - 1
    }

    /// The request with this arrival number starts. Returns how many later arrivals started before it.
    pub fn start(&mut self, number: u64) -> u64 {
        let overtaken = self.overtaken_by(number);
        self.mark(number, Status::Started);
        overtaken
    }

    /// The request with this arrival number leaves without having started.
    pub fn leave(&mut self, number: u64) {
        self.mark(number, Status::Left);
    }

    /// Later arrivals that have started so far. Costs at most half the arrivals since the oldest waiting request.
    pub fn overtaken_by(&self, number: u64) -> u64 {
        let Some(at) = number.checked_sub(self.first) else { return 0 };
        let after = self.status.len().min(at as usize + 1);
        let count = |range| self.status.range(range).filter(|&&it| it == Status::Started).count() as u64;
        if after < self.status.len() / 2 {
            self.started - count(0..after)
        } else {
            count(after..self.status.len())
        }
    }

    fn mark(&mut self, number: u64, status: Status) {
        if let Some(at) = number.checked_sub(self.first)
            && let Some(entry) = self.status.get_mut(at as usize)
        {
            *entry = status;
            self.started += u64::from(status == Status::Started);
        }
        while self.status.front().is_some_and(|&front| front != Status::Waiting) {
            let front = self.status.pop_front();
            self.started -= u64::from(front == Some(Status::Started));
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_arrivals_that_start_first_are_counted_and_cancelled_ones_are_not() {
        let mut log = OvertakeLog::default();
        let numbers: Vec<u64> = (0..4).map(|_| log.arrive()).collect();
        assert_eq!(log.start(numbers[2]), 0);
        log.leave(numbers[3]);
        assert_eq!(log.overtaken_by(numbers[0]), 1);
        assert_eq!(log.start(numbers[0]), 1);
        assert_eq!(log.start(numbers[1]), 1);
        assert!(log.status.is_empty(), "nothing is kept once nobody waits");
        assert_eq!(log.start(log.first - 1), 0, "one long gone has nobody to be compared with");
    }
}
