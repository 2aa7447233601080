//! The transformer: pieces in, a guess out.
//!
//! Places go in blocks of [`LANES`], a lane each; a block of a matrix has a row a column of it. The lanes that the last
//! block has too many hold numbers that nothing reads.

use super::file::{Layer, Mixing, Norm, TAPS, Weights};
use super::linear::Linear;
use super::matrix::{LANES, ZEROS, fold, product, transpose, vector};
use super::whole::Whole;

use wide::{f32x16, i32x16};

/// Width of an attention head.
const HEAD: usize = LANES;
/// One over the root of it.
const HEAD_SCALE: f32 = 0.25;
/// Under the root of a layer norm's variance.
const EPSILON: f32 = 1e-5;

/// Room for one prompt.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Vec<f32x16>,
    normed: Vec<f32x16>,
    whole: Whole,
    inner: Vec<f32x16>,
    parts: Vec<f32x16>,
    mixed: Vec<f32x16>,
    scores: Vec<f32x16>,
    lines: Vec<f32>,
    pooled: Vec<f32>,
    outputs: Vec<f32x16>,
}

/// Runs the network on at least one piece, and at most as many as it has places for.
pub(super) fn run(weights: &Weights, pieces: &[u16], scratch: &mut Scratch) -> f32 {
    embed(weights, pieces, &mut scratch.x);
    for layer in &weights.layers {
        match &layer.mixing {
            Mixing::Neighbours { taps } => convolve(&layer.mixing_norm, taps, pieces.len(), scratch),
            Mixing::Attention { queries_keys_values, out } => {
                attend(&layer.mixing_norm, queries_keys_values, out, pieces.len(), scratch);
            }
        }
        feed_forward(layer, pieces.len(), scratch);
    }
    pool(weights, pieces.len(), scratch)
}

/// Of each place what its piece is, and where it stands.
fn embed(weights: &Weights, pieces: &[u16], x: &mut Vec<f32x16>) {
    let width = weights.width;
    x.clear();
    for (pieces, places) in pieces.chunks(LANES).zip(weights.places.chunks_exact(LANES * width)) {
        for from in (0..width).step_by(LANES) {
            let mut tile = ZEROS;
            for (row, (to, &piece)) in tile.iter_mut().zip(pieces).enumerate() {
                let piece = usize::from(piece);
                let embedding = &weights.embeddings[piece * width + from..][..LANES];
                let embedding = f32x16::new(std::array::from_fn(|lane| f32::from(embedding[lane])));
                let place = vector(&places[row * width + from..]);
                *to = embedding.mul_add(f32x16::splat(weights.scales[piece]), place);
            }
            x.extend(transpose(&tile));
        }
    }
}

/// Normed rows of one or more blocks.
fn norm(norm: &Norm, x: &[f32x16], out: &mut Vec<f32x16>) {
    let add = |a, b| a + b;
    out.clear();
    for block in x.chunks_exact(norm.scale.len()) {
        let share = f32x16::splat(1.0 / norm.scale.len() as f32);
        let mean = fold(block, f32x16::ZERO, add, add) * share;
        let squares = fold(block, f32x16::ZERO, |sum, x| (x - mean).mul_add(x - mean, sum), add);
        let scale = f32x16::ONE / squares.mul_add(share, f32x16::splat(EPSILON)).sqrt();
        let rows = block.iter().zip(norm.scale.iter().zip(&norm.shift));
        out.extend(rows.map(|(&x, (&by, &shift))| {
            ((x - mean) * scale).mul_add(f32x16::splat(by), f32x16::splat(shift))
        }));
    }
}

/// All bits of the first `places` lanes.
fn mask(places: usize) -> f32x16 {
    f32x16::new(std::array::from_fn(|lane| f32::from_bits(if lane < places { u32::MAX } else { 0 })))
}

/// What each place takes of its neighbours.
fn convolve(norm_of: &Norm, taps: &[[f32; TAPS]], places: usize, scratch: &mut Scratch) {
    let Scratch { x, normed, lines, .. } = scratch;
    norm(norm_of, x, normed);
    // A line for each row: the places one after another, nothing before and after them.
    let width = taps.len();
    let length = x.len() / width * LANES + TAPS - 1;
    lines.resize(width * length, 0.0);
    for line in lines.chunks_exact_mut(length) {
        line[..TAPS / 2].fill(0.0);
        line[length - TAPS / 2..].fill(0.0);
    }
    for (block, normed) in normed.chunks_exact(width).enumerate() {
        let first = block * LANES;
        let is_place = mask(places - first);
        for (line, lanes) in lines.chunks_exact_mut(length).zip(normed) {
            line[TAPS / 2 + first..][..LANES].copy_from_slice((*lanes & is_place).as_array());
        }
    }
    for (block, x) in x.chunks_exact_mut(width).enumerate() {
        for (x, (line, taps)) in x.iter_mut().zip(lines.chunks_exact(length).zip(taps)) {
            let around = &line[block * LANES..][..LANES + TAPS - 1];
            let taps = taps.iter().enumerate();
            *x = taps.fold(*x, |sum, (tap, &by)| f32x16::splat(by).mul_add(vector(&around[tap..]), sum));
        }
    }
}

/// What each place takes of all others, by scaled dot-product attention.
fn attend(norm_of: &Norm, queries_keys_values: &Linear, out: &Linear, places: usize, scratch: &mut Scratch) {
    let Scratch { x, normed, whole, parts, mixed, scores, .. } = scratch;
    let width = norm_of.scale.len();
    let (heads, blocks) = (width / HEAD, x.len() / width);
    // Queries and keys have a row an index and a lane a place, values the other way round.
    parts.resize(parts.len().max(3 * x.len()), f32x16::ZERO);
    for (block, x) in x.chunks_exact(width).enumerate() {
        norm(norm_of, x, normed);
        whole.take(normed);
        let here = places - block * LANES;
        for (part, to) in parts.chunks_exact_mut(blocks * HEAD).take(3 * heads).enumerate() {
            let to = &mut to[block * HEAD..][..HEAD];
            if part < 2 * heads {
                queries_keys_values.columns(part, whole, here, to, |_, values| values);
            } else {
                queries_keys_values.rows(part, whole, here, to);
            }
        }
    }
    let part = |which: usize, head: usize| &parts[(which * heads + head) * blocks * HEAD..][..blocks * HEAD];
    for (block, x) in x.chunks_exact_mut(width).enumerate() {
        mixed.clear();
        for head in 0..heads {
            let queries = &part(0, head)[block * HEAD..][..HEAD];
            scores.clear();
            for keys in part(1, head).chunks_exact(HEAD) {
                scores.extend(product(keys, queries).map(|score| score * HEAD_SCALE));
            }
            scores.truncate(places);
            let share = f32x16::ONE / softmax(scores);
            mixed.extend(product(part(2, head), scores).map(|value| value * share));
        }
        whole.take(mixed);
        out.run(whole, places - block * LANES, x, |x, value| x + value);
    }
}

fn feed_forward(layer: &Layer, places: usize, scratch: &mut Scratch) {
    let Scratch { x, normed, whole, inner, .. } = scratch;
    inner.resize(layer.up.outputs(), f32x16::ZERO);
    for (block, x) in x.chunks_exact_mut(layer.inner_norm.scale.len()).enumerate() {
        norm(&layer.inner_norm, x, normed);
        let here = places - block * LANES;
        whole.take(normed);
        layer.up.run(whole, here, inner, |_, value| value.fast_max(f32x16::ZERO));
        whole.take(inner);
        layer.down.run(whole, here, x, |x, value| x + value);
    }
}

/// Mean, largest and attended sums of all places, and how many there are; then two layers.
fn pool(weights: &Weights, places: usize, scratch: &mut Scratch) -> f32 {
    let Scratch { x, normed, whole, parts, scores, pooled, outputs, .. } = scratch;
    let (width, heads) = (weights.width, weights.attention.outputs());
    let blocks = x.len() / width;
    // From here on a row a place: of the scores, and of each part of LANES of the width.
    scores.clear();
    parts.resize(parts.len().max(x.len()), f32x16::ZERO);
    for (block, x) in x.chunks_exact(width).enumerate() {
        norm(&weights.norm, x, normed);
        whole.take(normed);
        let mut tile = ZEROS;
        weights.attention.rows(0, whole, LANES, &mut tile);
        scores.extend(tile);
        for (part, rows) in normed.chunks_exact(LANES).enumerate() {
            let mut tile = ZEROS;
            tile.copy_from_slice(rows);
            parts[(part * blocks + block) * LANES..][..LANES].copy_from_slice(&transpose(&tile));
        }
    }
    scores.truncate(places);
    let share = f32x16::ONE / softmax(scores);
    scores.iter_mut().for_each(|score| *score *= share);
    pooled.resize((2 + heads) * width + 1, 0.0);
    for (part, rows) in parts[..x.len()].chunks_exact(blocks * LANES).enumerate() {
        let rows = &rows[..places];
        let add = |a, b| a + b;
        let mean = fold(rows, f32x16::ZERO, add, add) / places as f32;
        let largest = fold(rows, f32x16::splat(f32::MIN), f32x16::fast_max, f32x16::fast_max);
        let attended = product(scores, rows);
        for (sum, values) in [mean, largest].iter().chain(&attended[..heads]).enumerate() {
            pooled[sum * width + part * LANES..][..LANES].copy_from_slice(values.as_array());
        }
    }
    pooled[(2 + heads) * width] = libm::log1pf(places as f32);
    whole.take_one(pooled);
    weights.hidden.one(whole, outputs);
    let inner = outputs.iter().flat_map(|values| values.fast_max(f32x16::ZERO).to_array());
    inner.zip(&weights.output).fold(weights.output_bias, |sum, (value, weight)| sum + value * weight)
}

/// Exponentials of scores over the largest of them, lane by lane, in place; returns their sums.
fn softmax(scores: &mut [f32x16]) -> f32x16 {
    let largest = fold(scores, f32x16::splat(f32::MIN), f32x16::fast_max, f32x16::fast_max);
    let mut sum = f32x16::ZERO;
    for score in scores {
        *score = exp(*score - largest);
        sum += *score;
    }
    sum
}

/// e^x for x at most 0, to a few units in the last place, by Cephes' polynomial. Below -30 it stays at e^-30: nothing that
/// counts, and no slow tiny numbers.
#[inline(always)]
fn exp(x: f32x16) -> f32x16 {
    let x = x.fast_max(f32x16::splat(-30.0));
    let whole = (x * f32x16::LOG2_E).round_ties_even();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_every_lane_has_its_own() {
        let mut scores = [1.0, 3.0, 2.0].map(f32x16::splat);
        scores[1].as_mut_array()[7] = -9.0;
        let sums = softmax(&mut scores);
        let total = 1.0 + libm::expf(-1.0) + libm::expf(-2.0);
        assert!((sums.as_array()[0] - total).abs() < 1e-5, "{sums}");
        let total = 1.0 + libm::expf(-1.0) + libm::expf(-11.0);
        assert!((sums.as_array()[7] - total).abs() < 1e-5, "{sums}");
        assert!((scores[1].as_array()[7] - libm::expf(-11.0)).abs() < 1e-8);
    }
}
