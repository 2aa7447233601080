//! Whether the ranker deserves to be followed, judged by the requests that finished.

use std::collections::VecDeque;
use std::f64::consts::FRAC_PI_2;

use serde::{Deserialize, Serialize};

use crate::Score;

/// Settings of the [`RankMonitor`].
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorSettings {
    /// Finished requests that are compared with each other.
    pub window_requests: usize,
    /// No verdict before so many.
    pub min_requests: usize,
    /// Fall back to arrival order when the [concordance](RankMonitor::concordance) is surely below this.
    pub distrust_below: f64,
    /// Follow the ranker again when it is surely above this.
    pub trust_above: f64,
    /// What "surely" means, in standard errors.
    pub z: f64,
}

impl Default for MonitorSettings {
    fn default() -> Self {
        Self { window_requests: 512, min_requests: 32, distrust_below: 0.25, trust_above: 0.3, z: 1.5 }
    }
}

/// Verdict on the ranker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Its scores order the queue.
    #[default]
    Trusted,
    /// They contradict what happens: requests go in order of arrival until they agree again.
    Distrusted,
}

/// A finished request.
#[derive(Clone, Copy, Debug)]
struct Finished {
    ln_predicted: f64,
    ln_spread: f64,
    ln_tokens: f64,
    /// Its pairs' agreement, and what the scores promise of it.
    agreed: f64,
    promised: f64,
}

/// Compares the order of finished requests with the order that their scores promised.
///
/// **Concordance** is the agreement of pairs over the agreement that the scores themselves promise:
/// `r = Σ w·a / Σ w·w` over all pairs of the window, where `a` is 1 for a pair in the predicted order, -1 for one in
/// the opposite order and 0 for a tie, and `w` is the expectation of `a` if both lengths are log-normal as predicted,
/// `2Φ(d) - 1` with `d = |Δ ln median| / √(spread₁² + spread₂²)`. A ranker that is as good as it says has `r = 1`, a
/// random one 0, an inverted one less. Unlike a plain tau it does not suffer from looking only at what finished
/// first: among requests that were predicted alike nothing is promised, so nothing is held against the ranker.
///
/// Its standard error is the jackknife's for a ratio of U-statistics. Each finished request costs O(window).
#[derive(Clone, Debug)]
pub struct RankMonitor {
    settings: MonitorSettings,
    window: VecDeque<Finished>,
    trust: Trust,
}

impl RankMonitor {
    /// A monitor that trusts until it has seen otherwise.
    pub fn new(settings: MonitorSettings) -> Self {
        Self { window: VecDeque::with_capacity(settings.window_requests), trust: Trust::Trusted, settings }
    }

    /// The verdict.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// A request of score `score` finished after `tokens` output tokens. Returns whether the verdict changed.
    pub fn finished(&mut self, score: Score, tokens: u32) -> bool {
        if self.window.len() >= self.settings.window_requests
            && let Some(old) = self.window.pop_front()
        {
            for other in &mut self.window {
                let (agreed, promised) = compare(&old, other);
                other.agreed -= agreed;
                other.promised -= promised;
            }
        }
        let mut new = Finished {
            ln_predicted: f64::from(score.median_tokens()).ln(),
            ln_spread: f64::from(score.spread()).max(0.05),
            ln_tokens: f64::from(tokens.max(1)).ln(),
            agreed: 0.0,
            promised: 0.0,
        };
        for other in &mut self.window {
            let (agreed, promised) = compare(&new, other);
            other.agreed += agreed;
            other.promised += promised;
            new.agreed += agreed;
            new.promised += promised;
        }
        self.window.push_back(new);
        let before = self.trust;
        self.trust = self.verdict();
        self.trust != before
    }

    /// Concordance of the window and its standard error, or `None` while nothing has been promised.
    pub fn concordance(&self) -> Option<(f64, f64)> {
        let agreed: f64 = self.window.iter().map(|it| it.agreed).sum();
        let promised: f64 = self.window.iter().map(|it| it.promised).sum();
        if promised <= 1e-9 {
            return None;
        }
        let ratio = agreed / promised;
        let influence = |it: &Finished| (2.0 * (it.agreed - ratio * it.promised) / promised).powi(2);
        Some((ratio, self.window.iter().map(influence).sum::<f64>().sqrt()))
    }

    fn verdict(&self) -> Trust {
        if self.window.len() < self.settings.min_requests {
            return self.trust;
        }
        let Some((ratio, error)) = self.concordance() else { return self.trust };
        let margin = self.settings.z * error;
        match self.trust {
            Trust::Trusted if ratio + margin < self.settings.distrust_below => Trust::Distrusted,
            Trust::Distrusted if ratio - margin > self.settings.trust_above => Trust::Trusted,
            unchanged => unchanged,
        }
    }
}

/// Agreement of a pair, weighted by what the scores promise of it, and the promise, weighted alike.
fn compare(a: &Finished, b: &Finished) -> (f64, f64) {
    let difference = a.ln_predicted - b.ln_predicted;
    let d = difference.abs() / a.ln_spread.hypot(b.ln_spread);
    // 2Φ(d) - 1 to within 0.03: the same slope at 0, the same limit.
    let weight = d / (d * d + FRAC_PI_2).sqrt();
    let order = (a.ln_tokens - b.ln_tokens) * difference;
    let sign = if order > 0.0 {
        1.0
    } else if order < 0.0 {
        -1.0
    } else {
        0.0
    };
    (weight * sign, weight * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeatable scatter of values that look standard normal enough: the sum of 12 uniform ones, less 6.
    struct Scatter(u64);

    impl Scatter {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }
    }

    /// Feeds `count` requests whose length follows `slope` times the prediction, with noise of the predicted spread.
    fn feed(monitor: &mut RankMonitor, random: &mut Scatter, count: usize, slope: f64) {
        for _ in 0..count {
            let predicted = 5.0 + 0.7 * random.normal();
            let truth = 5.0 + slope * (predicted - 5.0) + 0.7 * random.normal();
            let score = Score::new(predicted.exp() as f32, 0.7).unwrap();
            monitor.finished(score, truth.exp() as u32 + 1);
        }
    }

    #[test]
    fn a_ranker_as_good_as_it_says_has_concordance_one_and_is_trusted() {
        let mut monitor = RankMonitor::new(MonitorSettings::default());
        feed(&mut monitor, &mut Scatter(1), 5000, 1.0);
        let (ratio, error) = monitor.concordance().unwrap();
        assert!((ratio - 1.0).abs() < 0.25 && error < 0.15, "{ratio} ± {error}");
        assert_eq!(monitor.trust(), Trust::Trusted);
    }

    #[test]
    fn an_inverted_ranker_is_found_out_within_a_few_dozen_requests_and_a_random_one_within_the_window() {
        for seed in 0..50 {
            let mut inverted = RankMonitor::new(MonitorSettings::default());
            feed(&mut inverted, &mut Scatter(seed), 48, -1.0);
            assert_eq!(inverted.trust(), Trust::Distrusted, "seed {seed}");
        }
        let caught = (0..50).filter(|&seed| {
            let mut random = RankMonitor::new(MonitorSettings::default());
            feed(&mut random, &mut Scatter(seed), 512, 0.0);
            random.trust() == Trust::Distrusted
        });
        assert!(caught.count() >= 45);
    }

    #[test]
    fn a_useful_but_overconfident_ranker_is_not_dropped_by_chance() {
        let dropped = (0..50).filter(|&seed| {
            let mut monitor = RankMonitor::new(MonitorSettings::default());
            let mut random = Scatter(seed);
            // Looks at the verdict after every request of a long run.
            (0..2000).any(|_| {
                feed(&mut monitor, &mut random, 1, 0.6);
                monitor.trust() == Trust::Distrusted
            })
        });
        assert!(dropped.count() <= 2);
    }

    #[test]
    fn requests_predicted_alike_say_nothing_about_the_ranker() {
        let mut monitor = RankMonitor::new(MonitorSettings::default());
        for tokens in 0..200u32 {
            monitor.finished(Score::new(50.0, 0.7).unwrap(), 1 + tokens * 7919 % 501);
        }
        assert_eq!((monitor.concordance(), monitor.trust()), (None, Trust::Trusted));
    }

    #[test]
    fn it_trusts_again_once_the_window_has_forgotten() {
        let mut monitor = RankMonitor::new(MonitorSettings::default());
        let mut random = Scatter(3);
        feed(&mut monitor, &mut random, 300, -1.0);
        assert_eq!(monitor.trust(), Trust::Distrusted);
        feed(&mut monitor, &mut random, 600, 1.0);
        assert_eq!(monitor.trust(), Trust::Trusted);
    }
}
