//! From measured steps to a cost model.

use outrank_core::StepSample;
use serde::Serialize;
use thiserror::Error;

use crate::{Composition, Knot, StepCost};

/// How far a cost model is from the steps that it was fitted to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Residuals {
    /// Steps.
    pub steps: usize,
    /// Median of |predicted / measured - 1|.
    pub relative_p50: f64,
    /// 90th percentile of the same.
    pub relative_p90: f64,
    /// Median of the same over 16 steps in a row together.
    pub block_p50: f64,
    /// 90th percentile of the same.
    pub block_p90: f64,
    /// Predicted over measured time of all steps together.
    pub total: f64,
}

/// A fitted cost model.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Fit {
    /// The model.
    pub cost: StepCost,
    /// Over all steps.
    pub residuals: Residuals,
    /// Over the steps without prefill.
    pub decode_residuals: Option<Residuals>,
    /// Over the steps with prefill.
    pub prefill_residuals: Option<Residuals>,
}

/// Why no cost can be fitted.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FitError {
    /// Too few steps.
    #[error("{0} usable steps: at least 100 are needed, of batches of different sizes")]
    TooFew(usize),
}

/// Steps in a row that are summed.
const BLOCK_STEPS: usize = 16;
/// Steps below which a fit would be noise.
const MIN_STEPS: usize = 100;
/// Steps per knot below which a knot is left out.
const MIN_STEPS_PER_KNOT: usize = 20;
/// Rounds of coordinate descent; each is a pass over at most twenty coefficients.
const MAX_ROUNDS: usize = 20_000;

/// Fits [`StepCost`] by non-negative least squares: every slope and every rate is at least 0, so that the model can be
/// used beyond what was measured. What is fitted are sums over 16 steps in a row (give them in the order of the log), not
/// single steps: an engine with two steps in flight books part of one step's time to its neighbours, and it is sums of
/// steps that requests live through.
///
/// # Errors
/// [`FitError::TooFew`].
pub fn fit(samples: &[StepSample]) -> Result<Fit, FitError> {
    let steps: Vec<(Composition, f64)> = samples
        .iter()
        .filter(|it| it.took_s.is_finite() && it.took_s > 0.0)
        .map(|it| (Composition::from(it), it.took_s))
        .collect();
    if steps.len() < MIN_STEPS {
        return Err(FitError::TooFew(steps.len()));
    }
    let form = Form::of(&steps);
    let rows = steps.chunks(BLOCK_STEPS).map(|block| {
        let mut sums = form.columns(&block[0].0);
        for (step, _) in &block[1..] {
            sums.iter_mut().zip(form.columns(step)).for_each(|(sum, x)| *sum += x);
        }
        (sums, block.iter().map(|(_, took_s)| took_s).sum())
    });
    let cost = form.cost(&nonnegative_least_squares(rows));
    let residuals = |keep: fn(&Composition) -> bool| {
        let kept: Vec<_> = steps.iter().filter(|(step, _)| keep(step)).copied().collect();
        residuals(&cost, &kept)
    };
    Ok(Fit {
        residuals: residuals(|_| true).unwrap_or(Residuals {
            steps: 0,
            relative_p50: 0.0,
            relative_p90: 0.0,
            block_p50: 0.0,
            block_p90: 0.0,
            total: 1.0,
        }),
        decode_residuals: residuals(|step| step.prefill_tokens == 0),
        prefill_residuals: residuals(|step| step.prefill_tokens > 0),
        cost,
    })
}

/// The knots of both pieces.
struct Form {
    decode: Vec<f64>,
    prefill: Vec<f64>,
}

impl Form {
    fn of(steps: &[(Composition, f64)]) -> Self {
        let with_prefill = steps.iter().map(|(step, _)| step.prefill_tokens).filter(|&tokens| tokens > 0);
        Self {
            decode: knots(steps.iter().map(|(step, _)| step.decode_seqs).collect()),
            prefill: knots(with_prefill.collect()),
        }
    }

    /// The columns of a step: its context, then for each piece whether it applies and its part of each interval between
    /// knots. The coefficients of intervals are slopes.
    fn columns(&self, step: &Composition) -> Vec<f64> {
        let mut row = vec![step.context_tokens as f64];
        let pieces = [
            (&self.decode, step.decode_seqs, true),
            (&self.prefill, step.prefill_tokens, step.prefill_tokens > 0),
        ];
        for (knots, tokens, applies) in pieces {
            let applies = f64::from(u8::from(applies));
            row.push(applies);
            let part = |pair: &[f64]| (f64::from(tokens) - pair[0]).clamp(0.0, pair[1] - pair[0]);
            row.extend(knots.windows(2).map(|pair| applies * part(pair)));
        }
        row
    }

    fn cost(&self, solution: &[f64]) -> StepCost {
        let (decode, prefill) = solution[1..].split_at(self.decode.len());
        let mut cost = StepCost {
            context_token_s: solution[0],
            decode: piece(&self.decode, decode),
            prefill: piece(&self.prefill, prefill),
        };
        // A step always takes some time.
        cost.decode.iter_mut().for_each(|knot| knot.seconds = knot.seconds.max(1e-7));
        cost
    }
}

/// Powers of two, and the smallest and largest number of tokens, with enough steps between neighbours.
fn knots(mut tokens: Vec<u32>) -> Vec<f64> {
    tokens.sort_unstable();
    let (Some(&smallest), Some(&largest)) = (tokens.first(), tokens.last()) else { return vec![1.0] };
    let mut knots = vec![f64::from(smallest)];
    let mut below = tokens.partition_point(|&n| n <= smallest);
    let powers = (0..31).map(|power| 1u32 << power).filter(|&n| n > smallest && n < largest);
    for knot in powers {
        let here = tokens.partition_point(|&n| n <= knot);
        if here - below >= MIN_STEPS_PER_KNOT {
            knots.push(f64::from(knot));
            below = here;
        }
    }
    if largest > smallest {
        knots.push(f64::from(largest));
    }
    knots
}

/// Knots with their seconds, from the seconds at the first and the slopes of the intervals.
fn piece(knots: &[f64], solution: &[f64]) -> Vec<Knot> {
    let mut seconds = solution[0];
    let mut points = vec![Knot { tokens: knots[0], seconds }];
    for (pair, slope) in knots.windows(2).zip(&solution[1..]) {
        seconds += slope * (pair[1] - pair[0]);
        points.push(Knot { tokens: pair[1], seconds });
    }
    points
}

/// Minimises `Σ (row · x - target)²` over `x ≥ 0` by cyclic coordinate descent on the normal equations, with columns
/// scaled to unit length.
fn nonnegative_least_squares(rows: impl Iterator<Item = (Vec<f64>, f64)>) -> Vec<f64> {
    let (mut gram, mut moment): (Vec<Vec<f64>>, Vec<f64>) = (Vec::new(), Vec::new());
    for (row, target) in rows {
        if gram.is_empty() {
            gram = vec![vec![0.0; row.len()]; row.len()];
            moment = vec![0.0; row.len()];
        }
        for (i, a) in row.iter().enumerate() {
            moment[i] += a * target;
            for (j, b) in row.iter().enumerate() {
                gram[i][j] += a * b;
            }
        }
    }
    let n = moment.len();
    let scale: Vec<f64> = (0..n).map(|i| gram[i][i].sqrt().max(f64::MIN_POSITIVE)).collect();
    let mut x = vec![0.0f64; n];
    for _ in 0..MAX_ROUNDS {
        let mut moved = 0.0f64;
        for i in 0..n {
            if gram[i][i] <= 0.0 {
                continue;
            }
            let others: f64 =
                (0..n).filter(|&j| j != i).map(|j| gram[i][j] / scale[i] / scale[j] * x[j]).sum();
            let new = (moment[i] / scale[i] - others).max(0.0);
            moved = moved.max((new - x[i]).abs());
            x[i] = new;
        }
        if moved < 1e-12 * x.iter().fold(1.0, |a: f64, b| a.max(*b)) {
            break;
        }
    }
    x.iter().zip(&scale).map(|(x, scale)| x / scale).collect()
}

fn residuals(cost: &StepCost, steps: &[(Composition, f64)]) -> Option<Residuals> {
    let sums = |steps: &[(Composition, f64)]| {
        let predicted: f64 = steps.iter().map(|(step, _)| cost.seconds(step)).sum();
        predicted / steps.iter().map(|(_, took_s)| took_s).sum::<f64>()
    };
    let errors = |block: usize| {
        let mut errors: Vec<f64> = steps.chunks(block).map(|block| (sums(block) - 1.0).abs()).collect();
        errors.sort_unstable_by(f64::total_cmp);
        errors
    };
    let (single, blocks) = (errors(1), errors(BLOCK_STEPS));
    let last = single.len().checked_sub(1)?;
    let last_block = blocks.len() - 1;
    Some(Residuals {
        steps: steps.len(),
        relative_p50: single[last / 2],
        relative_p90: single[last * 9 / 10],
        block_p50: blocks[last_block / 2],
        block_p90: blocks[last_block * 9 / 10],
        total: sums(steps),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prefill_tokens: u32, decode_seqs: u32, context_tokens: u64, cost: &StepCost) -> StepSample {
        let step = Composition { prefill_tokens, decode_seqs, context_tokens };
        let took_s = cost.seconds(&step);
        StepSample { prefill_tokens, prefills: 1, decodes: decode_seqs, context_tokens, took_s }
    }

    #[test]
    fn a_known_cost_is_found_again() {
        let knot = |tokens, seconds| Knot { tokens, seconds };
        let truth = StepCost {
            context_token_s: 2e-8,
            decode: vec![knot(1.0, 0.008), knot(128.0, 0.009), knot(255.0, 0.011)],
            prefill: vec![knot(16.0, 0.004), knot(256.0, 0.005), knot(1700.0, 0.040)],
        };
        let mut samples = Vec::new();
        for n in 0..2000u64 {
            let seqs = (n * 7919 % 255 + 1) as u32;
            let prefill = if n % 3 == 0 { (n * 104_729 % 1700) as u32 + 1 } else { 0 };
            samples.push(sample(prefill, seqs, u64::from(seqs) * (50 + n * 31 % 1500), &truth));
        }
        let fit = fit(&samples).unwrap();
        assert!(fit.residuals.relative_p90 < 0.01, "{:?}", fit.residuals);
        assert!((fit.residuals.total - 1.0).abs() < 0.003);
        assert!((fit.cost.context_token_s / truth.context_token_s - 1.0).abs() < 0.05, "{:?}", fit.cost);
        assert!(fit.cost.flaw().is_none());
    }

    #[test]
    fn few_or_unusable_steps_are_refused() {
        let unusable = StepSample { took_s: 0.0, ..StepSample::default() };
        assert_eq!(fit(&vec![unusable; 500]), Err(FitError::TooFew(0)));
    }

    #[test]
    fn costs_that_fall_with_size_become_flat_not_negative() {
        let samples: Vec<StepSample> = (1..400u32)
            .map(|n| StepSample {
                decodes: n % 64 + 1,
                took_s: 0.02 - f64::from(n % 64) * 1e-5,
                ..StepSample::default()
            })
            .collect();
        let cost = fit(&samples).unwrap().cost;
        assert!(cost.decode.windows(2).all(|pair| pair[1].seconds >= pair[0].seconds), "{cost:?}");
    }
}
