//! Dense layers in whole numbers ([`super::whole`]): each place has a scale, from its largest input, each output one from its largest
//! weight.

use wide::{f32x16, i32x16};

use super::matrix::{LANES, ZEROS, transpose};
use super::whole::{BIAS, PACKED, Packed, Whole, add_products, pack_weights, sums_of, weights_of};

/// Places up to which they go through a layer one by one: with more, lanes that hold no place cost less than to turn the outputs round.
const FEW: usize = 12;

/// Blocks of outputs that a single place goes through at a time: no addition waits for the one before.
const BLOCKS_OF_ONE: usize = 8;

/// `x W + b`, with the outputs in blocks of [`LANES`].
#[derive(Debug)]
pub(super) struct Linear {
    outputs: usize,
    /// Rows of a block.
    rows: usize,
    /// Block, [`PACKED`] inputs, lane.
    weights: Vec<Packed>,
    /// What sums are too large by, in blocks.
    excess: Vec<i32x16>,
    /// What one is worth, in blocks.
    units: Vec<f32x16>,
    bias: Vec<f32x16>,
}

impl Linear {
    /// Weights with an input a row.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        let (units, integers): (Vec<f32>, Vec<Vec<i32>>) = (0..outputs)
            .map(|output| weights_of(weights.iter().skip(output).step_by(outputs).copied()))
            .unzip();
        let floats = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            f32x16::new(lanes)
        };
        let excess = |integers: &[Vec<i32>]| {
            let of = |lane| {
                integers.get(lane).map_or(0, |integers: &Vec<i32>| BIAS * integers.iter().sum::<i32>())
            };
            i32x16::new(std::array::from_fn(of))
        };
        Self {
            outputs,
            rows: inputs.div_ceil(PACKED),
            weights: integers
                .chunks(LANES)
                .flat_map(|block| (0..inputs).step_by(PACKED).map(|input| pack_weights(block, input)))
                .collect(),
            excess: integers.chunks(LANES).map(excess).collect(),
            units: units.chunks(LANES).map(floats).collect(),
            bias: bias.chunks(LANES).map(floats).collect(),
        }
    }

    /// Outputs a row, without the padding.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    fn block(&self, block: usize) -> &[Packed] {
        &self.weights[block * self.rows..(block + 1) * self.rows]
    }

    /// Changes the rows of `out` by the outputs of a block for the first places of `x`, all if there are more: an output a row.
    #[inline(never)]
    pub(super) fn columns(
        &self,
        block: usize,
        x: &Whole,
        places: usize,
        out: &mut [f32x16],
        change: impl Fn(f32x16, f32x16) -> f32x16,
    ) {
        if places <= FEW {
            let mut tile = ZEROS;
            self.rows(block, x, places, &mut tile);
            let columns = transpose(&tile);
            return out.iter_mut().zip(columns).for_each(|(out, values)| *out = change(*out, values));
        }
        let excess = self.excess[block].as_array();
        let (units, bias) = (self.units[block].as_array(), self.bias[block].as_array());
        let add = |weights, inputs, sums| add_products(inputs, weights, sums);
        sums_of(self.block(block), LANES, &x.rows, add, |first, sums| {
            let of = excess[first..].iter().zip(units[first..].iter().zip(&bias[first..]));
            for ((out, &sum), (&excess, (&unit, &bias))) in out[first..].iter_mut().zip(sums).zip(of) {
                let sum = f32x16::from_i32x16(sum - i32x16::splat(excess)) * x.unit;
                *out = change(*out, sum.mul_add(f32x16::splat(unit), f32x16::splat(bias)));
            }
        });
    }

    /// Writes the same to `out`, a place a row.
    #[inline(never)]
    pub(super) fn rows(&self, block: usize, x: &Whole, places: usize, out: &mut [f32x16]) {
        let (excess, units, bias) = (self.excess[block], self.units[block], self.bias[block]);
        sums_of(&x.rows, places.min(LANES), self.block(block), add_products, |first, sums| {
            for ((out, &sum), &unit) in out[first..].iter_mut().zip(sums).zip(&x.unit.as_array()[first..]) {
                let sum = f32x16::from_i32x16(sum - excess) * f32x16::splat(unit);
                *out = sum.mul_add(units, bias);
            }
        });
    }

    /// The same as [`Self::columns`], of all blocks.
    #[inline(always)]
    pub(super) fn run(
        &self,
        x: &Whole,
        places: usize,
        out: &mut [f32x16],
        change: impl Fn(f32x16, f32x16) -> f32x16,
    ) {
        for (block, out) in out.chunks_exact_mut(LANES).enumerate() {
            self.columns(block, x, places, out, &change);
        }
    }

    /// The outputs of one place, in blocks. `x` has it alone ([`Whole::take_one`]).
    #[inline(never)]
    pub(super) fn one(&self, x: &Whole, out: &mut Vec<f32x16>) {
        out.clear();
        for first in (0..self.bias.len()).step_by(BLOCKS_OF_ONE) {
            // Of blocks that are not there, the last is taken, and nobody looks.
            let weights: [&[Packed]; BLOCKS_OF_ONE] = std::array::from_fn(|step| {
                &self.block((first + step).min(self.bias.len() - 1))[..x.rows.len()]
            });
            let mut sums = [i32x16::ZERO; BLOCKS_OF_ONE];
            for (row, &x) in x.rows.iter().enumerate() {
                for step in 0..BLOCKS_OF_ONE {
                    sums[step] = add_products(x, weights[step][row], sums[step]);
                }
            }
            let of = self.excess[first..].iter().zip(self.units[first..].iter().zip(&self.bias[first..]));
            out.extend(sums.into_iter().zip(of).map(|(sum, (&excess, (&units, &bias)))| {
                (f32x16::from_i32x16(sum - excess) * x.unit).mul_add(units, bias)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::matrix::{Tile, vector};

    const LARGEST: f32 = 127.0;

    fn taken(x: &[f32x16]) -> Whole {
        let mut whole = Whole::default();
        whole.take(x);
        whole
    }

    fn rows(layer: &Linear, block: usize, x: &Whole) -> Tile {
        let mut tile = ZEROS;
        layer.rows(block, x, LANES, &mut tile);
        tile
    }

    fn one(layer: &Linear, x: &[f32]) -> Vec<f32> {
        let (mut whole, mut out) = (Whole::default(), Vec::new());
        whole.take_one(x);
        layer.one(&whole, &mut out);
        out.iter().flat_map(|values| values.to_array()).take(layer.outputs()).collect()
    }

    fn largest(values: impl Iterator<Item = f32>) -> f32 {
        values.fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()))
    }

    fn integers(values: &[f32]) -> Vec<i64> {
        let largest = largest(values.iter().copied());
        values.iter().map(|value| (value * (LARGEST / largest)).round_ties_even() as i64).collect()
    }

    /// An output as the definition has it: integers of the inputs times those of the weights, times what they are worth.
    fn defined(x: &[f32], weights: &[f32], bias: f32) -> f32 {
        let unit = |values: &[f32]| largest(values.iter().copied()) / LARGEST;
        let sum: i64 = integers(x).iter().zip(integers(weights)).map(|(x, weight)| x * weight).sum();
        (sum as f32 * unit(x)).mul_add(unit(weights), bias)
    }

    /// Both kernels give these numbers, so all machines do.
    #[test]
    fn outputs_are_as_defined_whichever_way_a_layer_is_run() {
        for (inputs, outputs) in [(4, 35), (64, 192), (128, 9 * LANES + 1)] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
            let (weights, bias) = (numbers(inputs * outputs), numbers(outputs));
            let layer = Linear::new(&weights, &bias);
            let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
            let all = taken(&x);
            let blocks = outputs.div_ceil(LANES);
            let tiles: Vec<Tile> = (0..blocks).map(|block| rows(&layer, block, &all)).collect();
            let mut columns = vec![f32x16::ZERO; blocks * LANES];
            layer.run(&all, LANES, &mut columns, |_, value| value);
            let mut changed = vec![f32x16::ONE; blocks * LANES];
            layer.run(&all, LANES, &mut changed, |was, value| was - value);
            let all_rows = |place: usize| tiles.iter().flat_map(move |tile| tile[place].to_array());
            for place in 0..LANES {
                let of_rows: Vec<f32> = all_rows(place).collect();
                let x: Vec<f32> = x.iter().map(|lanes| lanes.as_array()[place]).collect();
                let alone = one(&layer, &x);
                for output in 0..outputs {
                    let weights: Vec<f32> = weights.iter().skip(output).step_by(outputs).copied().collect();
                    let expected = defined(&x, &weights, bias[output]);
                    let column = columns[output].as_array()[place];
                    assert_eq!([of_rows[output], column, alone[output]], [expected; 3], "{place} {output}");
                    assert_eq!(changed[output].as_array()[place], 1.0 - expected);
                }
            }
        }
    }

    #[test]
    fn few_places_get_the_very_numbers_of_many() {
        let (inputs, outputs) = (8, 6 * LANES);
        let mut random = fastrand::Rng::with_seed(2);
        let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
        let layer = Linear::new(&numbers(inputs * outputs), &numbers(outputs));
        let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
        let all = taken(&x);
        for block in 0..6 {
            let of_all = rows(&layer, block, &all);
            for places in 1..=2 * LANES {
                let mut columns = ZEROS;
                layer.columns(block, &all, places, &mut columns, |_, values| values);
                for (row, expected) in transpose(&columns).iter().zip(&of_all).take(places) {
                    assert_eq!(row.as_array(), expected.as_array(), "{places} {block}");
                }
            }
        }
    }

    /// Half a unit of the inputs and half a one of the weights, at worst everywhere. Inputs that are all as large as can be, with
    /// the signs of the weights, are among them: no sum overflows.
    #[test]
    fn outputs_are_those_of_floats_but_for_what_rounding_costs() {
        let mut random = fastrand::Rng::with_seed(3);
        for inputs in [1, 2, 3, 5, 64, 1023] {
            for spread in [0, 1, 9] {
                let mut number = || (random.f32() - 0.5).powi(2 * spread + 1) * 1e3;
                let weights: Vec<f32> = (0..inputs).map(|_| number()).collect();
                let layer = Linear::new(&weights, &[0.5]);
                let any: Vec<f32> = (0..inputs).map(|_| number()).collect();
                let worst: Vec<f32> = weights.iter().map(|weight| 7.0_f32.copysign(*weight)).collect();
                for x in [any, worst] {
                    let terms = weights.iter().zip(&x).map(|(weight, x)| f64::from(*weight) * f64::from(*x));
                    let (value, expected) = (f64::from(one(&layer, &x)[0]), terms.sum::<f64>() + 0.5);
                    let sizes = largest(x.iter().copied()) * largest(weights.iter().copied());
                    let bound = f64::from(sizes) * f64::from(inputs) * 1.01 / f64::from(LARGEST) + 1e-3;
                    assert!((value - expected).abs() < bound, "{inputs} {spread}: {value} {expected}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_and_largest_floats_give_numbers() {
        let layer = Linear::new(&[0.0, 1.0, 0.0, -1.0, 0.0, 2.0, 0.0, -2.0], &[0.25, 0.0]);
        for x in [0.0, 1e-45, f32::MIN_POSITIVE, 1e30] {
            for row in rows(&layer, 0, &taken(&[f32x16::splat(x); 4])) {
                assert_eq!(row.as_array()[..2], [0.25, 0.0]);
            }
            assert_eq!(one(&layer, &[x; 4]), [0.25, 0.0]);
        }
    }
}
