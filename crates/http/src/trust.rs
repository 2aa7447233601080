//! How far the predictions are to be trusted, by the newest answers.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use outrank_core::{Score, Trust};
use outrank_ranker::kendall_tau_b;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::LatencyHistogram;

/// Answers that the rolling figures are taken over.
const WINDOW_ANSWERS: usize = 512;

/// The newest answers that were predicted, beside what was predicted of them.
#[derive(Debug, Default)]
struct NewestAnswers(VecDeque<Judged>);

/// One answer.
#[derive(Clone, Copy, Debug)]
struct Judged {
    median_tokens: f64,
    tokens: f64,
    /// Its limit ended it: by itself it would have been longer.
    capped: bool,
    /// Whether the predicted interval held its length.
    inside: bool,
}

impl NewestAnswers {
    fn note(&mut self, score: Score, tokens: u32, capped: bool) {
        if self.0.len() == WINDOW_ANSWERS {
            self.0.pop_front();
        }
        let (low, high) = score.interval();
        let (median_tokens, tokens) = (f64::from(score.median_tokens()), f64::from(tokens));
        // A capped answer is at least this long: only what exceeds the interval already is known to lie outside.
        let inside = tokens <= f64::from(high) && (capped || tokens >= f64::from(low));
        self.0.push_back(Judged { median_tokens, tokens, capped, inside });
    }

    /// Kendall's tau-b of predicted and true lengths, of the answers that ended by themselves; `None` where there are too few
    /// or all are alike.
    fn tau_b(&self) -> Option<f64> {
        let ended = self.0.iter().filter(|answer| !answer.capped);
        let (predicted, tokens): (Vec<f64>, Vec<f64>) =
            ended.map(|answer| (answer.median_tokens, answer.tokens)).unzip();
        kendall_tau_b(&predicted, &tokens)
    }

    /// The share of answers whose length fell in the predicted interval; `None` without an answer.
    fn calibration(&self) -> Option<f64> {
        let inside = self.0.iter().filter(|answer| answer.inside).count();
        (!self.0.is_empty()).then(|| inside as f64 / self.0.len() as f64)
    }
}

/// Metrics that say how far predictions and expected times are to be trusted; the same in every host.
#[derive(Debug, Default)]
pub struct TrustMetrics {
    newest: Mutex<NewestAnswers>,
    eta_error: LatencyHistogram,
    tau_b: Gauge<f64, AtomicU64>,
    calibration: Gauge<f64, AtomicU64>,
    answers: Gauge,
    trusted: Gauge,
}

impl TrustMetrics {
    /// Makes them part of what is rendered.
    pub fn register(&self, to: &mut Registry) {
        to.register(
            "rank_tau",
            "Kendall's tau-b of predictions and lengths, of those of the newest 512 answers that ended by themselves; 0 before there are two",
            self.tau_b.clone(),
        );
        to.register(
            "calibration",
            "Share of the newest 512 answers whose length lay in the predicted 80 % interval; one cut at its limit counts as inside unless it is longer already; 0 before there is one",
            self.calibration.clone(),
        );
        to.register(
            "rank_answers",
            "Answers that rank_tau and calibration rest on, 512 at most",
            self.answers.clone(),
        );
        to.register(
            "trust_state",
            "1 while the monitor trusts the scores, 0 while they are no better than chance and policies that fall back go by arrival",
            self.trusted.clone(),
        );
        to.register("eta_error_seconds", "Between expected and true end, either way", self.eta_error.clone());
    }

    /// Notes an answer that came whole, by the score that its request had. `capped` says that its limit ended it, unless that
    /// limit was its recorded length.
    pub fn note_answer(&self, score: Option<Score>, tokens: u32, capped: bool) {
        if let Some(score) = score {
            self.lock().note(score, tokens, capped);
        }
    }

    /// Notes when an answer was expected to end and when it did, in seconds after its request arrived.
    pub fn note_end(&self, expected_s: f64, took_s: f64) {
        self.eta_error.observe((expected_s - took_s).abs());
    }

    /// Brings the figures up to date that are taken when somebody asks.
    pub fn refresh(&self, trust: Trust) {
        let newest = self.lock();
        self.answers.set(newest.0.len() as i64);
        self.calibration.set(newest.calibration().unwrap_or(0.0));
        self.tau_b.set(newest.tau_b().unwrap_or(0.0));
        drop(newest);
        self.trusted.set(i64::from(trust == Trust::Trusted));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, NewestAnswers> {
        // No holder leaves it half-changed.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    /// Between 50 and 200 tokens with 80 %.
    fn score(median: f32) -> Score {
        Score::new(median, 0.5).unwrap().with_reach(2.0_f32.ln()).unwrap()
    }

    #[test]
    fn calibration_is_the_share_inside_and_the_ends_count_as_inside() {
        let mut newest = NewestAnswers::default();
        assert_eq!(newest.calibration(), None);
        for tokens in [49, 50, 100, 199, 202] {
            newest.note(score(100.0), tokens, false);
        }
        assert_eq!(newest.calibration(), Some(3.0 / 5.0));
    }

    #[test]
    fn an_answer_cut_at_its_limit_is_outside_only_where_it_is_too_long_already() {
        let mut newest = NewestAnswers::default();
        newest.note(score(100.0), 10, true);
        newest.note(score(100.0), 150, true);
        assert_eq!(newest.calibration(), Some(1.0));
        newest.note(score(100.0), 500, true);
        assert_eq!(newest.calibration(), Some(2.0 / 3.0));
        assert_eq!(newest.tau_b(), None, "how long they would have been is not known");
    }

    #[test]
    fn tau_b_is_that_of_the_newest_answers_and_of_no_others() {
        let mut newest = NewestAnswers::default();
        for tokens in 0..600 {
            newest.note(score(1000.0 - tokens as f32), tokens, false);
        }
        assert_eq!(newest.tau_b(), Some(-1.0));
        for tokens in 0..WINDOW_ANSWERS as u32 {
            // Cut short: in order or not, it says nothing.
            newest.note(score(1.0 + tokens as f32), tokens, tokens % 4 == 0);
        }
        assert_eq!((newest.tau_b(), newest.0.len()), (Some(1.0), WINDOW_ANSWERS));
    }

    #[test]
    fn a_ranker_that_is_as_sure_as_it_says_is_calibrated_at_four_fifths() {
        let mut newest = NewestAnswers::default();
        let predicted = Score::new(1000.0, 0.8).unwrap();
        // Evenly spaced quantiles of the predicted distribution; the logistic one is within 1 % of the normal.
        for nth in 0..400_u32 {
            let p = (f64::from(nth) + 0.5) / 400.0;
            let z = (p / (1.0 - p)).ln() / 1.702;
            newest.note(predicted, (1000.0 * (0.8 * z).exp()) as u32, false);
        }
        let share = newest.calibration().unwrap();
        assert!((share - 0.8).abs() < 0.01, "{share}");
    }

    #[test]
    fn what_is_rendered_is_what_was_noted() {
        let metrics = TrustMetrics::default();
        let mut registry = Registry::with_prefix("outrank");
        metrics.register(&mut registry);
        for (median, tokens, capped) in [(10.0, 11, false), (20.0, 90, false), (30.0, 5, true)] {
            metrics.note_answer(Some(score(median)), tokens, capped);
        }
        metrics.note_answer(None, 7, false);
        metrics.note_end(1.0, 1.5);
        metrics.note_end(2.0, 1.5);
        metrics.refresh(Trust::Distrusted);
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry).unwrap();
        for line in [
            "outrank_rank_tau 1.0",
            "outrank_calibration 0.6666666666666666",
            "outrank_rank_answers 3",
            "outrank_trust_state 0",
            "outrank_eta_error_seconds_sum 1.0",
            "outrank_eta_error_seconds_count 2",
        ] {
            assert!(rendered.lines().any(|found| found == line), "{line}:\n{rendered}");
        }
        metrics.refresh(Trust::Trusted);
        assert_eq!(metrics.trusted.get(), 1);
    }
}
