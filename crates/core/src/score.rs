//! The predicted output length of a request, as a distribution.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Predicted output length: log-normal, `ln(tokens) ~ N(ln median_tokens, spread²)`.
///
/// A distribution rather than a number, because *how sure* a prediction is decides what remains of a request
/// that has outlived it ([`Score::remaining_tokens`]).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Score {
    median_tokens: f32,
    spread: f32,
    /// How far the central 80 % reach to either side of the median, in ln(tokens).
    reach: f32,
}

/// A score as read, before its values are checked.
#[derive(Deserialize)]
struct Unchecked {
    median_tokens: f32,
    spread: f32,
    reach: Option<f32>,
}

impl TryFrom<Unchecked> for Score {
    type Error = ScoreError;

    fn try_from(Unchecked { median_tokens, spread, reach }: Unchecked) -> Result<Self, ScoreError> {
        let score = Self::new(median_tokens, spread)?;
        reach.map_or(Ok(score), |reach| score.with_reach(reach))
    }
}

/// A prediction that no ranker may make.
#[derive(Clone, Copy, PartialEq, Debug, Error)]
pub enum ScoreError {
    /// The median is not a positive finite number of tokens.
    #[error("predicted median of {0} tokens: it must be a positive finite number")]
    Median(f32),
    /// The spread is negative or not finite.
    #[error("predicted spread of {0}: it must be a finite number of at least 0")]
    Spread(f32),
    /// The reach of the interval is negative or not finite.
    #[error("predicted interval of {0} to either side: it must be a finite number of at least 0")]
    Reach(f32),
}

/// Standard normal quantile of the upper end of [`Score::interval`]: an interval that holds 80 %.
const Z_80: f32 = 1.281_551_6;

impl Score {
    /// A prediction with the given median (tokens, positive) and spread (standard deviation of the natural
    /// logarithm of the length, at least 0).
    ///
    /// # Errors
    /// [`ScoreError`] when a value is out of its range or not finite.
    pub fn new(median_tokens: f32, spread: f32) -> Result<Self, ScoreError> {
        if !(median_tokens.is_finite() && median_tokens > 0.0) {
            return Err(ScoreError::Median(median_tokens));
        }
        if !(spread.is_finite() && spread >= 0.0) {
            return Err(ScoreError::Spread(spread));
        }
        Ok(Self { median_tokens, spread, reach: Z_80 * spread })
    }

    /// The same prediction with an interval of its own, `median · exp(±reach)`. Lengths have more outliers than a log-normal:
    /// the spread must hold them, because policies live on what may prove long or short, and an interval as wide as the
    /// spread says would hold more than its 80 %.
    ///
    /// # Errors
    /// [`ScoreError::Reach`] when it is negative or not finite.
    pub fn with_reach(self, reach: f32) -> Result<Self, ScoreError> {
        if !(reach.is_finite() && reach >= 0.0) {
            return Err(ScoreError::Reach(reach));
        }
        Ok(Self { reach, ..self })
    }

    /// Median of the predicted length in tokens.
    pub fn median_tokens(self) -> f32 {
        self.median_tokens
    }

    /// Standard deviation of the natural logarithm of the predicted length.
    pub fn spread(self) -> f32 {
        self.spread
    }

    /// The central interval that holds the true length with a probability of 80 %, in tokens.
    pub fn interval(self) -> (f32, f32) {
        let factor = self.reach.exp();
        (self.median_tokens / factor, self.median_tokens * factor)
    }

    /// Expected length in tokens: `median · exp(spread²/2)`, the mean of a log-normal.
    pub fn mean_tokens(self) -> f64 {
        self.mean_with(f64::from(self.spread))
    }

    /// Expected length in tokens of an output that is cut at `limit` tokens: `E[min(X, limit)]`. Unlike the lesser of the
    /// mean and the limit it orders predictions beyond the limit too, by how likely they are to end before it.
    ///
    /// For a log-normal, `mean · Φ(z - spread) + limit · Φ(-z)` with `z = (ln limit - ln median) / spread`.
    pub fn mean_tokens_within(self, limit: u32) -> f64 {
        let limit = f64::from(limit.max(1));
        let (spread, z) = self.standardised(limit);
        (self.mean_with(spread) * normal_cdf(z - spread) + limit * normal_cdf(-z)).min(limit)
    }

    /// The Gittins rank of an answer that has `generated` tokens and has not ended, in tokens; smaller goes first.
    ///
    /// The Gittins index is the best ratio, over all lengths to stop at, of the value of ending by then to the tokens spent
    /// until then; the rank is its power -1/2. The value of an answer is 1 / its length, which minimises the mean of
    /// s/token. For a length known for sure the rank is `√(length · remaining)`; the wider the spread, the more it pays to
    /// try, so an unsure request starts earlier than its mean says and falls back when it turns out long. (Gittins, JRSS B
    /// 1979; Aalto, Ayesta and Righter, Queueing Systems 2009.)
    pub fn gittins_tokens(self, generated: u32) -> f64 {
        crate::gittins::rank_tokens(f64::from(self.median_tokens), f64::from(self.spread), generated)
    }

    /// Conditional value at risk: the expected length of the longest `1 - alpha` of answers, `E[X | X > VaR_alpha]`.
    ///
    /// For a log-normal, `mean · Φ(spread - z) / (1 - alpha)` with `z` the standard normal quantile of `alpha`, which is
    /// taken as at most `1 - 1e-9`. With an `alpha` of 0 or less it is the mean.
    pub fn cvar_tokens(self, alpha: f64) -> f64 {
        let spread = f64::from(self.spread).max(MIN_SPREAD);
        let tail = tail_share(alpha);
        let mean = f64::from(self.median_tokens) * (0.5 * spread * spread).exp();
        mean * normal_cdf(spread - normal_upper_quantile(tail)) / tail
    }

    /// [`Score::cvar_tokens`] of an output that is cut at `limit` tokens: the mean of the longest `1 - alpha` of
    /// `min(X, limit)`.
    ///
    /// For a log-normal, `(mean · (Φ(spread - z) - Φ(spread - c)) + limit · Φ(-c)) / (1 - alpha)` with
    /// `c = (ln limit - ln median) / spread`, and the limit itself where the quantile exceeds it.
    pub fn cvar_tokens_within(self, alpha: f64, limit: u32) -> f64 {
        let limit = f64::from(limit.max(1));
        let spread = f64::from(self.spread).max(MIN_SPREAD);
        let tail = tail_share(alpha);
        let z = normal_upper_quantile(tail);
        let cut = (limit.ln() - f64::from(self.median_tokens).ln()) / spread;
        if cut <= z {
            return limit;
        }
        let mean = f64::from(self.median_tokens) * (0.5 * spread * spread).exp();
        let below = mean * (normal_cdf(spread - z) - normal_cdf(spread - cut));
        ((below + limit * normal_cdf(-cut)) / tail).min(limit)
    }

    /// Expected number of tokens still to come after `generated`, given that the request has not ended:
    /// `E[X - g | X > g]`, at least 1.
    ///
    /// For a log-normal, `E[X | X > g] = mean · Φ(spread - z) / Φ(-z)` with `z = (ln g - ln median) / spread`.
    /// Beyond the prediction this *grows* with `generated`: a request that outlived its estimate was
    /// underestimated, and is no longer treated as nearly done.
    pub fn remaining_tokens(self, generated: u32) -> f64 {
        if generated == 0 {
            return self.mean_tokens().max(1.0);
        }
        let done = f64::from(generated);
        let (spread, z) = self.standardised(done);
        if z > FAR_TAIL {
            // The asymptote of the mean excess of a log-normal.
            return (done * spread / z).max(1.0);
        }
        (self.mean_with(spread) * normal_cdf(spread - z) / normal_cdf(-z) - done).max(1.0)
    }

    /// The length in tokens that an answer which has not ended after `generated` exceeds with a probability of `share` (0 to 1).
    pub fn tokens_beyond(self, generated: u32, share: f64) -> f64 {
        let done = f64::from(generated);
        let (spread, z) = self.standardised(done);
        if z > FAR_TAIL {
            // The asymptote: the excess is exponential.
            return done - done * spread / z * share.max(f64::MIN_POSITIVE).ln();
        }
        let tail = (share * normal_cdf(-z)).max(f64::MIN_POSITIVE);
        (f64::from(self.median_tokens) * (spread * normal_upper_quantile(tail)).exp()).max(done)
    }

    /// The spread, kept off zero, and by how many spreads a length of `tokens` lies above the median.
    fn standardised(self, tokens: f64) -> (f64, f64) {
        let spread = f64::from(self.spread).max(MIN_SPREAD);
        (spread, (tokens.ln() - f64::from(self.median_tokens).ln()) / spread)
    }

    /// Mean of a log-normal with this median and the given spread, in tokens.
    fn mean_with(self, spread: f64) -> f64 {
        f64::from(self.median_tokens) * (0.5 * spread * spread).exp()
    }
}

/// Below this spread (in ln tokens) a prediction is treated as having it: no ranker is surer.
const MIN_SPREAD: f64 = 0.05;
/// Standard deviations beyond which both tails underflow.
const FAR_TAIL: f64 = 30.0;

/// Standard normal distribution function, relatively accurate in the lower tail.
pub(crate) fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// `1 - alpha`, between 1e-9 and 1.
fn tail_share(alpha: f64) -> f64 {
    if alpha > 0.0 { (1.0 - alpha).max(1e-9) } else { 1.0 }
}

/// The `z` that a standard normal variable exceeds with the given probability (0 to 1), to about 1e-6; -∞ for 1.
fn normal_upper_quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return if probability < 1.0 { -normal_upper_quantile(1.0 - probability) } else { f64::NEG_INFINITY };
    }
    // Abramowitz and Stegun 26.2.23, within 4.5e-4, and a step of Newton's method from there.
    let t = (-2.0 * probability.ln()).sqrt();
    let numerator = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let denominator = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    let z = t - numerator / denominator;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    z + (normal_cdf(-z) - probability) / density
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E[X - g | X > g] by integrating the survival function on a fine grid.
    fn remaining_by_integration(median: f64, spread: f64, done: f64) -> f64 {
        let survival = |x: f64| 1.0 - normal_cdf((x.ln() - median.ln()) / spread);
        let step = median / 2000.0;
        let sum: f64 = (0..400_000).map(|i| survival(done + (f64::from(i) + 0.5) * step)).sum();
        sum * step / survival(done)
    }

    #[test]
    fn remaining_matches_the_integral_of_the_survival_function() {
        for (median, spread, done) in [(100.0, 0.5, 50), (100.0, 0.8, 120), (30.0, 1.0, 90), (200.0, 0.3, 1)]
        {
            let exact = remaining_by_integration(median, spread, f64::from(done));
            let ours = Score::new(median as f32, spread as f32).unwrap().remaining_tokens(done);
            assert!((ours / exact - 1.0).abs() < 0.01, "{median} {spread} {done}: {ours} against {exact}");
        }
    }

    #[test]
    fn a_limited_mean_matches_the_integral_and_still_orders_what_exceeds_the_limit() {
        for (median, spread, limit) in
            [(100.0_f64, 0.5_f64, 150_u32), (100.0, 0.8, 60), (30.0, 1.0, 400), (900.0, 0.7, 192)]
        {
            let score = Score::new(median as f32, spread as f32).unwrap();
            // E[min(X, c)] is the integral of the survival function up to c.
            let step = f64::from(limit) / 100_000.0;
            let survival = |x: f64| 1.0 - normal_cdf((x.ln() - median.ln()) / spread);
            let exact: f64 = (0..100_000).map(|i| survival((f64::from(i) + 0.5) * step) * step).sum();
            let ours = score.mean_tokens_within(limit);
            assert!((ours / exact - 1.0).abs() < 1e-4, "{median} {spread} {limit}: {ours} against {exact}");
        }
        let within = |median| Score::new(median, 0.8).unwrap().mean_tokens_within(192);
        assert!(within(300.0) < within(400.0) && within(400.0) < within(800.0) && within(1e30) <= 192.0);
        let unlimited = Score::new(100.0, 0.5).unwrap();
        assert!((unlimited.mean_tokens_within(u32::MAX) / unlimited.mean_tokens() - 1.0).abs() < 1e-9);
    }

    /// Mean of the longest `1 - alpha` of min(X, limit), by integrating over the standard normal variable.
    fn cvar_by_integration(median: f64, spread: f64, alpha: f64, limit: f64) -> f64 {
        let step = 1e-4;
        let (mut mass, mut sum) = (0.0, 0.0);
        for i in 0..400_000 {
            // From the longest answers downwards, until the share is reached.
            let z = 20.0 - (f64::from(i) + 0.5) * step;
            let weight = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt() * step;
            let weight = weight.min(1.0 - alpha - mass);
            (mass, sum) = (mass + weight, sum + weight * (median * (spread * z).exp()).min(limit));
        }
        sum / mass
    }

    #[test]
    fn the_mean_of_the_longest_answers_matches_numeric_integration() {
        for (median, spread, alpha) in
            [(100.0, 0.5, 0.9), (100.0, 1.2, 0.9), (30.0, 0.8, 0.99), (900.0, 0.3, 0.5), (40.0, 0.7, 0.2)]
        {
            let score = Score::new(median as f32, f64::from(spread as f32) as f32).unwrap();
            let spread = f64::from(spread as f32);
            let (exact, ours) =
                (cvar_by_integration(median, spread, alpha, f64::INFINITY), score.cvar_tokens(alpha));
            assert!((ours / exact - 1.0).abs() < 1e-4, "{median} {spread} {alpha}: {ours} against {exact}");
            for limit in [10_u32, 60, 200, 1000, 4000] {
                let exact = cvar_by_integration(median, spread, alpha, f64::from(limit));
                let ours = score.cvar_tokens_within(alpha, limit);
                assert!(
                    (ours / exact - 1.0).abs() < 1e-4,
                    "{median} {spread} {alpha} {limit}: {ours} {exact}"
                );
            }
        }
    }

    #[test]
    fn the_longest_answers_of_no_share_and_of_all_are_the_extremes() {
        let score = Score::new(100.0, 0.5).unwrap();
        for all in [0.0, -1.0, f64::NAN] {
            assert!((score.cvar_tokens(all) / score.mean_tokens() - 1.0).abs() < 1e-9);
            assert!((score.cvar_tokens_within(all, 150) / score.mean_tokens_within(150) - 1.0).abs() < 1e-9);
        }
        assert_eq!(score.cvar_tokens(1.0), score.cvar_tokens(2.0));
        assert!(score.cvar_tokens(1.0).is_finite() && score.cvar_tokens(1.0) > score.cvar_tokens(0.999));
        for spread in [0.0, 40.0, f32::MAX] {
            for median in [f32::MIN_POSITIVE, f32::MAX] {
                let ours = Score::new(median, spread).unwrap().cvar_tokens_within(0.9, 512);
                assert!((0.0..=512.0).contains(&ours), "{median} {spread}: {ours}");
            }
        }
    }

    #[test]
    fn a_request_that_outlives_its_prediction_is_expected_to_take_longer_again() {
        let score = Score::new(20.0, 0.6).unwrap();
        assert!(score.remaining_tokens(10) < score.remaining_tokens(0));
        assert!(score.remaining_tokens(200) > score.remaining_tokens(20));
        let mut last = 0.0;
        for done in 40..5000 {
            let left = score.remaining_tokens(done);
            assert!(left.is_finite() && left >= last * 0.97, "jump at {done}: {last} to {left}");
            last = left;
        }
    }

    #[test]
    fn lengths_beyond_what_has_come_have_the_mean_that_is_expected() {
        for (median, spread, done) in [(100.0, 0.5, 0), (100.0, 0.8, 120), (30.0, 1.0, 90), (200.0, 0.3, 900)]
        {
            let score = Score::new(median, spread).unwrap();
            let shares = (0..10_000).map(|i| (f64::from(i) + 0.5) / 10_000.0);
            let mean = shares.map(|share| score.tokens_beyond(done, share)).sum::<f64>() / 10_000.0;
            let expected = f64::from(done) + score.remaining_tokens(done);
            assert!(
                (mean / expected - 1.0).abs() < 0.01,
                "{median} {spread} {done}: {mean} against {expected}"
            );
        }
        let sure = Score::new(10.0, 0.0).unwrap();
        for share in [0.0, 0.5, 1.0] {
            let tokens = sure.tokens_beyond(100_000, share);
            assert!(tokens.is_finite() && tokens >= 100_000.0, "{tokens}");
        }
    }

    #[test]
    fn the_interval_holds_the_median_and_widens_with_the_spread() {
        let (low, high) = Score::new(100.0, 0.5).unwrap().interval();
        assert!((low - 52.7).abs() < 0.1 && (high - 189.8).abs() < 0.1, "{low} {high}");
        assert_eq!(Score::new(100.0, 0.0).unwrap().interval(), (100.0, 100.0));
        let narrow = Score::new(100.0, 0.5).unwrap().with_reach(0.1).unwrap();
        assert!(
            narrow.interval().0 > low && narrow.spread() == 0.5,
            "an interval of its own leaves the spread alone"
        );
        assert!(Score::new(100.0, 0.5).unwrap().with_reach(f32::NAN).is_err());
    }

    #[test]
    fn impossible_predictions_are_refused() {
        assert!(matches!(Score::new(f32::NAN, 0.5), Err(ScoreError::Median(_))));
        assert!(matches!(Score::new(0.0, 0.5), Err(ScoreError::Median(_))));
        assert!(matches!(Score::new(10.0, f32::INFINITY), Err(ScoreError::Spread(_))));
        assert!(matches!(Score::new(10.0, -0.1), Err(ScoreError::Spread(_))));
        let read = serde_json::from_str::<Score>(r#"{"median_tokens": -1.0, "spread": 0.5}"#);
        assert!(read.is_err(), "nor may a file smuggle one in");
    }
}
