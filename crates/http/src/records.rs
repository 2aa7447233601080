//! Records of the requests that are under way and of those that ended lately.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a host remembers of a request.
pub trait Recorded {
    /// Its name, which no other request has.
    type Id: Clone + Eq + Hash + Debug;

    /// Its name.
    fn id(&self) -> &Self::Id;

    /// Value of its `x-request-id`; a client may use one twice.
    fn request_id(&self) -> &str;

    /// The request has ended, in whatever way.
    fn ended(&self) {}
}

/// All records that can be asked for: those under way, and a bounded number of those that ended.
#[derive(Debug)]
pub struct Records<R: Recorded> {
    state: Mutex<State<R>>,
    max_finished: usize,
    /// Requests that are being read and have not been accepted or refused yet.
    arriving: AtomicUsize,
    under_way: AtomicUsize,
    /// Told whenever a request ends.
    ended: Notify,
}

#[derive(Debug)]
struct State<R: Recorded> {
    by_id: HashMap<R::Id, Arc<R>>,
    /// The latest request of each request id.
    by_request: HashMap<String, R::Id>,
    /// Ended requests, oldest first.
    finished: VecDeque<R::Id>,
}

/// A request that is being read; dropped when it has been accepted or refused.
#[derive(Debug)]
pub struct Arriving<R: Recorded>(Arc<Records<R>>);

impl<R: Recorded> Drop for Arriving<R> {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_waiters();
    }
}

impl<R: Recorded> Records<R> {
    /// No records; `max_finished` ended ones will be kept.
    pub fn new(max_finished: usize) -> Self {
        let (by_id, by_request, finished) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self {
            state: Mutex::new(State { by_id, by_request, finished }),
            max_finished,
            arriving: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }

    /// Notes a request that comes in, so that the host does not close under it.
    pub fn arrive(self: &Arc<Self>) -> Arriving<R> {
        self.arriving.fetch_add(1, Ordering::AcqRel);
        Arriving(Arc::clone(self))
    }

    /// Adds a request that was accepted. It is under way until the entry is dropped.
    pub fn open(self: &Arc<Self>, record: R) -> OpenRecord<R> {
        let record = Arc::new(record);
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let mut state = self.lock();
        state.by_request.insert(record.request_id().to_owned(), record.id().clone());
        state.by_id.insert(record.id().clone(), Arc::clone(&record));
        drop(state);
        OpenRecord { records: Arc::clone(self), record }
    }

    /// The record of this name.
    pub fn get(&self, id: &R::Id) -> Option<Arc<R>> {
        self.lock().by_id.get(id).cloned()
    }

    /// The latest record of a request id.
    pub fn find(&self, request_id: &str) -> Option<Arc<R>> {
        let state = self.lock();
        let id = state.by_request.get(request_id)?;
        state.by_id.get(id).cloned()
    }

    /// Every record, in no order.
    pub fn all(&self) -> Vec<Arc<R>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// Waits until no request is under way or coming in.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.under_way() == 0 && self.arriving.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Number of requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    fn close(&self, record: &R) {
        record.ended();
        let mut state = self.lock();
        state.finished.push_back(record.id().clone());
        while state.finished.len() > self.max_finished {
            state.forget_oldest();
        }
        drop(state);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // No holder leaves it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Recorded> State<R> {
    fn forget_oldest(&mut self) {
        let Some(oldest) = self.finished.pop_front() else { return };
        let Some(record) = self.by_id.remove(&oldest) else { return };
        if self.by_request.get(record.request_id()) == Some(&oldest) {
            self.by_request.remove(record.request_id());
        }
    }
}

/// The record of a request that is under way; dropping it says that the request has ended.
#[derive(Debug)]
pub struct OpenRecord<R: Recorded> {
    records: Arc<Records<R>>,
    record: Arc<R>,
}

impl<R: Recorded> OpenRecord<R> {
    /// The record itself.
    pub fn record(&self) -> &Arc<R> {
        &self.record
    }
}

impl<R: Recorded> Drop for OpenRecord<R> {
    fn drop(&mut self) {
        self.records.close(&self.record);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Debug)]
    struct Record {
        id: u32,
        request_id: &'static str,
        ended: AtomicBool,
    }

    impl Recorded for Record {
        type Id = u32;

        fn id(&self) -> &u32 {
            &self.id
        }

        fn request_id(&self) -> &str {
            self.request_id
        }

        fn ended(&self) {
            self.ended.store(true, Ordering::Release);
        }
    }

    fn open(records: &Arc<Records<Record>>, id: u32, request_id: &'static str) -> OpenRecord<Record> {
        records.open(Record { id, request_id, ended: AtomicBool::new(false) })
    }

    #[test]
    fn only_the_latest_ended_requests_are_remembered_and_those_under_way_always() {
        let records = Arc::new(Records::new(2));
        let running = open(&records, 0, "r0");
        for (id, request_id) in [(1, "r1"), (2, "r2"), (3, "r3")] {
            drop(open(&records, id, request_id));
        }
        assert!(records.get(&1).is_none() && records.find("r1").is_none(), "the oldest is forgotten");
        assert!(records.get(&2).is_some() && records.find("r3").is_some());
        assert_eq!(records.under_way(), 1);
        let record = records.find("r0").unwrap();
        assert!(!record.ended.load(Ordering::Acquire));
        drop(running);
        assert!(record.ended.load(Ordering::Acquire));
        assert_eq!((records.under_way(), records.lock().by_id.len()), (0, 2));
    }

    #[test]
    fn a_request_id_used_twice_names_the_later_request_even_after_the_earlier_is_forgotten() {
        let records = Arc::new(Records::new(1));
        drop(open(&records, 1, "same"));
        drop(open(&records, 2, "same"));
        assert_eq!(records.find("same").unwrap().id, 2);
        assert!(records.get(&1).is_none());
        drop(open(&records, 3, "other"));
        assert!(records.find("same").is_none() && records.lock().by_request.len() == 1);
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
