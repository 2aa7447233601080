//! The transformer: pieces in, numbers out.

use super::OUTPUTS;
use super::file::{Layer, Norm, Weights};
use super::matrix::{LANES, multiply_add};

/// Width of an attention head.
const HEAD: usize = 16;
/// Under the root of a layer norm's variance.
const EPSILON: f32 = 1e-5;

/// Room for one prompt.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    wide: Vec<f32>,
    mixed: Vec<f32>,
    keys: Vec<f32>,
}

/// Runs the network on at least one piece, and at most as many as it has places for.
pub(super) fn run(weights: &Weights, pieces: &[u16], scratch: &mut Scratch) -> [f32; OUTPUTS] {
    let width = weights.shape.width;
    scratch.x.clear();
    for (&piece, place) in pieces.iter().zip(weights.places.chunks_exact(width)) {
        let row = usize::from(piece);
        let scale = weights.scales[row];
        let embedding = &weights.embeddings[row * width..(row + 1) * width];
        scratch.x.extend(embedding.iter().zip(place).map(|(&e, &p)| multiply_add(f32::from(e), scale, p)));
    }
    for layer in &weights.layers {
        attend(layer, width, scratch);
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

fn attend(layer: &Layer, width: usize, scratch: &mut Scratch) {
    let Scratch { x, normed, wide, mixed, keys } = scratch;
    norm(&layer.attention_norm, x, normed);
    let rows = x.len() / width;
    wide.resize(3 * x.len(), 0.0);
    layer.queries_keys_values.run(normed, |row, from, values| {
        wide[row * 3 * width + from..][..values.len()].copy_from_slice(values);
    });
    mixed.resize(x.len(), 0.0);
    // Keys of a head with a place a column, padded, so that the scores of one query lie together.
    let padded = rows.next_multiple_of(LANES);
    keys.clear();
    keys.resize(HEAD * padded, 0.0);
    let mut scores = vec![0.0; padded];
    for head in 0..width / HEAD {
        for row in 0..rows {
            for (part, &value) in wide[row * 3 * width + width + head * HEAD..][..HEAD].iter().enumerate() {
                keys[part * padded + row] = value;
            }
        }
        for row in 0..rows {
            let query = &wide[row * 3 * width + head * HEAD..][..HEAD];
            scores.fill(0.0);
            for (&value, keys) in query.iter().zip(keys.chunks_exact(padded)) {
                let value = value * 0.25; // the root of HEAD
                scores.iter_mut().zip(keys).for_each(|(score, &key)| *score = multiply_add(value, key, *score));
            }
            let total = softmax(&mut scores, rows);
            let mut out = [0.0; HEAD];
            for (place, &score) in scores[..rows].iter().enumerate() {
                let values = &wide[place * 3 * width + 2 * width + head * HEAD..][..HEAD];
                out.iter_mut().zip(values).for_each(|(out, &value)| *out = multiply_add(score, value, *out));
            }
            let shares = out.map(|value| value / total);
            mixed[row * width + head * HEAD..][..HEAD].copy_from_slice(&shares);
        }
    }
    layer.attention_out.run(mixed, |row, from, values| add(&mut x[row * width + from..], values));
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

/// Mean, largest and attended sum of all places, and how many there are; then two layers.
fn pool(weights: &Weights, scratch: &mut Scratch) -> [f32; OUTPUTS] {
    let width = weights.shape.width;
    let Scratch { x, normed, .. } = scratch;
    norm(&weights.norm, x, normed);
    let rows = normed.len() / width;
    let padded = rows.next_multiple_of(LANES);
    let mut shares = vec![0.0; padded];
    weights.attention.run(normed, |row, _, values| shares[row] = values[0]);
    let total = softmax(&mut shares, rows);
    let mut pooled = vec![0.0; 3 * width + 1];
    let (mean, rest) = pooled.split_at_mut(width);
    let (largest, attended) = rest.split_at_mut(width);
    largest.fill(f32::MIN);
    for (row, &share) in normed.chunks_exact(width).zip(&shares) {
        for (index, &value) in row.iter().enumerate() {
            mean[index] += value;
            largest[index] = largest[index].max(value);
            attended[index] = multiply_add(share, value, attended[index]);
        }
    }
    mean.iter_mut().for_each(|value| *value /= rows as f32);
    attended[..width].iter_mut().for_each(|value| *value /= total);
    attended[width] = libm::log1pf(rows as f32);
    let mut hidden = vec![0.0; weights.shape.hidden];
    weights.hidden.run(&pooled, |_, from, values| {
        hidden[from..][..values.len()].iter_mut().zip(values).for_each(|(out, &value)| *out = value.max(0.0));
    });
    let mut out = [0.0; OUTPUTS];
    weights.outputs.run(&hidden, |_, from, values| out[from..][..values.len()].copy_from_slice(values));
    out
}

/// Exponentials of the first `count` scores over the largest of them, in place, the rest 0; returns their sum.
fn softmax(scores: &mut [f32], count: usize) -> f32 {
    let largest = scores[..count].iter().fold(f32::MIN, |largest, &score| largest.max(score));
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    scores[count..].fill(0.0);
    sum(scores)
}

/// e^x for x at most 0, to a few units in the last place; a polynomial that vectorises (Cephes' expf).
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.max(-87.0);
    let whole = (x * std::f32::consts::LOG2_E).round_ties_even();
    let rest = multiply_add(whole, 2.121_944_4e-4, multiply_add(whole, -0.693_359_4, x));
    let mut power = 1.987_569_1e-4;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        power = multiply_add(power, rest, term);
    }
    let power = multiply_add(power * rest, rest, rest) + 1.0;
    power * f32::from_bits(((whole as i32 + 127) << 23).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_the_librarys() {
        for step in 0..2000 {
            let x = -(step as f32) * 0.02;
            assert!((exp(x) / libm::expf(x) - 1.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn shares_add_up_and_padding_has_none() {
        let mut scores = [1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0];
        let total = softmax(&mut scores, 3);
        assert!((total - (1.0 + libm::expf(-1.0) + libm::expf(-2.0))).abs() < 1e-6);
        assert!(scores[3..].iter().all(|&score| score == 0.0));
    }
}
