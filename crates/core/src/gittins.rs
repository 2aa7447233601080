//! Which request promises most per second of service, where its length is uncertain.

use std::sync::LazyLock;

use crate::score::normal_cdf;

/// Grid of the table: spreads, and `ln(generated / median)`.
const SPREADS: usize = 24;
const MAX_SPREAD: f64 = 2.4;
const AGES: usize = 97;
const MIN_LN_AGE: f64 = -6.0;
const MAX_LN_AGE: f64 = 6.0;
/// Stopping points that the supremum is taken over.
const STOPS: usize = 64;

/// `ln` of the rank of a request of median 1 token, by spread and age.
static TABLE: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let spread_of = |at: usize| MAX_SPREAD * (at + 1) as f64 / SPREADS as f64;
    let age_of = |at: usize| MIN_LN_AGE + (MAX_LN_AGE - MIN_LN_AGE) * at as f64 / (AGES - 1) as f64;
    let cells = (0..SPREADS).flat_map(|spread| (0..AGES).map(move |age| (spread, age)));
    cells.map(|(spread, age)| exact_ln_rank(spread_of(spread), age_of(age).exp())).collect()
});

/// The Gittins rank, in tokens, of a request whose length is log-normal with the given median and spread and that has
/// generated `generated` tokens without ending; smaller goes first.
///
/// The Gittins index of a job is the best ratio, over all times to stop, of the value of finishing by then to the
/// service spent until then. With the value of an answer 1 / its length, which minimises the mean of s/token:
///
/// ```text
/// index = sup_b  E[1/X; g < X <= b] / E[min(X, b) - g; X > g],     rank = index^(-1/2)
/// ```
///
/// For a length known for sure the rank is `√(length · remaining)`. The wider the spread, the more it pays to try: such a
/// request starts earlier than its mean says, and falls back when it turns out long. (Gittins, "Bandit processes and
/// dynamic allocation indices", JRSS B 1979; for M/G/1 queues Aalto, Ayesta and Righter, Queueing Systems 2009.)
///
/// Read from a table, to within a few per cent: 20 ns.
pub(crate) fn rank_tokens(median: f64, spread: f64, generated: u32) -> f64 {
    let ln_age = if generated == 0 { MIN_LN_AGE } else { (f64::from(generated) / median).ln() };
    let x = ((ln_age - MIN_LN_AGE) / (MAX_LN_AGE - MIN_LN_AGE)).clamp(0.0, 1.0) * (AGES - 1) as f64;
    let y = (spread / MAX_SPREAD * SPREADS as f64 - 1.0).clamp(0.0, (SPREADS - 1) as f64);
    let (left, below) = ((x as usize).min(AGES - 2), (y as usize).min(SPREADS - 2));
    let (right_share, above_share) = (x - left as f64, y - below as f64);
    let at = |spread: usize, age: usize| TABLE[spread * AGES + age];
    let row = |spread: usize| at(spread, left) * (1.0 - right_share) + at(spread, left + 1) * right_share;
    let ln_rank = row(below) * (1.0 - above_share) + row(below + 1) * above_share;
    // Beyond the table the tail is scale free: the rank grows like the age.
    median * (ln_rank + (ln_age - MAX_LN_AGE).max(0.0)).exp()
}

/// `ln` of the rank for median 1, by the definition.
fn exact_ln_rank(spread: f64, age: f64) -> f64 {
    let z = |x: f64| x.ln() / spread;
    // Upper tails: beyond the age everything is small, and differences of tails keep their digits.
    let tail = |z: f64| normal_cdf(-z);
    let value_above = |x: f64| (0.5 * spread * spread).exp() * tail(z(x) + spread);
    // ∫ from x to infinity of the survival function.
    let excess_above = |x: f64| (0.5 * spread * spread).exp() * tail(z(x) - spread) - x * tail(z(x));
    let (value, excess) = (value_above(age), excess_above(age));
    let widest = (8.0 * spread).max(1.0);
    let stops = (1..=STOPS).map(|step| {
        // Distances from the age, from a hundredth of the median on.
        let distance =
            0.01 * (age.max(1.0)) * ((step as f64 / STOPS as f64) * (100.0 * widest.exp()).ln()).exp();
        age + distance
    });
    let index = stops
        .filter_map(|stop| {
            let (gain, cost) = (value - value_above(stop), excess - excess_above(stop));
            (gain > 1e-300 && cost > 1e-300).then(|| gain / cost)
        })
        .fold(0.0, f64::max);
    if index > 0.0 {
        -0.5 * index.ln()
    } else {
        // So far in the tail that both underflow: the mean excess of a log-normal, value 1 / age.
        let hazard_scale = age * spread * spread / age.ln().max(0.1);
        0.5 * (age * hazard_scale).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sure_length_has_the_geometric_mean_of_length_and_remainder() {
        for (generated, expected) in [(0, 100.0), (50, (100.0f64 * 50.0).sqrt()), (75, 50.0)] {
            let rank = rank_tokens(100.0, 0.05, generated);
            assert!((rank / expected - 1.0).abs() < 0.2, "{generated}: {rank} against {expected}");
        }
    }

    #[test]
    fn an_uncertain_request_is_tried_earlier_and_falls_back_when_it_outlives_its_prediction() {
        let rank = |spread, generated| rank_tokens(100.0, spread, generated);
        assert!(rank(1.2, 0) < rank(0.3, 0));
        assert!(rank(0.7, 400) > rank(0.7, 100));
        let mut last = rank(0.7, 100);
        for generated in 101..5000 {
            let now = rank(0.7, generated);
            assert!(now.is_finite() && now > last * 0.99, "{generated}: {now} after {last}");
            last = now;
        }
    }

    #[test]
    fn the_table_agrees_with_the_definition_and_scales_with_the_median() {
        for (spread, generated) in [(0.4, 30), (0.7, 120), (1.1, 500), (0.9, 3)] {
            let exact = 200.0 * exact_ln_rank(spread, f64::from(generated) / 200.0).exp();
            let table = rank_tokens(200.0, spread, generated);
            assert!((table / exact - 1.0).abs() < 0.05, "{spread} {generated}: {table} against {exact}");
        }
        assert!((rank_tokens(400.0, 0.7, 100) / rank_tokens(200.0, 0.7, 50) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn extremes_are_finite_and_positive() {
        for median in [1e-6, 1.0, 1e9] {
            for spread in [0.0, 0.5, 50.0] {
                for generated in [0, 1, 1_000_000, u32::MAX] {
                    let rank = rank_tokens(median, spread, generated);
                    assert!(rank.is_finite() && rank > 0.0, "{median} {spread} {generated}: {rank}");
                }
            }
        }
    }
}
