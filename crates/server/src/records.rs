//! What is known about the requests that are under way and those that ended lately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrank_core::{RequestId, Score};
use outrank_engine::{FinishReason, Timings};
use tokio::sync::Notify;

/// One HTTP request and its outputs.
#[derive(Debug)]
pub(crate) struct Record {
    /// Id of the completion, unique.
    pub(crate) completion_id: String,
    /// Value of `x-request-id`; a client may use one twice.
    pub(crate) request_id: String,
    /// When it was accepted, in seconds since the Unix epoch.
    pub(crate) created: u64,
    /// Its outputs, by index.
    choices: Mutex<Vec<ChoiceRecord>>,
}

/// One output.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct ChoiceRecord {
    /// The scheduler's name of it.
    pub(crate) id: RequestId,
    /// Its predicted length.
    pub(crate) score: Option<Score>,
    /// When it was expected to end, in seconds after it was accepted.
    pub(crate) eta_finish_s: f64,
    /// Tokens that came out so far.
    pub(crate) output_tokens: u32,
    /// How it ended, once it has.
    pub(crate) end: Option<End>,
}

/// How an output ended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum End {
    /// By itself.
    Finished(FinishReason, Timings),
    /// The engine gave it up.
    Failed,
    /// The client left, or another output of the same request failed.
    Cancelled,
}

impl Record {
    pub(crate) fn new(
        completion_id: String,
        request_id: String,
        created: u64,
        choices: Vec<ChoiceRecord>,
    ) -> Self {
        Self { completion_id, request_id, created, choices: Mutex::new(choices) }
    }

    /// A copy of what is known about its outputs.
    pub(crate) fn choices(&self) -> Vec<ChoiceRecord> {
        lock(&self.choices).clone()
    }

    /// Changes what is known about one output.
    pub(crate) fn update(&self, index: usize, change: impl FnOnce(&mut ChoiceRecord)) {
        if let Some(choice) = lock(&self.choices).get_mut(index) {
            change(choice);
        }
    }
}

/// All records that can be asked for: those under way, and a bounded number of those that ended.
#[derive(Debug)]
pub(crate) struct Records {
    state: Mutex<State>,
    max_finished: usize,
    /// Told whenever a request ends.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_completion: HashMap<String, Arc<Record>>,
    /// The latest completion id of each request id.
    by_request: HashMap<String, String>,
    /// Completion ids of ended requests, oldest first.
    finished: VecDeque<String>,
    /// Requests that are being read and have not been accepted or refused yet.
    arriving: usize,
}

/// A request that is being read; dropped when it has been accepted or refused.
#[derive(Debug)]
pub(crate) struct Arriving(Arc<Records>);

impl Drop for Arriving {
    fn drop(&mut self) {
        lock(&self.0.state).arriving -= 1;
        self.0.ended.notify_waiters();
    }
}

impl Records {
    /// No records; `max_finished` ended ones will be kept.
    pub(crate) fn new(max_finished: usize) -> Self {
        Self { state: Mutex::default(), max_finished, ended: Notify::new() }
    }

    /// Notes a request that comes in, so that the server does not close under it.
    pub(crate) fn arrive(self: &Arc<Self>) -> Arriving {
        lock(&self.state).arriving += 1;
        Arriving(Arc::clone(self))
    }

    /// Adds a request that was accepted. It is under way until the entry is dropped.
    pub(crate) fn open(self: &Arc<Self>, record: Record) -> OpenRecord {
        let record = Arc::new(record);
        let mut state = lock(&self.state);
        state.by_request.insert(record.request_id.clone(), record.completion_id.clone());
        state.by_completion.insert(record.completion_id.clone(), Arc::clone(&record));
        OpenRecord { records: Arc::clone(self), record }
    }

    /// The record of a completion id or request id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Record>> {
        let state = lock(&self.state);
        let completion_id = state.by_request.get(id).map_or(id, String::as_str);
        state.by_completion.get(completion_id).cloned()
    }

    /// Waits until no request is under way or coming in.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.under_way() == 0 && lock(&self.state).arriving == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Number of requests under way.
    pub(crate) fn under_way(&self) -> usize {
        let state = lock(&self.state);
        state.by_completion.len() - state.finished.len()
    }

    fn close(&self, record: &Record) {
        let mut state = lock(&self.state);
        state.finished.push_back(record.completion_id.clone());
        while state.finished.len() > self.max_finished {
            state.forget_oldest();
        }
        drop(state);
        self.ended.notify_waiters();
    }
}

impl State {
    fn forget_oldest(&mut self) {
        let Some(oldest) = self.finished.pop_front() else { return };
        let Some(record) = self.by_completion.remove(&oldest) else { return };
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
        for choice in lock(&self.record.choices).iter_mut() {
            choice.end.get_or_insert(End::Cancelled);
        }
        self.records.close(&self.record);
    }
}

/// The data of a mutex. No holder leaves it half-changed, so a panic elsewhere does no harm here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(records: &Arc<Records>, completion_id: &str, request_id: &str) -> OpenRecord {
        records.open(Record::new(completion_id.into(), request_id.into(), 0, Vec::new()))
    }

    #[test]
    fn only_the_latest_ended_requests_are_remembered_and_those_under_way_always() {
        let records = Arc::new(Records::new(2));
        let running = open(&records, "c0", "r0");
        for (completion_id, request_id) in [("c1", "r1"), ("c2", "r2"), ("c3", "r3")] {
            drop(open(&records, completion_id, request_id));
        }
        assert!(records.find("c1").is_none() && records.find("r1").is_none(), "the oldest is forgotten");
        assert!(records.find("c2").is_some() && records.find("r3").is_some());
        assert!(records.find("r0").is_some());
        assert_eq!(records.under_way(), 1);
        drop(running);
        assert_eq!(records.under_way(), 0);
    }

    #[test]
    fn a_request_id_used_twice_names_the_later_request_even_after_the_earlier_is_forgotten() {
        let records = Arc::new(Records::new(1));
        drop(open(&records, "c1", "same"));
        drop(open(&records, "c2", "same"));
        assert_eq!(records.find("same").unwrap().completion_id, "c2");
        assert!(records.find("c1").is_none());
    }

    #[tokio::test]
    async fn idle_comes_when_the_last_request_ends() {
        let records = Arc::new(Records::new(1));
        let running = open(&records, "c", "r");
        let waiter = tokio::spawn({
            let records = Arc::clone(&records);
            async move { records.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(running);
        waiter.await.unwrap();
    }
}
