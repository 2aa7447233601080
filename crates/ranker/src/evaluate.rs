//! How well a ranker does on a trace.

use std::time::Instant;

use outrank_core::Score;
use serde::Serialize;

use crate::ranker::Ranker;
use crate::tau::{kendall_tau_b, pairwise_accuracy};
use crate::trace::TraceRecord;

/// Passes over a trace in which each prompt is timed. Between two timings of a prompt all the others are scored, so that
/// weights are as cold in the caches as in serving.
pub const TIMING_PASSES: usize = 3;

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
    /// Mean time to score a prompt on one thread, in microseconds: one pass, as the clock took it.
    pub us_per_prompt: f64,
    /// Median over prompts of the time to score one, in microseconds, on one thread. Each prompt is timed by itself in
    /// [`TIMING_PASSES`] passes over the whole trace, and the fastest counts: what the work takes, without what else the machine does.
    pub us_p50: f64,
    /// The 99th percentile of the same.
    pub us_p99: f64,
    /// Median over requests of |ln predicted - ln true|.
    pub median_abs_ln_error: f64,
    /// Share of true lengths in the predicted central interval of 80 %: 0.8 where calibrated.
    pub interval_80_coverage: f64,
    /// Calibration error: mean |ln predicted - ln true| of the means of ten equal groups of requests, by
    /// predicted length. 0.1 is about 10 %.
    pub calibration_error: f64,
}

/// Scores every record that has a length, and compares. The clock is read for the times only.
pub fn evaluate(file: &str, ranker: &Ranker, records: &[&TraceRecord]) -> EvalReport {
    let labelled: Vec<(String, f64)> =
        records.iter().filter_map(|r| Some((r.request_text(), r.length_tokens()?.max(1.0)))).collect();
    let (scores, first_us, mut fastest_us) = timed(ranker, &labelled);
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
    fastest_us.sort_by(f64::total_cmp);
    EvalReport {
        file: file.to_owned(),
        requests,
        tau_b: kendall_tau_b(&predicted, &truth),
        pairwise_accuracy: pairwise_accuracy(&predicted, &truth),
        us_per_prompt: first_us / requests.max(1) as f64,
        us_p50: percentile(&fastest_us, 0.5),
        us_p99: percentile(&fastest_us, 0.99),
        median_abs_ln_error: errors.get(requests / 2).copied().unwrap_or(0.0),
        interval_80_coverage: covered.count() as f64 / requests.max(1) as f64,
        calibration_error: calibration_error(&pairs),
    }
}

/// The score of each text; the time of the first pass over all, and the fastest of [`TIMING_PASSES`] scorings of each, in
/// microseconds.
fn timed(ranker: &Ranker, texts: &[(String, f64)]) -> (Vec<Score>, f64, Vec<f64>) {
    let mut fastest = vec![f64::INFINITY; texts.len()];
    let mut pass = || {
        let mut took = 0.0;
        let scored = fastest.iter_mut().zip(texts).map(|(fastest, (text, _))| {
            let start = Instant::now();
            let score = std::hint::black_box(ranker.score(std::hint::black_box(text)));
            let us = start.elapsed().as_secs_f64() * 1e6;
            took += us;
            *fastest = fastest.min(us);
            score
        });
        (scored.collect::<Vec<_>>(), took)
    };
    let (scores, first) = pass();
    (1..TIMING_PASSES).for_each(|_| drop(pass()));
    (scores, first, fastest)
}

/// The nearest-rank percentile of sorted values; 0 without any.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Prompt;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&values, share)), [100.0, 198.0, 200.0]);
        assert_eq!((percentile(&[3.0], 0.99), percentile(&[], 0.5)), (3.0, 0.0));
    }

    #[test]
    fn times_are_those_of_single_prompts() {
        let record = |words: usize| TraceRecord {
            output_tokens: vec![9],
            ..TraceRecord::new(Prompt::Text("many different words ".repeat(words)))
        };
        // One prompt in fifty is long, which the median must not see and the 99th percentile must.
        let records: Vec<TraceRecord> = (0..200).map(|n| record(if n % 50 == 0 { 400 } else { 1 })).collect();
        let report = evaluate("t", Ranker::shipped(), &records.iter().collect::<Vec<_>>());
        assert!(report.us_p50 > 0.0 && report.us_p99 > 5.0 * report.us_p50, "{report:?}");
    }
}
