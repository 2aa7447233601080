use serde::{Deserialize, Serialize};

use crate::{Key, Policy, RequestView, Score};

/// Tail inflated expectation, from "Scheduling LLM Inference with Uncertainty-Aware Output Length Predictions"
/// (Zheng et al., ICML 2026, arXiv 2604.00499): shortest expected answer first, where a long tail counts extra, and
/// waiting less.
///
/// ```text
/// score = E + beta · CVaR_alpha,  times decay^(waited / decay_interval)        smaller first
/// beta  = between beta_min and beta_max: beta_per_load · waiting requests per seat on arrival
/// key   = ln(E + beta · CVaR_alpha) + arrival · ln(1 / decay) / decay_interval
/// ```
///
/// All scores decay at one rate, so that two requests never change places while they wait: the key is the logarithm
/// of the score, less what it has in common with all others, and never needs to be taken anew.
///
/// It optimises mean latency like shortest-job-first and is wary of requests that may turn out long; it never
/// preempts, so it hurts a short request behind a bad guess, and long requests, which are overtaken for
/// `decay_interval · ln(ratio of scores) / ln(1 / decay)` seconds (11 minutes for a ratio of ten).
///
/// Where it differs: the paper fits a log-t distribution (ν = 3.5) from 20 answers a prompt and integrates by
/// sampling; here it is the ranker's log-normal, in closed form, whose tail is lighter. Both are cut at the output
/// limit, there one of 2,048 tokens for all, here that of the request. The paper counts who waits when the score is
/// made; a policy does not see the queue, so the work that waited on arrival is divided by the service of a mean
/// request. Its released code takes the decayed scores anew every 5 s; the order here is that of taking them anew
/// always. A request without a score goes last there; here it is taken for one of the mean length.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tie {
    /// The tail is the longest `1 - alpha` of answers (0.9 in the released code).
    pub alpha: f64,
    /// Weight of the tail per waiting request and seat (0.1 there).
    pub beta_per_load: f64,
    /// Least weight of the tail (0.1 there).
    pub beta_min: f64,
    /// Greatest weight of the tail (0.5 there).
    pub beta_max: f64,
    /// What remains of a score after `decay_interval_s` of waiting (0.9 there); 1 or more is no decay.
    pub decay: f64,
    /// Seconds (30 there).
    pub decay_interval_s: f64,
}

/// Least factor of decay; smaller ones would have no finite logarithm.
const MIN_DECAY: f64 = 1e-9;
/// Shortest interval of decay and shortest service of a mean request, in seconds.
const MIN_S: f64 = 1e-6;

impl Default for Tie {
    fn default() -> Self {
        Self {
            alpha: 0.9,
            beta_per_load: 0.1,
            beta_min: 0.1,
            beta_max: 0.5,
            decay: 0.9,
            decay_interval_s: 30.0,
        }
    }
}

impl Tie {
    fn beta(&self, view: &RequestView<'_>) -> f64 {
        let waiting_per_seat = view.backlog_at_arrival_s / view.unscored.service_s.max(MIN_S);
        (self.beta_per_load * waiting_per_seat).min(self.beta_max).max(self.beta_min)
    }

    /// `E + beta · CVaR`, in tokens.
    fn inflated_tokens(&self, view: &RequestView<'_>) -> f64 {
        let inflated = |score: Score| {
            let tail_tokens = score.cvar_tokens_within(self.alpha, view.request.max_tokens);
            view.predicted_tokens + self.beta(view) * tail_tokens
        };
        // Of a length taken for sure the tail is the length itself.
        view.score.map_or(view.unscored.tokens * (1.0 + self.beta_min), inflated)
    }
}

impl Policy for Tie {
    fn name(&self) -> &'static str {
        "tie"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        let decay_per_s = -self.decay.clamp(MIN_DECAY, 1.0).ln() / self.decay_interval_s.max(MIN_S);
        Key::new(self.inflated_tokens(view).max(1.0).ln() + decay_per_s * view.request.arrival.secs_f64())
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!(
            "shortest expected answer first, its tail inflated: {:.0} tokens, less {:.0} % for each {} s of waiting",
            self.inflated_tokens(view),
            100.0 * (1.0 - self.decay.clamp(MIN_DECAY, 1.0)),
            self.decay_interval_s
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Facts;
    use super::*;

    fn key(facts: Facts) -> f64 {
        facts.key(&Tie::default())
    }

    #[test]
    fn of_two_equal_expectations_the_surer_goes_first() {
        let with =
            |median, spread| Facts { median: Some(median), spread, max_tokens: 100_000, ..Facts::default() };
        let (sure, unsure) = (with(100.0, 0.1), with(100.0 * (0.005_f32 - 0.5).exp(), 1.0));
        let (sure_mean, unsure_mean) =
            (sure.see(|view| view.predicted_tokens), unsure.see(|view| view.predicted_tokens));
        assert!((sure_mean / unsure_mean - 1.0).abs() < 1e-3, "{sure_mean} {unsure_mean}");
        assert!(key(sure) < key(unsure));
    }

    #[test]
    fn the_order_is_that_of_the_decayed_scores_at_any_time() {
        let facts = |median, arrival_s| Facts { median: Some(median), arrival_s, ..Facts::default() };
        for (long, short) in [(200.0, 100.0), (200.0, 150.0), (400.0, 100.0), (110.0, 100.0)] {
            for gap_s in [1.0, 50.0, 100.0, 200.0, 400.0] {
                let (early, late) = (facts(long, 0.0), facts(short, gap_s));
                let tie = Tie::default();
                for now_s in [gap_s, gap_s + 100.0, gap_s + 5000.0] {
                    let decayed = |facts: Facts| {
                        let waited_s = now_s - facts.arrival_s;
                        facts.see(|view| tie.inflated_tokens(view)) * 0.9_f64.powf(waited_s / 30.0)
                    };
                    assert_eq!(
                        key(early) < key(late),
                        decayed(early) < decayed(late),
                        "{long} {short} {gap_s}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_tail_weighs_more_the_more_wait_on_arrival() {
        let beta = |backlog_s| Facts { backlog_s, ..Facts::default() }.see(|view| Tie::default().beta(view));
        // A mean request takes 0.5 s.
        assert_eq!([0.0, 0.4, 1.0, 2.5, 1e9].map(beta), [0.1, 0.1, 0.2, 0.5, 0.5]);
    }

    #[test]
    fn settings_out_of_range_give_an_order_still() {
        for value in [0.0, -1.0, 2.0, f64::INFINITY] {
            let all = Tie {
                alpha: value,
                beta_per_load: value,
                decay: value,
                decay_interval_s: value,
                ..Tie::default()
            };
            let key = |median| Facts { median: Some(median), ..Facts::default() }.key(&all);
            assert!(key(10.0) < key(100.0) && key(100.0).is_finite(), "{value}");
        }
    }
}
