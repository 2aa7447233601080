//! The passes over lists of requests of one model: the paper's objective, ListMLE, and a pairwise one to compare with.
//!
//! With g = -raw score (higher is shorter) and a list sorted from the shortest answer to the longest, the
//! loss is -sum_i log(exp g_i / sum_{k >= i} exp g_k): the negative log-likelihood of that order under Plackett
//! and Luce (Xia et al., "Listwise approach to learning to rank", ICML 2008). It is also Cox's partial
//! likelihood of survival times, which says what to do with a censored length: it stays in the sums of
//! shorter requests, and has no term of its own.

use super::data::Data;
use super::{Objective, TrainConfig};

/// Everything one pass needs beside the weights.
pub(super) struct Learner<'a> {
    data: &'a Data,
    rows: Vec<Vec<usize>>,
    list_size: usize,
    pairwise: bool,
    rate: f64,
    penalty: f64,
    /// Sum of squared gradients per column: AdaGrad (Duchi et al., JMLR 12, 2011).
    squares: Vec<f64>,
    /// One over the number of learned rows that hold the column: each touch pays its share of the penalty.
    touch: Vec<f64>,
    gradient: Vec<f64>,
    touched: Vec<usize>,
}

impl<'a> Learner<'a> {
    pub(super) fn new(data: &'a Data, rows: &[usize], config: &TrainConfig, rate: f64, penalty: f64) -> Self {
        let columns = data.features.len();
        let mut touch = vec![0.0f64; columns];
        let mut by_group = vec![Vec::new(); data.groups.len()];
        for &row in rows {
            by_group[data.group_of[row]].push(row);
            data.row(row).for_each(|(column, _)| touch[column] += 1.0);
        }
        touch.iter_mut().for_each(|count| *count = 1.0 / count.max(1.0));
        Self {
            data,
            rows: by_group,
            list_size: config.list_size,
            pairwise: config.objective == Objective::Pairwise,
            rate,
            penalty,
            squares: vec![1e-2; columns],
            touch,
            gradient: vec![0.0; columns],
            touched: Vec::new(),
        }
    }

    /// One pass over all rows in fresh random lists; ties within a list are broken at random.
    pub(super) fn epoch(&mut self, weights: &mut [f64], random: &mut fastrand::Rng) {
        let mut lists: Vec<Vec<usize>> = Vec::new();
        for rows in &mut self.rows {
            random.shuffle(rows);
            let count = rows.len().div_ceil(self.list_size).max(1);
            let size = rows.len().div_ceil(count).max(1);
            lists.extend(rows.chunks(size).filter(|list| list.len() > 1).map(<[usize]>::to_vec));
        }
        random.shuffle(&mut lists);
        for list in &mut lists {
            self.step(list, weights);
        }
    }

    /// One descent on one list. The list comes shuffled, so a stable sort breaks ties at random.
    fn step(&mut self, list: &mut [usize], weights: &mut [f64]) {
        let data = self.data;
        list.sort_by(|&a, &b| data.label[a].total_cmp(&data.label[b]));
        let scores: Vec<f64> = list.iter().map(|&row| -data.dot(row, weights)).collect();
        let events: Vec<bool> = list.iter().map(|&row| !data.censored[row]).collect();
        let slopes = if self.pairwise {
            let ln_tokens: Vec<f64> = list.iter().map(|&row| data.ln_plus_one(row)).collect();
            pairwise_gradient(&scores, &ln_tokens, &events)
        } else {
            gradient(&scores, &events)
        };
        for (&row, slope) in list.iter().zip(&slopes) {
            let weight = data.weight(row);
            for (column, value) in data.row(row) {
                if self.gradient[column] == 0.0 {
                    self.touched.push(column);
                }
                // Raw score = -g, so the sign turns.
                self.gradient[column] += weight * (-slope * value)
                    + self.penalty * self.touch[column] * weights[column]
                    + f64::MIN_POSITIVE;
            }
        }
        for column in self.touched.drain(..) {
            let g = std::mem::take(&mut self.gradient[column]);
            self.squares[column] += g * g;
            weights[column] -= self.rate * g / self.squares[column].sqrt();
        }
    }
}

/// Gradient of the ListMLE loss by g, for a list sorted from shortest to longest.
pub(super) fn gradient(scores: &[f64], events: &[bool]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| libm::exp(score - top)).collect();
    let mut tails = vec![0.0; scores.len()];
    let mut sum = 0.0;
    for index in (0..scores.len()).rev() {
        sum += powers[index];
        tails[index] = sum;
    }
    let mut shares = 0.0;
    let mut out = Vec::with_capacity(scores.len());
    for index in 0..scores.len() {
        if events[index] {
            shares += 1.0 / tails[index].max(f64::MIN_POSITIVE);
        }
        out.push(powers[index] * shares - f64::from(u8::from(events[index])));
    }
    out
}

/// Least difference of ln(1 + tokens) of a pair that counts: a fifth. Closer ones are mostly noise (PARS).
const MIN_LN_DIFFERENCE: f64 = 0.182_321_556_793_954_6;

/// Gradient by g of sum over pairs of max(0, 1 - (g_i - g_k)), i the shorter one, over the pairs that differ enough, divided by
/// the length of the list. A pair whose shorter one was cut short says nothing.
pub(super) fn pairwise_gradient(scores: &[f64], ln_tokens: &[f64], events: &[bool]) -> Vec<f64> {
    let mut out = vec![0.0; scores.len()];
    let share = 1.0 / scores.len().max(1) as f64;
    for i in (0..scores.len()).filter(|&i| events[i]) {
        for k in i + 1..scores.len() {
            if ln_tokens[k] - ln_tokens[i] >= MIN_LN_DIFFERENCE && scores[i] - scores[k] < 1.0 {
                out[i] -= share;
                out[k] += share;
            }
        }
    }
    out
}

/// The ListMLE loss itself, in nats.
#[cfg(test)]
pub(super) fn loss(scores: &[f64], events: &[bool]) -> f64 {
    let tail = |from: usize| scores[from..].iter().map(|score| score.exp()).sum::<f64>();
    (0..scores.len()).filter(|&i| events[i]).map(|i| tail(i).ln() - scores[i]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let scores = [0.3, -1.0, 2.0, 0.5, 0.1];
        for events in [[true; 5], [true, false, true, true, false]] {
            let slopes = gradient(&scores, &events);
            for index in 0..scores.len() {
                let moved = |by: f64| {
                    let mut scores = scores;
                    scores[index] += by;
                    loss(&scores, &events)
                };
                let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slopes[index] - numeric).abs() < 1e-6, "{index}: {} {numeric}", slopes[index]);
            }
        }
    }

    #[test]
    fn pairs_that_differ_enough_and_stand_too_close_are_pushed_apart() {
        let slopes = pairwise_gradient(&[0.0, 0.5, -9.0], &[1.0, 1.1, 3.0], &[true; 3]);
        assert_eq!(slopes, [0.0; 3], "the first two are too alike, the last is far enough");
        let slopes = pairwise_gradient(&[0.0, 0.5], &[1.0, 2.0], &[true; 2]);
        assert_eq!(slopes, [-0.5, 0.5]);
        assert_eq!(pairwise_gradient(&[0.0, 0.5], &[1.0, 2.0], &[false, true]), [0.0; 2]);
    }

    #[test]
    fn the_right_order_costs_least() {
        let right = loss(&[2.0, 1.0, 0.0], &[true; 3]);
        assert!(right < loss(&[1.0, 2.0, 0.0], &[true; 3]));
        assert!(right < loss(&[0.0, 1.0, 2.0], &[true; 3]));
    }

    #[test]
    fn a_censored_request_pulls_nothing_towards_its_own_place() {
        let slopes = gradient(&[0.0, 0.0], &[false, false]);
        assert_eq!(slopes, [0.0, 0.0]);
        assert!(gradient(&[0.0, 0.0], &[true, false])[1] > 0.0, "it is still longer than those before it");
    }
}
