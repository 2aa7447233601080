//! The warm start: ridge regression of the standardised ln-lengths, by conjugate gradients.
//!
//! Minimises sum_i c_i (y_i - b_g(i) - w·x_i)² + penalty |w|² with an offset b_g per group, which is
//! projected out: the normal equations (XᵀC P X + penalty I) w = XᵀC P y, P removing each group's mean.

use super::data::Data;

/// Most steps; each costs two passes over the data.
const STEPS: usize = 40;

/// Norm of the residual, relative to where it started, at which to stop.
const TOLERANCE: f64 = 1e-3;

/// The weights for the given rows.
pub(super) fn fit(data: &Data, rows: &[usize], penalty: f64, start: Option<&[f64]>) -> Vec<f64> {
    let columns = data.features.len();
    let mut residual_rows: Vec<f64> = rows.iter().map(|&row| data.label[row]).collect();
    let mut weights = match start {
        Some(start) => start.to_vec(),
        None => vec![0.0; columns],
    };
    if start.is_some() {
        for (value, &row) in residual_rows.iter_mut().zip(rows) {
            *value -= data.dot(row, &weights);
        }
    }
    let mut residual = back(data, rows, &mut residual_rows, columns);
    for (r, w) in residual.iter_mut().zip(&weights) {
        *r -= penalty * w;
    }
    let mut direction = residual.clone();
    let mut norm = dot(&residual, &residual);
    let first = norm;
    for _ in 0..STEPS {
        if norm <= TOLERANCE * TOLERANCE * first || norm == 0.0 {
            break;
        }
        let mut forward: Vec<f64> = rows.iter().map(|&row| data.dot(row, &direction)).collect();
        let mut image = back(data, rows, &mut forward, columns);
        for (out, d) in image.iter_mut().zip(&direction) {
            *out += penalty * d;
        }
        let step = norm / dot(&direction, &image);
        for index in 0..columns {
            weights[index] += step * direction[index];
            residual[index] -= step * image[index];
        }
        let next = dot(&residual, &residual);
        for (d, r) in direction.iter_mut().zip(&residual) {
            *d = r + next / norm * *d;
        }
        norm = next;
    }
    weights
}

/// XᵀC P v: removes each group's mean, weighs, and goes back from rows to columns.
fn back(data: &Data, rows: &[usize], values: &mut [f64], columns: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); data.groups.len()];
    for (&row, value) in rows.iter().zip(values.iter()) {
        let sum = &mut sums[data.group_of[row]];
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    let mut out = vec![0.0; columns];
    for (&row, value) in rows.iter().zip(values) {
        let (sum, count) = sums[data.group_of[row]];
        data.add_row(row, data.weight(row) * (*value - sum / count), &mut out);
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
