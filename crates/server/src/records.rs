//! What is known about the requests that are under way and those that ended lately.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrank_core::{RequestId, Score};
use outrank_engine::{FinishReason, Timings};
use outrank_http::{Open, Recorded};

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
#[derive(Clone, PartialEq, Debug)]
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
    /// `None` once it has ended, and where nothing is to be learned from its length.
    pub(crate) lesson: Option<Lesson>,
}

/// What is to be learned from an output.
#[derive(Clone, PartialEq)]
pub(crate) struct Lesson {
    /// Its prompt, as it was scored.
    pub(crate) text: Arc<str>,
    /// Its limit in tokens.
    pub(crate) limit_tokens: u32,
}

impl fmt::Debug for Lesson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prompts are never printed.
        f.debug_struct("Lesson").field("limit_tokens", &self.limit_tokens).finish_non_exhaustive()
    }
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

    /// How far the outputs are that run and will be learned from. One that has a seat and no token yet is left out: how long its
    /// prompt takes says nothing of its length.
    pub(crate) fn open(&self) -> Vec<Open> {
        let open = |choice: &ChoiceRecord| {
            let lesson =
                choice.lesson.as_ref().filter(|_| choice.end.is_none() && choice.output_tokens > 0)?;
            Some(Open {
                text: Arc::clone(&lesson.text),
                tokens: choice.output_tokens,
                limit_tokens: lesson.limit_tokens,
            })
        };
        lock(&self.choices).iter().filter_map(open).collect()
    }

    /// Changes what is known about one output.
    pub(crate) fn update(&self, index: usize, change: impl FnOnce(&mut ChoiceRecord)) {
        if let Some(choice) = lock(&self.choices).get_mut(index) {
            change(choice);
        }
    }
}

/// All records that can be asked for.
pub(crate) type Records = outrank_http::Records<Record>;
/// The record of a request that is under way.
pub(crate) type OpenRecord = outrank_http::OpenRecord<Record>;

impl Recorded for Record {
    type Id = String;

    fn id(&self) -> &String {
        &self.completion_id
    }

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn ended(&self) {
        for choice in lock(&self.choices).iter_mut() {
            choice.end.get_or_insert(End::Cancelled);
            choice.lesson = None;
        }
    }
}

/// The data of a mutex. No holder leaves it half-changed, so a panic elsewhere does no harm here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
