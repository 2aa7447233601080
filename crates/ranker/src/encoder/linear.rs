//! Dense layers in whole numbers.
//!
//! Inputs and weights are 16-bit integers, two in each lane of a vector: machines multiply and sum twice as many of them at a time as
//! of floats (`vpmaddwd`, or `vpdpwssd` where there is AVX-512 VNNI). Sums are of 32 bits and exact, so they are the same on every
//! machine, and in whichever order they are made. Places have a scale each, from their largest input; outputs have one from their
//! weights, as fine as the sums allow: nothing overflows whatever the inputs are, and an output is off by about a ten thousandth of its
//! inputs' size.

use bytemuck::cast;
use wide::{f32x16, i16x32, i32x16};

use super::matrix::{LANES, SUMS, ZEROS, fold, transpose};

/// Places up to which they go through a layer one by one: with more, lanes that hold no place cost less than to turn the outputs round.
const FEW: usize = 12;

/// Blocks of outputs that a single place goes through at a time: no addition waits for the one before.
const BLOCKS_OF_ONE: usize = 8;

/// The largest integer of an input, and of a weight.
const LARGEST_INPUT: f32 = 8191.0;
const LARGEST_WEIGHT: f32 = i16::MAX as f32;
/// What the integers of an output's weights may add up to: sums of products stay below 2^31.
const LARGEST_SUM: f32 = 262_176.0;

/// Two 16-bit integers a lane.
type Pairs = i32x16;

fn pair(first: i32, second: i32) -> i32 {
    (second << 16) | (first & 0xffff)
}

/// A block of places in whole numbers: a row two inputs, a lane a place.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pairs: Vec<Pairs>,
    /// What one is worth, place by place.
    unit: f32x16,
}

impl Whole {
    /// Takes a block with an input a row, of which there must be an even number.
    pub(super) fn take(&mut self, x: &[f32x16]) {
        let largest = fold(x, f32x16::ZERO, |largest, x| largest.fast_max(x.abs()), f32x16::fast_max);
        // Nothing but zeros has any unit.
        let largest = largest.fast_max(f32x16::splat(f32::MIN_POSITIVE));
        self.unit = largest / f32x16::splat(LARGEST_INPUT);
        let per_unit = f32x16::splat(LARGEST_INPUT) / largest;
        self.pairs.clear();
        self.pairs.extend(x.chunks_exact(2).map(|two| {
            let [first, second] = [two[0], two[1]].map(|x| (x * per_unit).fast_round_int());
            (second << 16_i32) | (first & i32x16::splat(0xffff))
        }));
    }
}

/// Adds the products of the pairs in two vectors to sums.
#[inline(always)]
fn add_products(a: Pairs, b: Pairs, sums: i32x16) -> i32x16 {
    sums + cast::<Pairs, i16x32>(a).dot(cast(b))
}

/// Sums of the products of `P` lanes of `a`, from `first` on, with those of `b`: a row of either is two terms of them. A function of its
/// own, so that the registers hold nothing but these sums.
#[inline(never)]
fn sum_products<const P: usize>(a: &[Pairs], first: usize, b: &[Pairs]) -> [i32x16; P] {
    let mut sums = [i32x16::ZERO; P];
    for (a, &b) in a.iter().zip(b) {
        let a = &a.as_array()[first..first + P];
        for index in 0..P {
            sums[index] = add_products(i32x16::splat(a[index]), b, sums[index]);
        }
    }
    sums
}

/// Tells the sums of the products of the first lanes of `a`, and maybe of some lanes more, with those of `b`: from which lane on, and
/// some at a time.
#[inline(always)]
fn sums_of(a: &[Pairs], lanes: usize, b: &[Pairs], mut tell: impl FnMut(usize, &[i32x16])) {
    let mut first = 0;
    while first < lanes {
        // As many at a time as there are registers for.
        match lanes - first {
            13.. if SUMS >= 16 => {
                tell(first, &sum_products::<16>(a, first, b));
                first += 16;
            }
            5.. if SUMS >= 8 => {
                tell(first, &sum_products::<8>(a, first, b));
                first += 8;
            }
            _ => {
                tell(first, &sum_products::<4>(a, first, b));
                first += 4;
            }
        }
    }
}

/// `x W + b`, with the outputs in blocks of [`LANES`].
#[derive(Debug)]
pub(super) struct Linear {
    /// Pairs of inputs.
    inputs: usize,
    outputs: usize,
    /// Block, pair of inputs, lane.
    weights: Vec<Pairs>,
    /// What one is worth, in blocks.
    units: Vec<f32x16>,
    bias: Vec<f32x16>,
}

impl Linear {
    /// Weights with an input a row.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        let blocks = outputs.div_ceil(LANES);
        let column = |output: usize| (0..inputs).map(move |input| weights[input * outputs + output]);
        // To round a weight adds half at most.
        let most = LARGEST_SUM - inputs as f32 / 2.0;
        let unit = |output: usize| {
            let (sum, largest) = column(output)
                .fold((0.0_f32, 0.0_f32), |(sum, largest), w| (sum + w.abs(), largest.max(w.abs())));
            (sum / most).max(largest / LARGEST_WEIGHT).max(f32::MIN_POSITIVE)
        };
        let units: Vec<f32> = (0..outputs).map(unit).collect();
        let whole = |input: usize, output: usize| {
            let weight = (output < outputs).then(|| weights.get(input * outputs + output)).flatten();
            weight.map_or(0, |weight| (weight / units[output]).round_ties_even() as i32)
        };
        let pad = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            f32x16::new(lanes)
        };
        Self {
            inputs: inputs.div_ceil(2),
            outputs,
            weights: (0..blocks)
                .flat_map(|block| (0..inputs).step_by(2).map(move |input| (block, input)))
                .map(|(block, input)| {
                    let output = |lane| block * LANES + lane;
                    Pairs::new(std::array::from_fn(|lane| {
                        pair(whole(input, output(lane)), whole(input + 1, output(lane)))
                    }))
                })
                .collect(),
            units: units.chunks(LANES).map(pad).collect(),
            bias: bias.chunks(LANES).map(pad).collect(),
        }
    }

    /// Outputs a row, without the padding.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    fn block(&self, block: usize) -> &[Pairs] {
        &self.weights[block * self.inputs..(block + 1) * self.inputs]
    }

    /// Changes the rows of `out` by the outputs of a block for the first places of `x`, all if there are more: an output a row.
    #[inline(always)]
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
            return out
                .iter_mut()
                .zip(transpose(&tile))
                .for_each(|(out, values)| *out = change(*out, values));
        }
        let (units, bias) = (self.units[block].as_array(), self.bias[block].as_array());
        sums_of(self.block(block), LANES, &x.pairs, |first, sums| {
            let of = units[first..].iter().zip(&bias[first..]);
            for ((out, &sum), (&unit, &bias)) in out[first..].iter_mut().zip(sums).zip(of) {
                let sum = f32x16::from_i32x16(sum) * x.unit;
                *out = change(*out, sum.mul_add(f32x16::splat(unit), f32x16::splat(bias)));
            }
        });
    }

    /// Writes the same to `out`, a place a row.
    #[inline(always)]
    pub(super) fn rows(&self, block: usize, x: &Whole, places: usize, out: &mut [f32x16]) {
        let (units, bias) = (self.units[block], self.bias[block]);
        sums_of(&x.pairs, places.min(LANES), self.block(block), |first, sums| {
            let of_places = &x.unit.as_array()[first..];
            for ((out, &sum), &unit) in out[first..].iter_mut().zip(sums).zip(of_places) {
                *out = (f32x16::from_i32x16(sum) * f32x16::splat(unit)).mul_add(units, bias);
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

    /// The outputs of one place, in blocks.
    pub(super) fn one(&self, x: &[f32], out: &mut Vec<f32x16>) {
        let (parts, rest) = x.as_chunks::<LANES>();
        let largest =
            parts.iter().fold(f32x16::ZERO, |largest, &x| largest.fast_max(f32x16::new(x).abs())).to_array();
        let largest = largest.iter().chain(rest).fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
        let (unit, per_unit) = (largest / LARGEST_INPUT, LARGEST_INPUT / largest);
        let whole = |x: &f32| (x * per_unit).round_ties_even() as i32;
        out.clear();
        for first in (0..self.bias.len()).step_by(BLOCKS_OF_ONE) {
            let weights: [&[Pairs]; BLOCKS_OF_ONE] =
                std::array::from_fn(|step| self.block((first + step).min(self.bias.len() - 1)));
            let mut sums = [i32x16::ZERO; BLOCKS_OF_ONE];
            for (input, x) in x.chunks(2).enumerate() {
                let x = Pairs::splat(pair(whole(&x[0]), x.get(1).map_or(0, whole)));
                for step in 0..BLOCKS_OF_ONE {
                    sums[step] = add_products(x, weights[step][input], sums[step]);
                }
            }
            let of = self.units[first..].iter().zip(&self.bias[first..]);
            out.extend(sums.into_iter().zip(of).map(|(sum, (&units, &bias))| {
                (f32x16::from_i32x16(sum) * f32x16::splat(unit)).mul_add(units, bias)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::matrix::{Tile, vector};

    fn whole(x: &[f32x16]) -> Whole {
        let mut whole = Whole::default();
        whole.take(x);
        whole
    }

    fn rows(layer: &Linear, block: usize, x: &Whole) -> Tile {
        let mut tile = ZEROS;
        layer.rows(block, x, LANES, &mut tile);
        tile
    }

    #[test]
    fn a_layer_is_the_plain_sum_whichever_way_it_is_run() {
        for (inputs, outputs) in [(6, 35), (128, 9 * LANES + 1)] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
            let (weights, bias) = (numbers(inputs * outputs), numbers(outputs));
            let layer = Linear::new(&weights, &bias);
            let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
            let all = whole(&x);
            let mut changed = vec![f32x16::ONE; layer.bias.len() * LANES];
            layer.run(&all, LANES, &mut changed, |was, value| was - value);
            let rows: Vec<Tile> = (0..layer.bias.len()).map(|block| rows(&layer, block, &all)).collect();
            for row in 0..LANES {
                let place: Vec<f32> = x.iter().map(|lanes| lanes.as_array()[row]).collect();
                let mut one = Vec::new();
                layer.one(&place, &mut one);
                for output in 0..outputs {
                    let terms = || (0..inputs).map(|i| place[i] * weights[i * outputs + output]);
                    let expected = bias[output] + terms().sum::<f32>();
                    let size = terms().map(f32::abs).sum::<f32>();
                    let (block, lane) = (output / LANES, output % LANES);
                    for value in [
                        rows[block][row].as_array()[lane],
                        1.0 - changed[output].as_array()[row],
                        one[block].as_array()[lane],
                    ] {
                        let off = (value - expected).abs();
                        assert!(off < 2e-4 * size + 1e-6, "{row} {output}: {value} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn few_places_and_one_get_the_very_numbers_of_many() {
        let (inputs, outputs) = (8, 6 * LANES);
        let mut random = fastrand::Rng::with_seed(2);
        let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
        let layer = Linear::new(&numbers(inputs * outputs), &numbers(outputs));
        let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
        let all = whole(&x);
        let bits = |values: &f32x16| values.as_array().map(f32::to_bits);
        for block in 0..6 {
            let of_all = rows(&layer, block, &all);
            for places in 1..=LANES {
                let mut columns = ZEROS;
                layer.columns(block, &all, places, &mut columns, |_, values| values);
                for (row, expected) in transpose(&columns).iter().zip(&of_all).take(places) {
                    assert_eq!(bits(row), bits(expected), "{places} {block}");
                }
            }
        }
        let mut one = Vec::new();
        layer.one(&x.iter().map(|lanes| lanes.as_array()[3]).collect::<Vec<_>>(), &mut one);
        let expected: Vec<f32x16> = (0..6).map(|block| rows(&layer, block, &all)[3]).collect();
        assert_eq!(one, expected);
    }

    #[test]
    fn an_odd_input_goes_without_a_second() {
        let layer = Linear::new(&[1.0, 2.0, 3.0], &[0.5]);
        let mut one = Vec::new();
        layer.one(&[1.0, -1.0, 2.0], &mut one);
        assert!((one[0].as_array()[0] - 5.5).abs() < 1e-3, "{one:?}");
    }

    /// Inputs that are all as large as can be, with the signs of the weights, however these are spread.
    #[test]
    fn no_sum_overflows() {
        let mut random = fastrand::Rng::with_seed(3);
        for inputs in [2, 16, 128, 1024] {
            for spread in [0, 1, 20] {
                let weights: Vec<f32> =
                    (0..inputs).map(|_| (random.f32() - 0.5).powi(2 * spread + 1) * 1e3).collect();
                let layer = Linear::new(&weights, &[0.0]);
                let x: Vec<f32> = weights.iter().map(|weight| 7.0_f32.copysign(*weight)).collect();
                let expected: f32 = weights.iter().zip(&x).map(|(weight, x)| weight * x).sum();
                let mut one = Vec::new();
                layer.one(&x, &mut one);
                let value = one[0].as_array()[0];
                assert!((value / expected - 1.0).abs() < 1e-3, "{inputs} {spread}: {value} {expected}");
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_and_largest_floats_give_numbers() {
        let layer = Linear::new(&[0.0, 1.0, 0.0, -1.0], &[0.25, 0.0]);
        for x in [0.0, 1e-45, f32::MIN_POSITIVE, 1e30] {
            for row in rows(&layer, 0, &whole(&[f32x16::splat(x); 2])) {
                assert_eq!(row.as_array()[..2], [0.25, 0.0]);
            }
            let mut one = Vec::new();
            layer.one(&[x, x], &mut one);
            assert_eq!(one[0].as_array()[..2], [0.25, 0.0]);
        }
    }
}
