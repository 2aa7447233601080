//! Blocks of numbers as whole numbers of 8 bits, and sums of their products.
//!
//! A lane of a vector holds [`PACKED`] of them: four bytes where the machine multiplies those and sums them up at once (AVX-512 VNNI),
//! else two of 16 bits. Either way the sums are of 32 bits and exact, so they are the same on every machine, in whichever order
//! they are made.

use bytemuck::cast;
use wide::{f32x16, i32x16};

use super::matrix::{LANES, SUMS, fold};

/// Integers in a lane.
pub(super) const PACKED: usize =
    if cfg!(all(target_arch = "x86_64", target_feature = "avx512vnni")) { 4 } else { 2 };

/// What is added to every input, so that bytes of them have no sign, as VNNI wants it; whoever sums takes [`BIAS`] times the weights
/// away again.
pub(super) const BIAS: i32 = if PACKED == 4 { 128 } else { 0 };

/// The largest integer; the smallest is its negative.
const LARGEST: f32 = i8::MAX as f32;

const BITS: usize = 32 / PACKED;
const MASK: i32 = if PACKED == 4 { 0xff } else { 0xffff };

/// [`PACKED`] integers a lane.
pub(super) type Packed = i32x16;

/// The integer nearest to a number.
#[inline(always)]
fn rounded(x: f32, per_unit: f32) -> i32 {
    (x * per_unit).round_ties_even() as i32
}

fn pack(integers: impl DoubleEndedIterator<Item = i32>) -> i32 {
    integers.rev().fold(0, |packed, integer| (packed << BITS) | (integer & MASK))
}

/// Weights of one output: what one is worth, and the integers.
pub(super) fn weights_of(weights: impl Iterator<Item = f32> + Clone) -> (f32, Vec<i32>) {
    let largest = weights.clone().fold(f32::MIN_POSITIVE, |largest, weight| largest.max(weight.abs()));
    (largest / LARGEST, weights.map(|weight| rounded(weight, LARGEST / largest)).collect())
}

/// A row of packed weights of [`LANES`] outputs, of which there are the integers from `input` on.
pub(super) fn pack_weights(outputs: &[Vec<i32>], input: usize) -> Packed {
    let lane =
        |integers: &Vec<i32>| pack((input..input + PACKED).map(|at| integers.get(at).copied().unwrap_or(0)));
    Packed::new(std::array::from_fn(|at| outputs.get(at).map_or(0, lane)))
}

/// Places in whole numbers.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// [`PACKED`] inputs a row, a place a lane.
    pub(super) rows: Vec<Packed>,
    /// What one is worth, place by place.
    pub(super) unit: f32x16,
}

impl Whole {
    /// Takes a block of places with an input a row, a multiple of [`PACKED`] of them.
    #[inline(never)]
    pub(super) fn take(&mut self, x: &[f32x16]) {
        let largest = fold(x, f32x16::ZERO, |largest, x| largest.fast_max(x.abs()), f32x16::fast_max);
        let largest = largest.fast_max(f32x16::splat(f32::MIN_POSITIVE));
        self.unit = largest / f32x16::splat(LARGEST);
        let per_unit = f32x16::splat(LARGEST) / largest;
        let (rows, _) = x.as_chunks::<PACKED>();
        self.rows.clear();
        self.rows.extend(rows.iter().map(|row| {
            let pack = |packed: Packed, &x: &f32x16| {
                (packed << BITS as i32) | ((x * per_unit).fast_round_int() & i32x16::splat(MASK))
            };
            with_bias(row.iter().rev().fold(Packed::ZERO, pack))
        }));
    }

    /// Takes the inputs of one place, any number of them, as if it were all places.
    pub(super) fn take_one(&mut self, x: &[f32]) {
        let (blocks, rest) = x.as_chunks::<LANES>();
        let most = |largest: f32x16, &x: &[f32; LANES]| largest.fast_max(f32x16::new(x).abs());
        let largest = blocks.iter().fold(f32x16::ZERO, most).to_array();
        let largest = largest.iter().chain(rest).fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
        self.unit = f32x16::splat(largest / LARGEST);
        self.rows.clear();
        self.rows.extend(
            x.chunks(PACKED)
                .map(|x| with_bias(Packed::splat(pack(x.iter().map(|&x| rounded(x, LARGEST / largest)))))),
        );
    }
}

/// Packed inputs with [`BIAS`] added to each.
#[inline(always)]
fn with_bias(packed: Packed) -> Packed {
    if BIAS == 0 { packed } else { packed ^ Packed::splat(0x8080_8080_u32.cast_signed()) }
}

/// Adds the products of packed inputs and weights to sums.
#[cfg(all(target_arch = "x86_64", target_feature = "avx512vnni"))]
#[inline(always)]
pub(super) fn add_products(inputs: Packed, weights: Packed, sums: i32x16) -> i32x16 {
    // SAFETY: the program is compiled for machines that have the instruction, which takes and gives numbers and nothing else.
    #[expect(unsafe_code, reason = "no safe crate has the instruction")]
    cast(unsafe { std::arch::x86_64::_mm512_dpbusd_epi32(cast(sums), cast(inputs), cast(weights)) })
}

/// Adds the products of packed inputs and weights to sums.
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512vnni")))]
#[inline(always)]
pub(super) fn add_products(inputs: Packed, weights: Packed, sums: i32x16) -> i32x16 {
    sums + cast::<Packed, wide::i16x32>(inputs).dot(cast(weights))
}

/// Sums of `P` lanes of `a`, from `first` on, times `b`, as `add` makes them. A function of its own, so that the registers hold
/// nothing but these sums.
#[inline(never)]
fn sum_products<const P: usize>(
    a: &[Packed],
    first: usize,
    b: &[Packed],
    add: impl Fn(Packed, Packed, i32x16) -> i32x16,
) -> [i32x16; P] {
    let mut sums = [i32x16::ZERO; P];
    for (a, &b) in a.iter().zip(b) {
        let a = &a.as_array()[first..first + P];
        for index in 0..P {
            sums[index] = add(Packed::splat(a[index]), b, sums[index]);
        }
    }
    sums
}

/// Tells the sums of the products of the first lanes of `a`, and maybe of some lanes more, with those of `b`, as `add` makes them: from
/// which lane on, and some at a time.
#[inline(always)]
pub(super) fn sums_of(
    a: &[Packed],
    lanes: usize,
    b: &[Packed],
    add: impl Fn(Packed, Packed, i32x16) -> i32x16 + Copy,
    mut tell: impl FnMut(usize, &[i32x16]),
) {
    let mut first = 0;
    while first < lanes {
        // As many at a time as there are registers for.
        match lanes - first {
            13.. if SUMS >= 16 => {
                tell(first, &sum_products::<16>(a, first, b, add));
                first += 16;
            }
            5.. if SUMS >= 8 => {
                tell(first, &sum_products::<8>(a, first, b, add));
                first += 8;
            }
            _ => {
                tell(first, &sum_products::<4>(a, first, b, add));
                first += 4;
            }
        }
    }
}
