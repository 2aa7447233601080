//! Small dense layers, fast on one core.
//!
//! Sixteen places of a text go through a layer together, one in each lane of a vector. Every sum runs over its terms in
//! their order, whatever the vector width: the same numbers on every machine that has fused multiply-add (without it they
//! differ in the last bit).

use std::ops::Range;

use wide::{f32x8, f32x16, i16x16, i32x16};

/// Numbers in a vector: one register where the machine has AVX-512, else two or four.
pub(super) const LANES: usize = 16;

/// Sums that are kept in registers at a time: enough that no addition waits for the one before.
const SUMS: usize = if cfg!(target_feature = "avx512f") { 16 } else { 4 };

/// Sums of one vector that are made at a time.
const STEPS: usize = 4;

/// Blocks of outputs that a single place, or a few, goes through at a time: as above, no addition waits for the one before.
const BLOCKS_OF_ONE: usize = 8;
const BLOCKS_OF_FEW: usize = 4;

/// Places up to which they go through a layer one by one: with more, lanes that hold no place cost less than to turn the outputs round.
const FEW: usize = 12;

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

/// Rows become columns.
#[inline(always)]
pub(super) fn transpose(tile: &Tile) -> Tile {
    const HALF: usize = LANES / 2;
    let mut turned = [[0.0; LANES]; LANES];
    for (from_row, from) in [(0, 0), (0, HALF), (HALF, 0), (HALF, HALF)] {
        let quarter: [f32x8; HALF] = std::array::from_fn(|row| {
            let mut lanes = [0.0; HALF];
            lanes.copy_from_slice(&tile[from_row + row].as_array()[from..from + HALF]);
            f32x8::new(lanes)
        });
        for (row, lanes) in f32x8::transpose(quarter).iter().enumerate() {
            turned[from + row][from_row..from_row + HALF].copy_from_slice(lanes.as_array());
        }
    }
    turned.map(f32x16::new)
}

/// Adds to `sums` those of `P` places of `x`, from `first` on, with blocks of weights: as [`add_product`] does, place by place.
#[inline(never)]
fn add_few<const P: usize>(
    x: &[f32x16],
    first: usize,
    weights: [&[f32x16]; BLOCKS_OF_FEW],
    sums: &mut [[f32x16; BLOCKS_OF_FEW]; P],
) {
    let weights = weights.map(|block| &block[..x.len()]);
    let mut kept = *sums;
    for (input, x) in x.iter().enumerate() {
        let x = &x.as_array()[first..first + P];
        for block in 0..BLOCKS_OF_FEW {
            let weights = weights[block][input];
            for place in 0..P {
                kept[place][block] = f32x16::splat(x[place]).mul_add(weights, kept[place][block]);
            }
        }
    }
    *sums = kept;
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

    /// Tiles of `BLOCKS_OF_FEW` blocks from `first` on, a place a row; rows from `places` on are of no use.
    fn few(&self, first: usize, x: &[f32x16], places: usize) -> [Tile; BLOCKS_OF_FEW] {
        // Of blocks that are not there, the last is taken, and nobody asks for it.
        let blocks: [usize; BLOCKS_OF_FEW] =
            std::array::from_fn(|step| (first + step).min(self.bias.len() - 1));
        let (weights, bias) = (blocks.map(|block| self.block(block)), blocks.map(|block| self.bias[block]));
        let mut tiles = [ZEROS; BLOCKS_OF_FEW];
        let mut keep = |at: usize, sums: &[[f32x16; BLOCKS_OF_FEW]]| {
            for (place, sums) in sums.iter().enumerate() {
                tiles.iter_mut().zip(sums).for_each(|(tile, &sum)| tile[at + place] = sum);
            }
        };
        let mut at = 0;
        while at < places {
            if places - at > 2 {
                let mut sums = [bias; 4];
                add_few(x, at, weights, &mut sums);
                keep(at, &sums);
                at += 4;
            } else {
                let mut sums = [bias; 2];
                add_few(x, at, weights, &mut sums);
                keep(at, &sums);
                at += 2;
            }
        }
        tiles
    }

    /// Tells the outputs of some blocks for up to [`LANES`] places, an output a row.
    #[inline(always)]
    pub(super) fn columns_of(
        &self,
        blocks: Range<usize>,
        x: &[f32x16],
        places: usize,
        mut tell: impl FnMut(usize, &Tile),
    ) {
        if places > FEW {
            blocks.for_each(|block| tell(block, &self.columns(block, x)));
        } else {
            self.few_of(blocks, x, places, |block, tile| tell(block, &transpose(tile)));
        }
    }

    /// The same, a place a row.
    #[inline(always)]
    pub(super) fn rows_of(
        &self,
        blocks: Range<usize>,
        x: &[f32x16],
        places: usize,
        mut tell: impl FnMut(usize, &Tile),
    ) {
        if places > FEW {
            blocks.for_each(|block| tell(block, &self.rows(block, x)));
        } else {
            self.few_of(blocks, x, places, tell);
        }
    }

    #[inline(always)]
    fn few_of(&self, blocks: Range<usize>, x: &[f32x16], places: usize, mut tell: impl FnMut(usize, &Tile)) {
        for first in blocks.clone().step_by(BLOCKS_OF_FEW) {
            let tiles = self.few(first, x, places);
            (first..blocks.end).zip(&tiles).for_each(|(block, tile)| tell(block, tile));
        }
    }

    /// Changes each row of `out` by the output that it stands for, of up to [`LANES`] places.
    #[inline(always)]
    pub(super) fn run(
        &self,
        x: &[f32x16],
        places: usize,
        out: &mut [f32x16],
        change: impl Fn(f32x16, f32x16) -> f32x16,
    ) {
        self.columns_of(0..self.bias.len(), x, places, |block, values| {
            let out = &mut out[block * LANES..][..LANES];
            out.iter_mut().zip(values).for_each(|(out, &value)| *out = change(*out, value));
        });
    }

    /// The outputs of one place, in blocks.
    pub(super) fn one(&self, x: &[f32], out: &mut Vec<f32x16>) {
        out.clear();
        for first in (0..self.bias.len()).step_by(BLOCKS_OF_ONE) {
            let weights: [&[f32x16]; BLOCKS_OF_ONE] =
                std::array::from_fn(|step| &self.block((first + step).min(self.bias.len() - 1))[..x.len()]);
            let mut sums = [f32x16::ZERO; BLOCKS_OF_ONE];
            for (input, &x) in x.iter().enumerate() {
                for step in 0..BLOCKS_OF_ONE {
                    sums[step] = f32x16::splat(x).mul_add(weights[step][input], sums[step]);
                }
            }
            out.extend(sums.into_iter().zip(&self.bias[first..]).map(|(sum, &bias)| sum + bias));
        }
    }
}

/// `x W + b` for one place, with weights of half precision as the file has them: they are read once a text, from far away, so what
/// counts is how many bytes they are.
///
/// The bits of a half, moved to where a float has them, are its value times 2^-112, tiny ones too. The inputs are multiplied by 2^112
/// instead (they are small), so every product, and with it every sum, is to the bit what it would be with floats.
#[derive(Debug)]
pub(super) struct HalfLinear {
    /// Input, block, lane; blocks up to a multiple of [`BLOCKS_OF_ONE`].
    weights: Vec<[i16x16; BLOCKS_OF_ONE]>,
    bias: Vec<f32x16>,
}

impl HalfLinear {
    /// Weights with an input a row, in bits of half precision.
    pub(super) fn new(weights: &[u16], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let blocks = outputs.div_ceil(LANES);
        let group = |row: &[u16], first: usize| -> [i16x16; BLOCKS_OF_ONE] {
            std::array::from_fn(|step| {
                let at = |lane| (first + step) * LANES + lane;
                i16x16::new(std::array::from_fn(|lane| {
                    row.get(at(lane)).map_or(0, |bits| bits.cast_signed())
                }))
            })
        };
        let firsts = || (0..blocks).step_by(BLOCKS_OF_ONE);
        let pad = |values: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            f32x16::new(lanes)
        };
        Self {
            weights: firsts()
                .flat_map(|first| weights.chunks_exact(outputs).map(move |row| group(row, first)))
                .collect(),
            bias: bias.chunks(LANES).map(pad).collect(),
        }
    }

    /// The outputs, in blocks.
    pub(super) fn run(&self, x: &[f32], out: &mut Vec<f32x16>) {
        let moved_back = f32::from_bits((127 + 112) << 23);
        let bits = i32x16::splat(0x8fff_e000_u32.cast_signed());
        out.clear();
        for weights in self.weights.chunks_exact(x.len()) {
            let mut sums = [f32x16::ZERO; BLOCKS_OF_ONE];
            for (weights, &x) in weights.iter().zip(x) {
                let x = f32x16::splat(x * moved_back);
                for (sum, &weights) in sums.iter_mut().zip(weights) {
                    let moved: i32x16 = (i32x16::from_i16x16(weights) << 13_i32) & bits;
                    *sum = x.mul_add(f32x16::from_bits(moved.cast_unsigned()), *sum);
                }
            }
            let bias = &self.bias[out.len()..];
            out.extend(sums.into_iter().zip(bias).map(|(sum, &bias)| sum + bias));
        }
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
        layer.run(&x, LANES, &mut changed, |was, value| was - value);
        for row in 0..LANES {
            let place: Vec<f32> = x.iter().map(|lanes| lanes.as_array()[row]).collect();
            let mut one = Vec::new();
            layer.one(&place, &mut one);
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

    #[test]
    fn few_places_get_the_very_numbers_of_many() {
        let (inputs, outputs) = (7, 6 * LANES);
        let mut random = fastrand::Rng::with_seed(2);
        let mut numbers = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
        let layer = Linear::new(&numbers(inputs * outputs), &numbers(outputs));
        let x: Vec<f32x16> = numbers(inputs * LANES).chunks(LANES).map(vector).collect();
        for places in 1..=LANES {
            let mut told = 0;
            layer.columns_of(0..6, &x, places, |block, tile| {
                for (row, expected) in tile.iter().zip(layer.columns(block, &x)) {
                    let bits = |values: &f32x16| values.as_array().map(f32::to_bits)[..places].to_vec();
                    assert_eq!(bits(row), bits(&expected), "{places} {block}");
                }
                told += 1;
            });
            assert_eq!(told, 6);
        }
    }

    #[test]
    fn rows_become_columns() {
        let tile: Tile =
            std::array::from_fn(|row| f32x16::new(std::array::from_fn(|lane| (row * LANES + lane) as f32)));
        let turned = transpose(&tile);
        for (row, values) in turned.iter().enumerate() {
            for (lane, &value) in values.as_array().iter().enumerate() {
                assert_eq!(value, (lane * LANES + row) as f32);
            }
        }
        assert_eq!(transpose(&turned), tile);
    }

    #[test]
    fn halves_give_the_very_numbers_of_floats() {
        let (inputs, outputs) = (9, 10 * LANES + 3);
        let mut random = fastrand::Rng::with_seed(3);
        // All kinds but infinities and no numbers: zeros, tiny ones, either sign.
        let mut half = || half::f16::from_bits(random.u16(..) & 0xbbff);
        let mut halves: Vec<half::f16> = (0..inputs * outputs).map(|_| half()).collect();
        halves[..4].copy_from_slice(&[0x0000, 0x8000, 0x0001, 0x83ff].map(half::f16::from_bits));
        let bits: Vec<u16> = halves.iter().map(|half| half.to_bits()).collect();
        let floats: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let mut random = fastrand::Rng::with_seed(4);
        let mut numbers = |count: usize| (0..count).map(|_| 8.0 * (random.f32() - 0.5)).collect::<Vec<_>>();
        let (bias, x) = (numbers(outputs), numbers(inputs));
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        Linear::new(&floats, &bias).one(&x, &mut expected);
        HalfLinear::new(&bits, &bias).run(&x, &mut found);
        let bits = |values: &[f32x16]| -> Vec<u32> {
            values.iter().flat_map(|values| values.as_array().map(f32::to_bits)).collect()
        };
        assert_eq!(bits(&found)[..outputs], bits(&expected)[..outputs]);
        assert!(found.iter().all(|values| values.is_finite().all()));
    }
}
