//! The transformer: pieces in, a guess out.

use super::file::{Layer, Mixing, Norm, Weights};
use super::matrix::{LANES, Linear, vector};

use wide::{f32x16, i32x16};

/// Width of an attention head.
const HEAD: usize = LANES;
/// One over the root of it.
const HEAD_SCALE: f32 = 0.25;
/// Queries that are answered at a time: no addition waits for the one before.
const QUERIES: usize = if cfg!(target_feature = "avx512f") { 8 } else { 4 };
/// Under the root of a layer norm's variance.
const EPSILON: f32 = 1e-5;

/// Room for one prompt.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    wide: Vec<f32>,
    mixed: Vec<f32>,
    keys: Vec<f32x16>,
    scores: Vec<f32x16>,
}

/// Runs the network on at least one piece, and at most as many as it has places for.
pub(super) fn run(weights: &Weights, pieces: &[u16], scratch: &mut Scratch) -> f32 {
    let width = weights.width;
    scratch.x.clear();
    for (&piece, place) in pieces.iter().zip(weights.places.chunks_exact(width)) {
        let row = usize::from(piece);
        let scale = weights.scales[row];
        let embedding = &weights.embeddings[row * width..(row + 1) * width];
        scratch.x.extend(embedding.iter().zip(place).map(|(&e, &p)| multiply_add(f32::from(e), scale, p)));
    }
    for layer in &weights.layers {
        match &layer.mixing {
            Mixing::Neighbours { taps } => convolve(&layer.mixing_norm, taps, scratch),
            Mixing::Attention { queries_keys_values, out } => {
                attend(&layer.mixing_norm, queries_keys_values, out, scratch);
            }
        }
        feed_forward(layer, width, scratch);
    }
    pool(weights, scratch)
}

fn norm(norm: &Norm, x: &[f32], out: &mut Vec<f32>) {
    let width = norm.scale.len();
    out.clear();
    for row in x.chunks_exact(width) {
        let mean = sum(row) / width as f32;
        let mut squares = [0.0; LANES];
        for part in row.chunks_exact(LANES) {
            for (square, &value) in squares.iter_mut().zip(part) {
                *square = multiply_add(value - mean, value - mean, *square);
            }
        }
        let scale = (sum(&squares) / width as f32 + EPSILON).sqrt().recip();
        let pairs = row.iter().zip(norm.scale.iter().zip(&norm.shift));
        out.extend(pairs.map(|(&value, (&by, &shift))| multiply_add((value - mean) * scale, by, shift)));
    }
}

/// The sum of a number of values that is a multiple of [`LANES`], in the same order on every machine.
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for part in values.chunks_exact(LANES) {
        sums.iter_mut().zip(part).for_each(|(sum, &value)| *sum += value);
    }
    sums.iter().sum()
}

/// What each place takes of its neighbours.
fn convolve(norm_of: &Norm, taps: &[f32], scratch: &mut Scratch) {
    let Scratch { x, normed, .. } = scratch;
    norm(norm_of, x, normed);
    let width = norm_of.scale.len();
    let (rows, reach) = (x.len() / width, taps.len() / width / 2);
    for (row, to) in x.chunks_exact_mut(width).enumerate() {
        for (tap, by) in taps.chunks_exact(width).enumerate() {
            if let Some(from) = (row + tap).checked_sub(reach).filter(|&from| from < rows) {
                let from = &normed[from * width..(from + 1) * width];
                to.iter_mut()
                    .zip(from.iter().zip(by))
                    .for_each(|(to, (&a, &b))| *to = multiply_add(a, b, *to));
            }
        }
    }
}

/// What each place takes of all others, by scaled dot-product attention.
fn attend(norm_of: &Norm, queries_keys_values: &Linear, attention_out: &Linear, scratch: &mut Scratch) {
    let Scratch { x, normed, wide, mixed, keys, scores } = scratch;
    norm(norm_of, x, normed);
    let width = norm_of.scale.len();
    let rows = x.len() / width;
    wide.resize(3 * x.len(), 0.0);
    queries_keys_values.run(normed, |row, from, values| {
        wide[row * 3 * width + from..][..values.len()].copy_from_slice(values);
    });
    mixed.resize(x.len(), 0.0);
    let blocks = rows.div_ceil(LANES);
    for head in 0..width / HEAD {
        let part = |row: usize, which: usize| &wide[(3 * row + which) * width + head * HEAD..][..HEAD];
        // A column a place, so that the scores of one query lie together.
        keys.clear();
        keys.resize(HEAD * blocks, f32x16::ZERO);
        for row in 0..rows {
            for (index, &value) in part(row, 1).iter().enumerate() {
                keys[index * blocks + row / LANES].as_mut_array()[row % LANES] = value;
            }
        }
        for first in (0..rows).step_by(QUERIES) {
            let queries: [&[f32]; QUERIES] =
                std::array::from_fn(|query| part((first + query).min(rows - 1), 0));
            scores.clear();
            for block in 0..blocks {
                let mut sums = [f32x16::ZERO; QUERIES];
                for index in 0..HEAD {
                    let key = keys[index * blocks + block];
                    for query in 0..QUERIES {
                        sums[query] =
                            f32x16::splat(queries[query][index] * HEAD_SCALE).mul_add(key, sums[query]);
                    }
                }
                scores.extend(sums);
            }
            let totals: [f32; QUERIES] = softmax(scores, rows);
            let mut sums = [f32x16::ZERO; QUERIES];
            for place in 0..rows {
                let value = vector(part(place, 2));
                for query in 0..QUERIES {
                    let score = scores[place / LANES * QUERIES + query].as_array()[place % LANES];
                    sums[query] = f32x16::splat(score).mul_add(value, sums[query]);
                }
            }
            for query in 0..QUERIES.min(rows - first) {
                let shares = sums[query].as_array().map(|value| value / totals[query]);
                mixed[(first + query) * width + head * HEAD..][..HEAD].copy_from_slice(&shares);
            }
        }
    }
    attention_out.run(mixed, |row, from, values| add(&mut x[row * width + from..], values));
}

fn feed_forward(layer: &Layer, width: usize, scratch: &mut Scratch) {
    let Scratch { x, normed, wide, .. } = scratch;
    norm(&layer.inner_norm, x, normed);
    let inner = layer.up.outputs();
    wide.resize(x.len() / width * inner, 0.0);
    layer.up.run(normed, |row, from, values| {
        let out = &mut wide[row * inner + from..][..values.len()];
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = value.max(0.0));
    });
    wide.truncate(x.len() / width * inner);
    layer.down.run(wide, |row, from, values| add(&mut x[row * width + from..], values));
}

fn add(to: &mut [f32], values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, &value)| *to += value);
}

/// Mean, largest and attended sums of all places, and how many there are; then two layers.
fn pool(weights: &Weights, scratch: &mut Scratch) -> f32 {
    let width = weights.width;
    let Scratch { x, normed, scores, .. } = scratch;
    norm(&weights.norm, x, normed);
    let rows = normed.len() / width;
    let (heads, blocks) = (weights.attention.outputs(), rows.div_ceil(LANES));
    scores.clear();
    scores.resize(heads * blocks, f32x16::ZERO);
    weights.attention.run(normed, |row, _, values| {
        for (head, &value) in values.iter().enumerate() {
            scores[head * blocks + row / LANES].as_mut_array()[row % LANES] = value;
        }
    });
    let mut pooled = vec![0.0; (2 + heads) * width + 1];
    let (mean, rest) = pooled.split_at_mut(width);
    let (largest, attended) = rest.split_at_mut(width);
    largest.fill(f32::MIN);
    for row in normed.chunks_exact(width) {
        for (index, &value) in row.iter().enumerate() {
            mean[index] += value;
            largest[index] = largest[index].max(value);
        }
    }
    mean.iter_mut().for_each(|value| *value /= rows as f32);
    for (shares, attended) in scores.chunks_exact_mut(blocks).zip(attended.chunks_exact_mut(width)) {
        let [total] = softmax(shares, rows);
        let shares = shares.iter().flat_map(f32x16::as_array);
        for (row, &share) in normed.chunks_exact(width).zip(shares) {
            let by = share / total;
            attended.iter_mut().zip(row).for_each(|(sum, &value)| *sum = multiply_add(by, value, *sum));
        }
    }
    attended[heads * width] = libm::log1pf(rows as f32);
    let mut hidden = vec![0.0; weights.hidden.outputs()];
    weights.hidden.run(&pooled, |_, from, values| {
        hidden[from..][..values.len()].iter_mut().zip(values).for_each(|(out, &value)| *out = value.max(0.0));
    });
    let mut guess = 0.0;
    weights.outputs.run(&hidden, |_, _, values| guess = values[0]);
    guess
}

/// Exponentials of the first `places` scores of each query over the largest of them, in place, the rest nothing; returns
/// their sums. [`LANES`] places of the first query come first, then the same places of the next.
fn softmax<const N: usize>(scores: &mut [f32x16], places: usize) -> [f32; N] {
    let last = scores.len() - N;
    for score in &mut scores[last..] {
        score.as_mut_array()[(places - 1) % LANES + 1..].fill(f32::MIN);
    }
    let mut largest = [f32x16::splat(f32::MIN); N];
    for block in scores.chunks_exact(N) {
        largest.iter_mut().zip(block).for_each(|(largest, &score)| *largest = largest.fast_max(score));
    }
    let largest =
        largest.map(|lanes| f32x16::splat(lanes.as_array().iter().fold(f32::MIN, |a, &b| a.max(b))));
    let mut sums = [f32x16::ZERO; N];
    for block in scores.chunks_exact_mut(N) {
        for ((score, largest), sum) in block.iter_mut().zip(largest).zip(&mut sums) {
            *score = exp(*score - largest);
            *sum += *score;
        }
    }
    sums.map(|lanes| lanes.as_array().iter().sum())
}

/// e^x for x at most 0, to a few units in the last place, by Cephes' polynomial. Below -30 it stays at e^-30: nothing that
/// counts, and no slow tiny numbers.
#[inline(always)]
fn exp(x: f32x16) -> f32x16 {
    let x = x.fast_max(f32x16::splat(-30.0));
    let whole = (x * f32x16::LOG2_E).round();
    let rest = whole.mul_add(f32x16::splat(-0.693_359_4), x);
    let rest = whole.mul_add(f32x16::splat(2.121_944_4e-4), rest);
    let mut power = f32x16::splat(1.987_569_1e-4);
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        power = power.mul_add(rest, f32x16::splat(term));
    }
    let power = (power * rest).mul_add(rest, rest) + f32x16::ONE;
    let exponent: i32x16 = (whole.fast_round_int() + i32x16::splat(127)) << 23;
    power * f32x16::from_bits(exponent.cast_unsigned())
}

/// `a b + c`, rounded once where the machine can.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction `mul_add` is a function call, a hundred times slower.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_padding_has_none() {
        let mut scores = [f32x16::splat(9.0)];
        scores[0].as_mut_array()[..3].copy_from_slice(&[1.0, 3.0, 2.0]);
        let [total] = softmax(&mut scores, 3);
        assert!((total - (1.0 + libm::expf(-1.0) + libm::expf(-2.0))).abs() < 1e-5, "{total}");
        assert!(scores[0].as_array()[3..].iter().all(|&score| score < 1e-12));
    }
}
