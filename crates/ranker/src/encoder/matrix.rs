//! Small dense layers, fast on one core.
//!
//! Every output is a sum over the inputs in their order, whatever the vector width: the same numbers on every machine that
//! has fused multiply-add (without it they differ in the last bit).

use wide::f32x8;

/// Outputs that are summed at a time; a layer's outputs are padded to a multiple of it.
pub(super) const LANES: usize = 16;

/// Rows that are summed at a time: with [`LANES`] outputs each, as many sums as there are vector registers to hold them.
const ROWS: usize = 6;

/// `x W + b`, with the outputs in blocks of [`LANES`]: block, input, lane.
#[derive(Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    weights: Vec<[f32x8; 2]>,
    bias: Vec<[f32x8; 2]>,
}

/// Two vectors of the first [`LANES`] values.
#[inline(always)]
pub(super) fn two(values: &[f32]) -> [f32x8; 2] {
    let vector = |from: usize| f32x8::new(std::array::from_fn(|lane| values[from + lane]));
    [vector(0), vector(LANES / 2)]
}

/// The values of two vectors.
#[inline(always)]
pub(super) fn lanes(vectors: &[f32x8; 2]) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    values[..LANES / 2].copy_from_slice(&vectors[0].to_array());
    values[LANES / 2..].copy_from_slice(&vectors[1].to_array());
    values
}

impl Linear {
    /// Weights with an input a row.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        let pad = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            two(&lanes)
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
            match part.len() / self.inputs {
                ROWS => self.rows::<ROWS>(part, first, &mut write),
                4.. => {
                    let (four, rest) = part.split_at(4 * self.inputs);
                    self.rows::<4>(four, first, &mut write);
                    rest.chunks(self.inputs)
                        .enumerate()
                        .for_each(|(row, x)| self.rows::<1>(x, first + 4 + row, &mut write));
                }
                _ => part
                    .chunks(self.inputs)
                    .enumerate()
                    .for_each(|(row, x)| self.rows::<1>(x, first + row, &mut write)),
            }
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
            for (index, lanes) in weights.iter().enumerate() {
                for row in 0..N {
                    let value = f32x8::splat(inputs[row][index]);
                    sums[row][0] = value.mul_add(lanes[0], sums[row][0]);
                    sums[row][1] = value.mul_add(lanes[1], sums[row][1]);
                }
            }
            let from = block * LANES;
            let kept = LANES.min(self.outputs - from);
            for (row, sums) in sums.iter().enumerate() {
                write(first + row, from, &lanes(sums)[..kept]);
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
        for rows in [0, 1, 3, 4, 5, 7, 8, 19] {
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
