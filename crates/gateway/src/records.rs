//! What is known about the requests that are under way and those that ended lately.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::task::AtomicWaker;
use outrank_core::Score;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metrics::Outcome;
use crate::scan::Finish;
use crate::tenants::Class;

/// One request.
#[derive(Debug)]
pub(crate) struct Record {
    /// Unique.
    pub(crate) id: u64,
    /// Value of `x-request-id`; a client may use one twice.
    pub(crate) request_id: String,
    pub(crate) model: String,
    pub(crate) class: Class,
    pub(crate) tenant: Option<Arc<str>>,
    /// When it was accepted, in seconds since the Unix epoch.
    pub(crate) created: f64,
    /// When it was expected to end, in seconds after it was accepted.
    pub(crate) eta_finish_s: f64,
    /// The desk's name of it.
    pub(crate) desk_id: AtomicU64,
    pub(crate) facts: Mutex<Facts>,
    /// Wakes who relays its answer, so that it sees that the gateway stops.
    pub(crate) waker: AtomicWaker,
    pub(crate) stop: AtomicBool,
}

/// What becomes known of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) score: Option<Score>,
    pub(crate) upstream: Option<String>,
    pub(crate) output_tokens: u32,
    pub(crate) finish: Option<Finish>,
    pub(crate) queue_s: Option<f64>,
    pub(crate) ttft_s: Option<f64>,
    pub(crate) e2e_s: Option<f64>,
    pub(crate) attempts: u32,
    pub(crate) outcome: Option<Outcome>,
}

/// All records that can be asked for: those under way, and a bounded number of those that ended.
#[derive(Debug)]
pub(crate) struct Records {
    state: Mutex<State>,
    max_finished: AtomicUsize,
    /// Requests that are being read and have not been accepted or refused yet.
    arriving: AtomicUsize,
    under_way: AtomicUsize,
    /// Told whenever a request ends.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_id: HashMap<u64, Arc<Record>>,
    /// The latest request of each request id.
    by_request: HashMap<String, u64>,
    /// Ended requests, oldest first.
    finished: VecDeque<u64>,
}

/// A request that is being read; dropped when it has been accepted or refused.
#[derive(Debug)]
pub(crate) struct Arriving(Arc<Records>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_waiters();
    }
}

impl Records {
    /// No records; `max_finished` ended ones will be kept.
    pub(crate) fn new(max_finished: usize) -> Self {
        Self {
            state: Mutex::default(),
            max_finished: AtomicUsize::new(max_finished),
            arriving: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }

    /// Notes a request that comes in, so that the gateway does not close under it.
    pub(crate) fn arrive(self: &Arc<Self>) -> Arriving {
        self.arriving.fetch_add(1, Ordering::AcqRel);
        Arriving(Arc::clone(self))
    }

    /// Adds a request that was accepted. It is under way until the entry is dropped.
    pub(crate) fn open(self: &Arc<Self>, record: Record) -> OpenRecord {
        let record = Arc::new(record);
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        state.by_request.insert(record.request_id.clone(), record.id);
        state.by_id.insert(record.id, Arc::clone(&record));
        OpenRecord { records: Arc::clone(self), record }
    }

    /// The record of a request id.
    pub(crate) fn find(&self, request_id: &str) -> Option<Arc<Record>> {
        let state = self.state.lock();
        let id = state.by_request.get(request_id)?;
        state.by_id.get(id).cloned()
    }

    /// Waits until no request is under way or coming in.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.under_way() == 0 && self.arriving.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Number of requests under way.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Tells those that are under way to stop.
    pub(crate) fn stop_all(&self) {
        for record in self.state.lock().by_id.values() {
            record.stop.store(true, Ordering::Release);
            record.waker.wake();
        }
    }

    fn close(&self, record: &Record) {
        let most = self.max_finished.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        state.finished.push_back(record.id);
        while state.finished.len() > most {
            state.forget_oldest();
        }
        drop(state);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_waiters();
    }
}

impl State {
    fn forget_oldest(&mut self) {
        let Some(oldest) = self.finished.pop_front() else { return };
        let Some(record) = self.by_id.remove(&oldest) else { return };
        if self.by_request.get(&record.request_id) == Some(&oldest) {
            self.by_request.remove(&record.request_id);
        }
    }
}

/// The record of a request that is under way; dropping it says that the request has ended.
#[derive(Debug)]
pub(crate) struct OpenRecord {
    records: Arc<Records>,
    record: Arc<Record>,
}

impl OpenRecord {
    /// The record itself.
    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.records.close(&self.record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(records: &Arc<Records>, id: u64, request_id: &str) -> OpenRecord {
        records.open(Record {
            id,
            request_id: request_id.into(),
            model: String::new(),
            class: Class::Default,
            tenant: None,
            created: 0.0,
            eta_finish_s: 0.0,
            desk_id: AtomicU64::new(id),
            facts: Mutex::default(),
            waker: AtomicWaker::new(),
            stop: AtomicBool::new(false),
        })
    }

    #[test]
    fn only_the_latest_ended_requests_are_remembered_and_those_under_way_always() {
        let records = Arc::new(Records::new(2));
        let running = open(&records, 1, "r1");
        for (id, request_id) in [(2, "r2"), (3, "same"), (4, "same")] {
            drop(open(&records, id, request_id));
        }
        assert!(records.find("r2").is_none() && records.find("r1").is_some());
        assert_eq!((records.find("same").unwrap().id, records.under_way()), (4, 1));
        drop(running);
        drop(open(&records, 5, "r5"));
        assert!(records.find("same").is_none() && records.state.lock().by_id.len() == 2);
        assert_eq!(records.under_way(), 0);
    }

    #[tokio::test]
    async fn idle_comes_when_the_last_request_ends() {
        let records = Arc::new(Records::new(1));
        let (running, arriving) = (open(&records, 1, "r"), records.arrive());
        let waiter = tokio::spawn({
            let records = Arc::clone(&records);
            async move { records.idle().await }
        });
        tokio::task::yield_now().await;
        drop(running);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(arriving);
        waiter.await.unwrap();
    }
}
