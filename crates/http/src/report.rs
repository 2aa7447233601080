//! What answers to "where is my request, and why?" have in common.

use outrank_core::Score;
use serde::Serialize;

/// A predicted output length, as clients are told it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct PredictedTokens {
    /// Median of the length, in tokens.
    pub median: f32,
    /// Lower end of the interval, in tokens.
    pub low: f32,
    /// Upper end of the interval, in tokens.
    pub high: f32,
    /// Probability with which the true length lies in the interval.
    pub probability: f64,
}

impl From<Score> for PredictedTokens {
    fn from(score: Score) -> Self {
        let (low, high) = score.interval();
        // What the interval of a score promises.
        Self { median: score.median_tokens(), low, high, probability: 0.8 }
    }
}

/// Milliseconds with three decimals.
pub fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}
