//! Vectors and small matrices, fast on one core.
//!
//! Sixteen places of a text are worked on together, one in each lane of a vector. Every sum runs over its terms in
//! their order, whatever the vector width: the same numbers on every machine that has fused multiply-add (without it they
//! differ in the last bit).

use wide::{f32x8, f32x16};

/// Numbers in a vector: one register where the machine has AVX-512, else two or four.
pub(super) const LANES: usize = 16;

/// Sums that are kept in registers at a time: enough that no addition waits for the one before.
pub(super) const SUMS: usize = if cfg!(target_feature = "avx512f") { 16 } else { 4 };

/// Sums of one vector that are made at a time.
const STEPS: usize = 4;

/// A square matrix of as many rows as there are lanes.
pub(super) type Tile = [f32x16; LANES];

pub(super) const ZEROS: Tile = [f32x16::ZERO; LANES];

/// `aᵀ b`: a row of either is a term of the sums. A function of its own, so that the registers hold nothing but these sums.
#[inline(never)]
pub(super) fn product(a: &[f32x16], b: &[f32x16]) -> Tile {
    let mut out = ZEROS;
    for (part, out) in out.chunks_exact_mut(SUMS).enumerate() {
        let mut sums = [f32x16::ZERO; SUMS];
        for (a, b) in a.iter().zip(b) {
            let a = &a.as_array()[part * SUMS..(part + 1) * SUMS];
            for index in 0..SUMS {
                sums[index] = f32x16::splat(a[index]).mul_add(*b, sums[index]);
            }
        }
        out.copy_from_slice(&sums);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
