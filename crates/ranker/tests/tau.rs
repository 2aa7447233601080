//! Kendall's tau-b against its definition and against cases published with SciPy.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use outrank_ranker::{kendall_tau_b, pairwise_accuracy};
use proptest::prelude::*;

/// The definition: every pair, one by one.
fn obvious(first: &[f64], second: &[f64]) -> (Option<f64>, Option<f64>) {
    let (mut agree, mut untied_first, mut untied_second, mut right) = (0.0f64, 0.0f64, 0.0f64, 0.0);
    for i in 0..first.len() {
        for j in 0..i {
            let a = (first[i] - first[j]).partial_cmp(&0.0).unwrap() as i32;
            let b = (second[i] - second[j]).partial_cmp(&0.0).unwrap() as i32;
            agree += f64::from(a * b);
            untied_first += f64::from(a.abs());
            untied_second += f64::from(b.abs());
            right += if b == 0 { 0.0 } else { 0.5 + 0.5 * f64::from(a * b) };
        }
    }
    let tau = (untied_first > 0.0 && untied_second > 0.0)
        .then(|| agree / untied_first.sqrt() / untied_second.sqrt());
    (tau, (untied_second > 0.0).then(|| right / untied_second))
}

fn close(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => (a - b).abs() < 1e-12,
        _ => false,
    }
}

proptest! {
    #[test]
    fn the_fast_counts_are_those_of_the_definition(
        pairs in prop::collection::vec((-4i8..4, -4i8..4), 0..60)
    ) {
        let first: Vec<f64> = pairs.iter().map(|p| f64::from(p.0)).collect();
        let second: Vec<f64> = pairs.iter().map(|p| f64::from(p.1)).collect();
        let (tau, accuracy) = obvious(&first, &second);
        prop_assert!(close(kendall_tau_b(&first, &second), tau));
        prop_assert!(close(pairwise_accuracy(&first, &second), accuracy));
    }
}

#[test]
fn the_cases_of_scipys_tests_give_scipys_values() {
    // scipy/stats/tests/test_stats.py, TestKendallTau (scipy 1.x), variant "b".
    let cases: [(&[f64], &[f64], f64); 8] = [
        (&[5., 2., 1., 3., 6., 4., 7., 8.], &[5., 2., 6., 3., 1., 8., 7., 4.], 0.0),
        (&[0., 5., 2., 1., 3., 6., 4., 7., 8.], &[5., 2., 0., 6., 3., 1., 8., 7., 4.], 0.0),
        (&[5., 2., 1., 3., 6., 4., 7.], &[5., 2., 6., 3., 1., 7., 4.], -0.142_857_142_857_142_85),
        (&[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.], &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.], 1.0),
        (
            &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.],
            &[0., 2., 1., 3., 4., 6., 5., 7., 8., 9.],
            0.911_111_111_111_111_1,
        ),
        (&[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.], &[9., 8., 7., 6., 5., 4., 3., 2., 1., 0.], -1.0),
        (&[12., 2., 1., 12., 2.], &[1., 4., 7., 1., 0.], -0.471_404_520_791_031_7),
        (&[2., 2., 2.], &[2., 0., 2.], f64::NAN),
    ];
    for (first, second, expected) in cases {
        match kendall_tau_b(first, second) {
            Some(tau) => assert!((tau - expected).abs() < 1e-14, "{first:?} {second:?}: {tau}"),
            None => assert!(expected.is_nan(), "{first:?} {second:?}"),
        }
    }
}

#[test]
fn nan_and_constants_have_no_tau_and_minus_zero_is_zero() {
    assert_eq!(kendall_tau_b(&[], &[]), None);
    assert_eq!(kendall_tau_b(&[1.0], &[1.0]), None);
    assert_eq!(kendall_tau_b(&[1.0, f64::NAN], &[1.0, 2.0]), None);
    assert_eq!(kendall_tau_b(&[-0.0, 0.0, 1.0], &[0.0, 0.0, 5.0]), Some(1.0));
}

#[test]
fn a_hundred_thousand_requests_take_no_quadratic_time() {
    let first: Vec<f64> = (0..100_000u32).map(|n| f64::from(n.wrapping_mul(2_654_435_761) % 1000)).collect();
    let second: Vec<f64> = (0..100_000).map(f64::from).collect();
    let start = std::time::Instant::now();
    assert!(kendall_tau_b(&first, &second).unwrap().abs() < 0.02);
    assert!(start.elapsed().as_secs() < 2);
}
