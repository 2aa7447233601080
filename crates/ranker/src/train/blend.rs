//! How much of a prior's order stays beside what was learned.
//!
//! Both orders are raw scores of the same rows, the learned one by models that had not seen the row. Brought to the same
//! spread, they are mixed in every share of a grid. Those shares are plausible that order the rows as well as the best one does,
//! to within one standard error of the difference. With few rows these are nearly all, and their mean is kept: the mean of two
//! orders is better than a choice that chance makes. With many rows the share is kept that has most of the learned order: what the
//! prior would add is too little to be seen then, and what it takes away may not be.

use super::data::Data;

/// Shares of the learned order that are tried: 0, 1/GRID, ..., 1.
const GRID: usize = 10;

/// Rows that the prior is worth: with n rows the learned order counts n / (n + this) of its spread, because unseen rows show
/// how good the learned order is only as well as n rows can.
const PRIOR_ROWS: f64 = 30.0;

/// Rows at which the share that is kept lies halfway between the mean of the plausible ones and the largest. Chosen on the learned
/// parts of nine traces, of 30 to 2,000 rows each, with priors of other families: among 100, 300, 1,000 and never.
const HALFWAY_ROWS: f64 = 100.0;

/// Most rows that a row is compared with; what is left out of larger data would change nothing.
const MOST_COMPARED: usize = 256;

/// Factors for two raw scores whose sum is the mixed one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Blend {
    pub(super) prior: f64,
    pub(super) learned: f64,
    /// Share of the prior's order in the mixed one, from 0 to 1.
    pub(super) prior_share: f64,
}

/// Mixes the scores that the prior gives the rows and those that were learned, each by a model that had not seen the row.
pub(super) fn blend(data: &Data, prior: &[f64], learned: &[f64], seed: u64) -> Blend {
    let rows = data.rows() as f64;
    let trusted = rows / (rows + PRIOR_ROWS);
    let (prior_unit, learned_unit) = (unit(data, prior), trusted * unit(data, learned));
    let pairs = Pairs::new(data, seed);
    let grid: Vec<f64> = (0..=GRID).map(|step| step as f64 / GRID as f64).collect();
    let mixed = |share: f64| {
        let (prior_unit, learned_unit) = ((1.0 - share) * prior_unit, share * learned_unit);
        prior.iter().zip(learned).map(|(p, l)| prior_unit * p + learned_unit * l).collect::<Vec<_>>()
    };
    let agreed: Vec<Vec<f64>> = grid.iter().map(|&share| pairs.agreement(data, &mixed(share))).collect();
    let good: Vec<f64> = grid
        .iter()
        .zip(as_good_as_best(data, &agreed))
        .filter_map(|(&share, good)| good.then_some(share))
        .collect();
    let mean = good.iter().sum::<f64>() / good.len() as f64;
    let largest = good.iter().copied().fold(0.0, f64::max);
    let share = largest + (mean - largest) * HALFWAY_ROWS / (HALFWAY_ROWS + rows);
    let (of_prior, of_learned) = ((1.0 - share) * prior_unit, share * learned_unit);
    // In the unit of what was learned, so that its weights stay as large as they were.
    let back = if learned_unit > 0.0 { learned_unit.recip() } else { 1.0 };
    let spread = (1.0 - share) + share * trusted;
    Blend { prior: of_prior * back, learned: of_learned * back, prior_share: (1.0 - share) / spread }
}

/// One over the standard deviation of scores within groups; 0 where all are equal.
fn unit(data: &Data, scores: &[f64]) -> f64 {
    let (mut squares, mut weights) = (0.0, 0.0);
    for group in &data.groups {
        let count = group.rows.len() as f64;
        let mean = group.rows.iter().map(|&row| scores[row]).sum::<f64>() / count;
        let sum: f64 = group.rows.iter().map(|&row| (scores[row] - mean).powi(2)).sum();
        squares += group.weight * sum;
        weights += group.weight * count;
    }
    let deviation = (squares / weights).sqrt();
    if deviation > 1e-9 { deviation.recip() } else { 0.0 }
}

/// Whether each mixture is within one standard error of the best, by how rightly each row stands to the others in it.
fn as_good_as_best(data: &Data, agreed: &[Vec<f64>]) -> Vec<bool> {
    let means: Vec<f64> = agreed.iter().map(|own| mean(data, own).0).collect();
    let best = (0..means.len()).fold(0, |best, next| if means[next] > means[best] { next } else { best });
    let good = |own: &Vec<f64>| {
        let behind: Vec<f64> = agreed[best].iter().zip(own).map(|(best, own)| best - own).collect();
        let (mean, error) = mean(data, &behind);
        // A mean over pairs of rows strays twice as far as one over as many independent values.
        mean <= 2.0 * error
    };
    agreed.iter().map(good).collect()
}

/// The mean over rows by their weights, and its standard error.
fn mean(data: &Data, values: &[f64]) -> (f64, f64) {
    let weighted = || values.iter().enumerate().map(|(row, &value)| (data.weight(row), value));
    let total: f64 = weighted().map(|(weight, _)| weight).sum();
    let mean = weighted().map(|(weight, value)| weight * value).sum::<f64>() / total;
    let squares: f64 = weighted().map(|(weight, value)| (weight * (value - mean)).powi(2)).sum();
    (mean, squares.sqrt() / total)
}

/// Which rows are compared: each with others of its group.
struct Pairs {
    /// The rows of each group in random order; a row is compared with those that follow it, around the end.
    groups: Vec<Vec<usize>>,
}

impl Pairs {
    fn new(data: &Data, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut groups: Vec<Vec<usize>> = data.groups.iter().map(|group| group.rows.clone()).collect();
        groups.iter_mut().for_each(|rows| random.shuffle(rows));
        Self { groups }
    }

    /// For each row the share of pairs in the right order less that in the wrong one. A pair whose shorter one was cut short
    /// says nothing.
    fn agreement(&self, data: &Data, scores: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; data.rows()];
        for rows in &self.groups {
            let compared = (rows.len() - 1).min(MOST_COMPARED);
            for (at, &row) in rows.iter().enumerate() {
                let others = rows.iter().cycle().skip(at + 1).take(compared);
                let sum: f64 = others.map(|&other| concordance(data, scores, row, other)).sum();
                out[row] = sum / compared.max(1) as f64;
            }
        }
        out
    }
}

/// 1 for two rows in the right order, -1 in the wrong one, 0 for a tie.
fn concordance(data: &Data, scores: &[f64], a: usize, b: usize) -> f64 {
    let (longer, shorter) = if data.label[a] > data.label[b] { (a, b) } else { (b, a) };
    if data.label[longer] == data.label[shorter]
        || data.censored[shorter]
        || scores[longer] == scores[shorter]
    {
        return 0.0;
    }
    if scores[longer] > scores[shorter] { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{Example, TrainConfig, data};
    use super::*;
    use crate::tau::kendall_tau_b;

    /// Answers of a model, the n-th of which takes that many tokens; those of `censored` were cut short.
    fn rows(count: u32, censored: &[usize]) -> Data {
        let example = |index: u32| Example {
            features: [(index, 1.0)].into(),
            number: u64::from(index),
            tokens: index + 1,
            censored: censored.contains(&(index as usize)),
        };
        let examples: Vec<Arc<Example>> = (0..count).map(|index| Arc::new(example(index))).collect();
        data::from_examples(&[&examples], &TrainConfig::default()).unwrap()
    }

    /// The right order, blurred by that many standard deviations of it.
    fn blurred(data: &Data, by: f64, seed: u64) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut normal = || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        data.label.iter().map(|label| label + by * normal()).collect()
    }

    fn mixed(data: &Data, prior: &[f64], learned: &[f64]) -> (Vec<f64>, f64) {
        let blend = blend(data, prior, learned, 1);
        let scores = prior.iter().zip(learned).map(|(p, l)| blend.prior * p + blend.learned * l).collect();
        (scores, blend.prior_share)
    }

    #[test]
    fn few_rows_keep_a_good_prior_and_many_leave_a_bad_one() {
        let few = rows(30, &[]);
        let (scores, share) = mixed(&few, &blurred(&few, 0.5, 1), &blurred(&few, 3.0, 2));
        assert!(share > 0.5, "{share}");
        assert!(kendall_tau_b(&scores, &few.label).unwrap() > 0.5);
        let many = rows(2000, &[]);
        assert!(mixed(&many, &blurred(&many, 9.0, 1), &blurred(&many, 1.0, 2)).1 < 0.25);
        assert!(mixed(&many, &blurred(&many, 0.2, 1), &blurred(&many, 2.0, 2)).1 > 0.8);
    }

    #[test]
    fn two_orders_that_err_apart_make_a_better_one() {
        for (count, seed) in [(100, 1), (100, 3), (1000, 5)] {
            let data = rows(count, &[]);
            let (prior, learned) = (blurred(&data, 1.0, seed), blurred(&data, 1.0, seed + 1));
            let tau = |scores: &[f64]| kendall_tau_b(scores, &data.label).unwrap();
            let (scores, share) = mixed(&data, &prior, &learned);
            assert!(tau(&scores) > tau(&prior).max(tau(&learned)) + 0.03, "{share}");
            assert!((0.2..0.8).contains(&share), "{share}");
        }
    }

    #[test]
    fn an_order_that_says_nothing_leaves_the_other() {
        let data = rows(50, &[]);
        let (flat, good) = (vec![3.0; 50], blurred(&data, 0.3, 1));
        for (scores, _) in [mixed(&data, &flat, &good), mixed(&data, &good, &flat)] {
            let kept = kendall_tau_b(&scores, &good).unwrap();
            assert!(kept > 0.999, "{kept}");
        }
    }

    proptest! {
        #[test]
        fn neither_unit_nor_zero_of_a_score_matters(scale in 0.01f64..100.0, shift in -50.0f64..50.0, seed in 0u64..99) {
            let data = rows(60, &[]);
            let (prior, learned) = (blurred(&data, 1.0, seed), blurred(&data, 1.5, seed + 1));
            let other: Vec<f64> = prior.iter().map(|score| scale * score + shift).collect();
            let (before, after) = (mixed(&data, &prior, &learned), mixed(&data, &other, &learned));
            prop_assert!((before.1 - after.1).abs() < 1e-9);
            prop_assert!(kendall_tau_b(&before.0, &after.0).unwrap() > 0.999);
        }

        #[test]
        fn every_pair_of_a_small_model_counts_once_for_each_of_its_rows(
            scores in prop::collection::vec(-3i32..3, 20..40), censored in prop::collection::vec(0usize..40, 0..9)
        ) {
            let data = rows(scores.len() as u32, &censored);
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let found = Pairs::new(&data, 7).agreement(&data, &scores);
            for (row, found) in found.into_iter().enumerate() {
                // The row numbers are the lengths.
                let pair = |other: usize| {
                    let telling = !data.censored[row.min(other)];
                    f64::from(u8::from(telling)) * (scores[row.max(other)] - scores[row.min(other)]).clamp(-1.0, 1.0)
                };
                let sum: f64 = (0..scores.len()).filter(|&other| other != row).map(pair).sum();
                prop_assert!((found - sum / (scores.len() - 1) as f64).abs() < 1e-12);
            }
        }
    }
}
