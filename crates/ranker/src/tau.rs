//! How well two orders agree: Kendall's tau-b and pairwise accuracy, both in O(n log n).
//!
//! Knight, "A computer method for calculating Kendall's tau with ungrouped data", JASA 61 (1966): sort by
//! the first variable, then count the exchanges that a merge sort by the second needs. With n0 = n(n-1)/2
//! pairs, n1 and n2 pairs tied in the first and second variable, n3 tied in both, and D discordant pairs,
//! tau-b = (n0 - n1 - n2 + n3 - 2 D) / sqrt((n0 - n1) (n0 - n2)).

use std::cmp::Ordering;

/// Counts of pairs, by how two variables order them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pairs {
    total: u64,
    tied_first: u64,
    tied_second: u64,
    tied_both: u64,
    discordant: u64,
}

/// Kendall's tau-b of two variables: 1 where they order every pair alike, -1 where they order every pair
/// oppositely, 0 where unrelated. Pairs tied in one variable count for neither.
///
/// `None` where it is not defined: fewer than two values, one variable constant, or a NaN among them.
///
/// # Panics
/// Where the slices differ in length.
pub fn kendall_tau_b(first: &[f64], second: &[f64]) -> Option<f64> {
    let pairs = count_pairs(first, second)?;
    let untied_first = pairs.total - pairs.tied_first;
    let untied_second = pairs.total - pairs.tied_second;
    if untied_first == 0 || untied_second == 0 {
        return None;
    }
    let concordant = untied_first - (pairs.tied_second - pairs.tied_both) - pairs.discordant;
    let agreement = concordant as f64 - pairs.discordant as f64;
    // One root of the product, not two roots: a perfect order is then exactly 1.
    Some((agreement / (untied_first as f64 * untied_second as f64).sqrt()).clamp(-1.0, 1.0))
}

/// Of the pairs whose true lengths differ, the share that the prediction orders rightly; a pair that the
/// prediction ties counts one half. `None` where no pair differs, or a NaN is among them.
///
/// # Panics
/// Where the slices differ in length.
pub fn pairwise_accuracy(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    let pairs = count_pairs(predicted, truth)?;
    let decided = pairs.total - pairs.tied_second;
    if decided == 0 {
        return None;
    }
    let tied = pairs.tied_first - pairs.tied_both;
    let right = decided - tied - pairs.discordant;
    Some((right as f64 + 0.5 * tied as f64) / decided as f64)
}

fn count_pairs(first: &[f64], second: &[f64]) -> Option<Pairs> {
    assert_eq!(first.len(), second.len(), "two variables of the same requests");
    if first.len() < 2 || first.iter().chain(second).any(|value| value.is_nan()) {
        return None;
    }
    let mut points: Vec<(f64, f64)> = first.iter().copied().zip(second.iter().copied()).collect();
    points.sort_unstable_by(|a, b| order(a.0, b.0).then(order(a.1, b.1)));
    let tied_first = tied_pairs(&points, |a, b| a.0 == b.0);
    let tied_both = tied_pairs(&points, |a, b| a == b);
    let mut values: Vec<f64> = points.into_iter().map(|(_, value)| value).collect();
    let mut spare = values.clone();
    let discordant = sort_counting_exchanges(&mut values, &mut spare);
    let n = values.len() as u64;
    let tied_second = tied_pairs(&values, |a, b| a == b);
    Some(Pairs { total: n * (n - 1) / 2, tied_first, tied_second, tied_both, discordant })
}

/// The order of two numbers that are not NaN; unlike `total_cmp`, -0 and 0 are one value.
fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

/// Pairs within runs of equal neighbours.
fn tied_pairs<T>(sorted: &[T], equal: impl Fn(&T, &T) -> bool) -> u64 {
    sorted.chunk_by(equal).map(|run| run.len() as u64 * (run.len() as u64 - 1) / 2).sum()
}

/// Merge sort; returns how many pairs stood in the wrong order.
fn sort_counting_exchanges(values: &mut [f64], spare: &mut [f64]) -> u64 {
    let n = values.len();
    if n < 2 {
        return 0;
    }
    let middle = n / 2;
    let (left, right) = values.split_at_mut(middle);
    let (spare_left, spare_right) = spare.split_at_mut(middle);
    let mut exchanges =
        sort_counting_exchanges(left, spare_left) + sort_counting_exchanges(right, spare_right);
    let (mut i, mut j) = (0, 0);
    for slot in spare.iter_mut() {
        if j == right.len() || (i < left.len() && left[i] <= right[j]) {
            *slot = left[i];
            i += 1;
        } else {
            exchanges += (left.len() - i) as u64;
            *slot = right[j];
            j += 1;
        }
    }
    values.copy_from_slice(spare);
    exchanges
}
