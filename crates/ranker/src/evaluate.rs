//! How well a ranker does on a trace.

use std::time::Instant;

use serde::Serialize;

use crate::ranker::Ranker;
use crate::tau::{kendall_tau_b, pairwise_accuracy};
use crate::trace::TraceRecord;

/// What [`evaluate`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// The trace's name.
    pub file: String,
    /// Requests with a length.
    pub requests: usize,
    /// Kendall's tau-b between predicted and true lengths; `None` where it is not defined.
    pub tau_b: Option<f64>,
    /// Share of pairs of different length that are ordered rightly.
    pub pairwise_accuracy: Option<f64>,
    /// Mean time to score a prompt on one core, in microseconds.
    pub us_per_prompt: f64,
    /// Median over requests of |ln predicted - ln true|.
    pub median_abs_ln_error: f64,
    /// Share of true lengths in the predicted central interval of 80 %: 0.8 where calibrated.
    pub interval_80_coverage: f64,
    /// Calibration error: mean |ln predicted - ln true| of the means of ten equal groups of requests, by
    /// predicted length. 0.1 is about 10 %.
    pub calibration_error: f64,
}

/// Scores every record that has a length, and compares. The clock is read for `us_per_prompt` only.
pub fn evaluate(file: &str, ranker: &Ranker, records: &[&TraceRecord]) -> EvalReport {
    let labelled: Vec<(String, f64)> =
        records.iter().filter_map(|r| Some((r.request_text(), r.length_tokens()?.max(1.0)))).collect();
    let start = Instant::now();
    let scores: Vec<_> = labelled.iter().map(|(text, _)| ranker.score(text)).collect();
    let elapsed_us = start.elapsed().as_secs_f64() * 1e6;
    let requests = labelled.len();
    let truth: Vec<f64> = labelled.iter().map(|(_, tokens)| *tokens).collect();
    let predicted: Vec<f64> = scores.iter().map(|score| f64::from(score.median_tokens())).collect();
    let mut pairs: Vec<(f64, f64)> = predicted.iter().zip(&truth).map(|(p, t)| (p.ln(), t.ln())).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut errors: Vec<f64> = pairs.iter().map(|(p, t)| (p - t).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let covered = scores.iter().zip(&truth).filter(|(score, tokens)| {
        let (low, high) = score.interval();
        (f64::from(low)..=f64::from(high)).contains(tokens)
    });
    EvalReport {
        file: file.to_owned(),
        requests,
        tau_b: kendall_tau_b(&predicted, &truth),
        pairwise_accuracy: pairwise_accuracy(&predicted, &truth),
        us_per_prompt: elapsed_us / requests.max(1) as f64,
        median_abs_ln_error: errors.get(requests / 2).copied().unwrap_or(0.0),
        interval_80_coverage: covered.count() as f64 / requests.max(1) as f64,
        calibration_error: calibration_error(&pairs),
    }
}

/// Over ten groups of neighbours by prediction, the mean distance of mean prediction and mean truth.
fn calibration_error(sorted: &[(f64, f64)]) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    let groups = sorted.chunks(sorted.len().div_ceil(10));
    let weighted = groups.map(|group| group.iter().map(|(p, t)| p - t).sum::<f64>().abs());
    weighted.sum::<f64>() / sorted.len() as f64
}
