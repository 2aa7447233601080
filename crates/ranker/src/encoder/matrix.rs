//! Small dense layers, fast on one core.
//!
//! Sixteen places of a text go through a layer together, one in each lane of a vector. Every sum runs over its terms in
//! their order, whatever the vector width: the same numbers on every machine that has fused multiply-add (without it they
//! differ in the last bit).

use wide::f32x16;

/// Numbers in a vector: one register where the machine has AVX-512, else two or four.
pub(super) const LANES: usize = 16;

/// Sums that are kept in registers at a time: enough that no addition waits for the one before.
const SUMS: usize = if cfg!(target_feature = "avx512f") { 16 } else { 4 };

/// Sums of one vector that are made at a time.
const STEPS: usize = 4;

/// A square matrix of as many rows as there are lanes.
pub(super) type Tile = [f32x16; LANES];

pub(super) const ZEROS: Tile = [f32x16::ZERO; LANES];

/// Adds `aᵀ b` to `out`: a row of either is a term of the sums. A function of its own, so that the registers hold nothing
/// but these sums.
#[inline(never)]
pub(super) fn add_product(a: &[f32x16], b: &[f32x16], out: &mut Tile) {
    for (part, out) in out.chunks_exact_mut(SUMS).enumerate() {
        let mut sums: [f32x16; SUMS] = std::array::from_fn(|index| out[index]);
        for (a, b) in a.iter().zip(b) {
            let a = &a.as_array()[part * SUMS..(part + 1) * SUMS];
            for index in 0..SUMS {
                sums[index] = f32x16::splat(a[index]).mul_add(*b, sums[index]);
            }
        }
        out.copy_from_slice(&sums);
    }
}

/// `aᵀ b`.
#[inline(always)]
pub(super) fn product(a: &[f32x16], b: &[f32x16]) -> Tile {
    let mut out = ZEROS;
    add_product(a, b, &mut out);
    out
}

/// The first [`LANES`] values.
#[inline(always)]
pub(super) fn vector(values: &[f32]) -> f32x16 {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[..LANES]);
    f32x16::new(lanes)
}

/// The vectors of `values` under `of`, folded lane by lane: [`STEPS`] folds at a time, none of which waits for another.
#[inline(always)]
pub(super) fn fold(
    values: &[f32x16],
    start: f32x16,
    of: impl Fn(f32x16, f32x16) -> f32x16,
    join: impl Fn(f32x16, f32x16) -> f32x16,
) -> f32x16 {
    let mut folds = [start; STEPS];
    let parts = values.chunks_exact(STEPS);
    for (fold, &value) in folds.iter_mut().zip(parts.remainder()) {
        *fold = of(*fold, value);
    }
    for part in parts {
        folds.iter_mut().zip(part).for_each(|(fold, &value)| *fold = of(*fold, value));
    }
    folds.into_iter().fold(start, join)
}

/// `x W + b`, with the outputs in blocks of [`LANES`]: block, input, lane.
#[derive(Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    weights: Vec<f32x16>,
    bias: Vec<f32x16>,
}

impl Linear {
    /// Weights with an input a row.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        let pad = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            f32x16::new(lanes)
        };
        let blocks = || (0..outputs).step_by(LANES).map(|from| from..outputs.min(from + LANES));
        Self {
            inputs,
            outputs,
            weights: blocks()
                .flat_map(|block| (0..inputs).map(move |input| (input, block.clone())))
                .map(|(input, block)| {
                    pad(&weights[input * outputs + block.start..input * outputs + block.end])
                })
                .collect(),
            bias: blocks().map(|block| pad(&bias[block])).collect(),
        }
    }

    /// Outputs a row, without the padding.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    fn block(&self, block: usize) -> &[f32x16] {
        &self.weights[block * self.inputs..(block + 1) * self.inputs]
    }

    /// The outputs of a block of [`LANES`] places, an output a row. `x` has an input a row.
    #[inline(always)]
    pub(super) fn columns(&self, block: usize, x: &[f32x16]) -> Tile {
        let mut out = self.bias[block].as_array().map(f32x16::splat);
        add_product(self.block(block), x, &mut out);
        out
    }

    /// The same, a place a row.
    #[inline(always)]
    pub(super) fn rows(&self, block: usize, x: &[f32x16]) -> Tile {
        let mut out = [self.bias[block]; LANES];
        add_product(x, self.block(block), &mut out);
        out
    }

    /// Changes each row of `out` by the output that it stands for.
    #[inline(always)]
    pub(super) fn run(&self, x: &[f32x16], out: &mut [f32x16], change: impl Fn(f32x16, f32x16) -> f32x16) {
        for (block, out) in out.chunks_exact_mut(LANES).enumerate() {
            let values = self.columns(block, x);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = change(*out, value));
        }
    }

    /// The outputs of one place, in blocks.
    pub(super) fn one(&self, x: &[f32]) -> impl Iterator<Item = f32x16> {
        (0..self.bias.len()).step_by(STEPS).flat_map(move |first| {
            let weights: [&[f32x16]; STEPS] =
                std::array::from_fn(|step| self.block((first + step).min(self.bias.len() - 1)));
            let mut sums = [f32x16::ZERO; STEPS];
            for (input, &x) in x.iter().enumerate() {
                for step in 0..STEPS {
                    sums[step] = f32x16::splat(x).mul_add(weights[step][input], sums[step]);
                }
            }
            sums.into_iter().zip(&self.bias[first..]).map(|(sum, &bias)| sum + bias)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_plain_sum_whichever_way_it_is_run() {
        let (inputs, outputs) = (5, 35);
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
        let (weights, bias) = (numbers(inputs * outputs), numbers(outputs));
        let layer = Linear::new(&weights, &bias);
        let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
        let mut changed = vec![f32x16::ONE; 3 * LANES];
        layer.run(&x, &mut changed, |was, value| was - value);
        for row in 0..LANES {
            let place: Vec<f32> = x.iter().map(|lanes| lanes.as_array()[row]).collect();
            let one: Vec<f32x16> = layer.one(&place).collect();
            for output in 0..outputs {
                let sum = |i: usize| place[i] * weights[i * outputs + output];
                let expected = bias[output] + (0..inputs).map(sum).sum::<f32>();
                let (block, lane) = (output / LANES, output % LANES);
                for value in [
                    layer.columns(block, &x)[lane].as_array()[row],
                    layer.rows(block, &x)[row].as_array()[lane],
                    1.0 - changed[output].as_array()[row],
                    one[block].as_array()[lane],
                ] {
                    assert!((value - expected).abs() < 1e-5, "{row} {output}: {value} {expected}");
                }
            }
        }
    }
}
