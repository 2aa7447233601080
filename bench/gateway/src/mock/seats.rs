//! Seats of the batch, and the queue for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::oneshot;

/// Place in the queue: priority, then arrival.
type Place = (i64, u64);

/// Seats of the batch.
#[derive(Debug)]
pub(crate) struct Seats {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: usize,
    arrivals: u64,
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
    peak_running: usize,
    peak_waiting: usize,
}

/// How full it is.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Occupancy {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) peak_running: usize,
    pub(crate) peak_waiting: usize,
}

/// A seat, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Seats>);

/// A place in the queue, given up when this is dropped.
struct Waiter<'a> {
    seats: &'a Arc<Seats>,
    place: Place,
    seated: bool,
    called: oneshot::Receiver<()>,
}

impl Seats {
    /// `limit` of them; 0 is no limit.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        Arc::new(Self { limit, inner: Mutex::default() })
    }

    /// Waits for a seat. Lower priorities go first, then those who came first.
    pub(crate) async fn take(self: &Arc<Self>, priority: i64) -> Seat {
        let waiter = {
            let mut inner = self.lock();
            if inner.running < self.limit {
                inner.seat();
                return Seat(Arc::clone(self));
            }
            inner.arrivals += 1;
            let place = (priority, inner.arrivals);
            let (call, called) = oneshot::channel();
            inner.waiting.insert(place, call);
            inner.peak_waiting = inner.peak_waiting.max(inner.waiting.len());
            Waiter { seats: self, place, seated: false, called }
        };
        waiter.wait().await
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let inner = self.lock();
        Occupancy {
            running: inner.running,
            waiting: inner.waiting.len(),
            peak_running: inner.peak_running,
            peak_waiting: inner.peak_waiting,
        }
    }

    /// Forgets the peaks.
    pub(crate) fn reset_peaks(&self) {
        let mut inner = self.lock();
        inner.peak_running = inner.running;
        inner.peak_waiting = inner.waiting.len();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a free seat to the first in the queue who is still there.
    fn release(&self) {
        let mut inner = self.lock();
        inner.running -= 1;
        while let Some((_, call)) = inner.waiting.pop_first() {
            if call.send(()).is_ok() {
                inner.seat();
                return;
            }
        }
    }
}

impl Inner {
    fn seat(&mut self) {
        self.running += 1;
        self.peak_running = self.peak_running.max(self.running);
    }
}

impl Waiter<'_> {
    async fn wait(mut self) -> Seat {
        // The sender leaves the queue only by being called.
        self.seated = (&mut self.called).await.is_ok();
        Seat(Arc::clone(self.seats))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.seated {
            return;
        }
        let queued = self.seats.lock().waiting.remove(&self.place).is_some();
        if !queued && self.called.try_recv().is_ok() {
            // Called just now: the seat goes to the next.
            self.seats.release();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn seats_go_by_priority_then_arrival_and_those_who_leave_are_skipped() {
        let seats = Seats::new(1);
        let first = seats.take(0).await;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for (name, priority) in [("a", 5), ("b", 1), ("leaves", 0), ("c", 5)] {
            let (seats, tell) = (Arc::clone(&seats), tell.clone());
            tasks.push(tokio::spawn(async move {
                let _seat = seats.take(priority).await;
                tell.send(name).unwrap();
            }));
            tokio::task::yield_now().await;
        }
        tasks[2].abort();
        tokio::task::yield_now().await;
        assert_eq!(seats.occupancy().waiting, 3);
        drop(first);
        let order = [told.recv().await, told.recv().await, told.recv().await];
        assert_eq!(order, [Some("b"), Some("a"), Some("c")]);
        tokio::task::yield_now().await;
        assert_eq!(seats.occupancy().running, 0);
    }

    #[tokio::test]
    async fn a_seat_given_to_one_who_leaves_at_once_is_not_lost() {
        let seats = Seats::new(1);
        let first = seats.take(0).await;
        let mut leaves = Box::pin(seats.take(0));
        assert!(futures_poll_once(&mut leaves).await);
        drop(first);
        drop(leaves);
        assert_eq!(seats.occupancy().running, 0);
        drop(seats.take(0).await);
    }

    /// Polls a future once; true if it is still pending.
    async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }
}
