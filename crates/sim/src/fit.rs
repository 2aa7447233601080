//! From measured steps to a cost model.

use outrank_core::StepSample;
use serde::Serialize;
use thiserror::Error;

use crate::{Composition, Knot, StepCost};

/// What a measured step held.
fn composition(sample: &StepSample) -> Composition {
    Composition {
        prefill_tokens: sample.prefill_tokens,
        decode_seqs: sample.decodes,
        context_tokens: sample.context_tokens,
    }
}

/// How far a cost model is from the steps that it was fitted to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Residuals {
    /// Steps.
    pub steps: usize,
    /// Median of |predicted / measured - 1|.
    pub relative_p50: f64,
    /// 90th percentile of the same.
    pub relative_p90: f64,
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

/// Steps below which a fit would be noise.
const MIN_STEPS: usize = 100;
/// Steps per knot below which a knot is left out.
const MIN_STEPS_PER_KNOT: usize = 20;
/// Rounds of coordinate descent; each is a pass over at most twenty coefficients.
const MAX_ROUNDS: usize = 20_000;

/// Fits [`StepCost`] by non-negative least squares of relative errors: every slope and every rate is at least 0, so that
/// the model can be used beyond what was measured. Steps slower than 5 times the median of their kind (a hiccup of the
/// machine) weigh as much as any other; collect enough.
///
/// # Errors
/// [`FitError::TooFew`].
pub fn fit(samples: &[StepSample]) -> Result<Fit, FitError> {
    let steps: Vec<(Composition, f64)> = samples
        .iter()
        .filter(|it| it.took_s.is_finite() && it.took_s > 0.0)
        .map(|it| (composition(it), it.took_s))
        .collect();
    if steps.len() < MIN_STEPS {
        return Err(FitError::TooFew(steps.len()));
    }
    let knots = knots(&steps);
    let columns = |step: &Composition| features(&knots, step);
    let solution = nonnegative_least_squares(steps.iter().map(|(step, took_s)| {
        // Relative errors: a row and its target over the target.
        (columns(step).iter().map(|x| x / took_s).collect(), 1.0)
    }));
    let cost = cost_of(&knots, &solution);
    let residuals = |keep: fn(&Composition) -> bool| {
        let kept: Vec<_> = steps.iter().filter(|(step, _)| keep(step)).copied().collect();
        residuals(&cost, &kept)
    };
    Ok(Fit {
        residuals: residuals(|_| true).unwrap_or(Residuals {
            steps: 0,
            relative_p50: 0.0,
            relative_p90: 0.0,
            total: 1.0,
        }),
        decode_residuals: residuals(|step| step.prefill_tokens == 0),
        prefill_residuals: residuals(|step| step.prefill_tokens > 0),
        cost,
    })
}

/// Powers of two, and the largest step, with enough steps between neighbours.
fn knots(steps: &[(Composition, f64)]) -> Vec<f64> {
    let mut tokens: Vec<u32> = steps.iter().map(|(step, _)| step.tokens()).collect();
    tokens.sort_unstable();
    let (smallest, largest) = (tokens[0].max(1), tokens[tokens.len() - 1].max(1));
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

/// The columns of a step: 1, the part of its tokens in each interval between knots, its context, whether it prefills,
/// its prefill tokens. The coefficients of the intervals are slopes.
fn features(knots: &[f64], step: &Composition) -> Vec<f64> {
    let tokens = f64::from(step.tokens());
    let mut row = vec![1.0];
    row.extend(knots.windows(2).map(|pair| (tokens - pair[0]).clamp(0.0, pair[1] - pair[0])));
    row.extend([
        step.context_tokens as f64,
        f64::from(u8::from(step.prefill_tokens > 0)),
        f64::from(step.prefill_tokens),
    ]);
    row
}

fn cost_of(knots: &[f64], solution: &[f64]) -> StepCost {
    let mut seconds = solution[0].max(1e-7);
    let mut points = vec![Knot { tokens: knots[0], seconds }];
    for (pair, slope) in knots.windows(2).zip(&solution[1..]) {
        seconds += slope * (pair[1] - pair[0]);
        points.push(Knot { tokens: pair[1], seconds });
    }
    let rest = &solution[knots.len()..];
    StepCost { knots: points, context_token_s: rest[0], prefill_step_s: rest[1], prefill_token_s: rest[2] }
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
    let mut relative: Vec<f64> =
        steps.iter().map(|(step, took_s)| (cost.seconds(step) / took_s - 1.0).abs()).collect();
    relative.sort_unstable_by(f64::total_cmp);
    let last = relative.len().checked_sub(1)?;
    let measured: f64 = steps.iter().map(|(_, took_s)| took_s).sum();
    let predicted: f64 = steps.iter().map(|(step, _)| cost.seconds(step)).sum();
    Some(Residuals {
        steps: steps.len(),
        relative_p50: relative[last / 2],
        relative_p90: relative[last * 9 / 10],
        total: predicted / measured,
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
            knots: vec![knot(1.0, 0.008), knot(128.0, 0.009), knot(2048.0, 0.090)],
            context_token_s: 2e-8,
            prefill_step_s: 0.001,
            prefill_token_s: 5e-6,
        };
        let mut samples = Vec::new();
        for n in 0..2000u64 {
            let seqs = (n * 7919 % 255 + 1) as u32;
            let prefill = if n % 3 == 0 { (n * 104_729 % 1700) as u32 } else { 0 };
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
        assert!(cost.knots.windows(2).all(|pair| pair[1].seconds >= pair[0].seconds), "{cost:?}");
    }
}
