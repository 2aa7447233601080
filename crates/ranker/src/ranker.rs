//! The ranker: prompt in, predicted length out.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use outrank_core::Score;
use serde::{Deserialize, Serialize};

use crate::calibration::Calibration;
use crate::features::{DIMENSIONS, Scratch};

/// One trace that a ranker learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceCard {
    /// The trace's name.
    pub name: String,
    /// Its licence, where known.
    pub licence: Option<String>,
    /// Rows in the trace.
    pub rows: usize,
    /// Rows learned from.
    pub learned_rows: usize,
}

/// How well a ranker orders requests that it did not learn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Held-out requests.
    pub requests: usize,
    /// Kendall's tau-b between predicted and true lengths; over several models the mean of each one's
    /// own, weighted by its requests.
    pub tau_b: f64,
}

impl HeldOut {
    /// Of several models: requests of each, and its tau-b where that is defined. `None` where it is for none.
    pub fn mean(models: impl IntoIterator<Item = (usize, Option<f64>)>) -> Option<Self> {
        let defined = models.into_iter().filter_map(|(requests, tau_b)| Some((requests, tau_b?)));
        let (requests, sum) = defined
            .fold((0, 0.0), |(n, sum), (requests, tau_b)| (n + requests, sum + tau_b * requests as f64));
        (requests > 0).then(|| Self { requests, tau_b: sum / requests as f64 })
    }
}

/// What a ranker file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Licence of the weights.
    pub licence: String,
    /// The command that made the file.
    pub command: String,
    /// What it learned from.
    pub sources: Vec<SourceCard>,
    /// Seed of folds, lists and ties.
    pub seed: u64,
    /// The held-out result; `None` where it learned from everything.
    pub held_out: Option<HeldOut>,
    /// Tau-b of cross-validation within the learned part.
    pub validation_tau_b: Option<f64>,
}

/// A trained ranker. Cheap to clone and to share between threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranker {
    /// One weight a feature; a higher raw score is a longer answer. Each is exact in 16 bits.
    pub(crate) weights: Arc<[f32]>,
    pub(crate) calibration: Calibration,
    pub(crate) card: Card,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Ranker {
    /// The ranker that ships inside the program (`assets/default.outrank`; [`crate::shipped`] says what it
    /// learned from): a cold start, until one trained on the traffic of its own model takes over.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<Ranker> = LazyLock::new(|| {
            Ranker::from_bytes(crate::shipped::FILE).expect("the ranker inside the program is sound")
        });
        &SHIPPED
    }

    /// The predicted length of the answer to a prompt ([`crate::trace::TraceRecord::text`],
    /// [`crate::trace::flatten_messages`]). Any text will do; nothing is allocated once the thread is warm.
    pub fn score(&self, text: &str) -> Score {
        self.calibration.score(self.raw(text))
    }

    /// The raw score: no unit, higher for longer answers, in the same order as [`Ranker::score`].
    pub fn raw(&self, text: &str) -> f32 {
        SCRATCH.with_borrow_mut(|scratch| self.raw_of(scratch.extract(text)))
    }

    /// The raw score of features extracted before.
    pub fn raw_of(&self, features: &[(u32, f32)]) -> f32 {
        debug_assert_eq!(self.weights.len(), DIMENSIONS);
        features.iter().map(|&(index, value)| self.weights[index as usize] * value).sum()
    }

    /// The same order of requests under another curve from raw score to tokens: what a server fits to the
    /// lengths that it observes.
    pub fn with_calibration(&self, calibration: Calibration) -> Self {
        Self { weights: Arc::clone(&self.weights), calibration, card: self.card.clone() }
    }

    /// The same ranker, with how well it ordered requests that it did not learn from on its card.
    pub fn with_held_out(mut self, held_out: HeldOut) -> Self {
        self.card.held_out = Some(held_out);
        self
    }

    /// The curve from raw score to tokens.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What the file says about itself.
    pub fn card(&self) -> &Card {
        &self.card
    }
}
