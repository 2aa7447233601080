//! Small dense layers, fast on one core.
//!
//! Every output is a sum over the inputs in their order, whatever the vector width: the same numbers on every machine that
//! has fused multiply-add (without it they differ in the last bit).

use wide::f32x16;

/// Outputs that are summed at a time; a layer's outputs are padded to a multiple of it. One vector where the machine has
/// AVX-512, else two or four.
pub(super) const LANES: usize = 16;

/// Rows that are summed at a time: as many as there are vector registers to hold their sums, and enough that no addition
/// waits for the one before.
const ROWS: usize = if cfg!(target_feature = "avx512f") { 12 } else { 6 };

/// Rows that are summed at a time of what [`ROWS`] leaves over.
const FEW_ROWS: usize = 4;

/// `x W + b`, with the outputs in blocks of [`LANES`]: block, input, lane.
#[derive(Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    weights: Vec<f32x16>,
    bias: Vec<f32x16>,
}

/// The first [`LANES`] values.
#[inline(always)]
pub(super) fn vector(values: &[f32]) -> f32x16 {
    f32x16::new(std::array::from_fn(|lane| values[lane]))
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

    /// Gives `write` the outputs of each row of `x`, in blocks: row, first output, values.
    #[inline]
    pub(super) fn run(&self, x: &[f32], mut write: impl FnMut(usize, usize, &[f32])) {
        for (rows, part) in x.chunks(ROWS * self.inputs).enumerate() {
            let first = rows * ROWS;
            if part.len() == ROWS * self.inputs {
                self.rows::<ROWS>(part, first, &mut write);
                continue;
            }
            let few = part.chunks_exact(FEW_ROWS * self.inputs);
            let rest = few.remainder();
            let left = first + (part.len() - rest.len()) / self.inputs;
            few.enumerate().for_each(|(few, x)| self.rows::<FEW_ROWS>(x, first + few * FEW_ROWS, &mut write));
            rest.chunks(self.inputs)
                .enumerate()
                .for_each(|(row, x)| self.rows::<1>(x, left + row, &mut write));
        }
    }

    #[inline]
    fn rows<const N: usize>(&self, x: &[f32], first: usize, write: &mut impl FnMut(usize, usize, &[f32])) {
        let mut inputs = [&x[..self.inputs]; N];
        for (row, input) in inputs.iter_mut().enumerate() {
            *input = &x[row * self.inputs..(row + 1) * self.inputs];
        }
        for (block, (weights, bias)) in self.weights.chunks_exact(self.inputs).zip(&self.bias).enumerate() {
            let mut sums = [*bias; N];
            for (index, &lanes) in weights.iter().enumerate() {
                for row in 0..N {
                    sums[row] = f32x16::splat(inputs[row][index]).mul_add(lanes, sums[row]);
                }
            }
            let from = block * LANES;
            let kept = LANES.min(self.outputs - from);
            for (row, sums) in sums.iter().enumerate() {
                write(first + row, from, &sums.as_array()[..kept]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_plain_sum_whatever_the_number_of_rows() {
        let (inputs, outputs) = (5, 35);
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
        let (weights, bias) = (numbers(inputs * outputs), numbers(outputs));
        let layer = Linear::new(&weights, &bias);
        for rows in [0, 1, 3, 4, 5, 7, 8, 13, 19, 27] {
            let x = numbers(rows * inputs);
            let mut out = vec![f32::NAN; rows * outputs];
            layer.run(&x, |row, from, values| {
                out[row * outputs + from..][..values.len()].copy_from_slice(values);
            });
            for (row, out) in out.chunks(outputs).enumerate() {
                for (output, &value) in out.iter().enumerate() {
                    let sum = |i: usize| x[row * inputs + i] * weights[i * outputs + output];
                    let expected = bias[output] + (0..inputs).map(sum).sum::<f32>();
                    assert!((value - expected).abs() < 1e-5, "{rows} rows, {row} {output}");
                }
            }
        }
    }
}
